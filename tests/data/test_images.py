import multiprocessing
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest

from vtriune.data.images import FilePicture, TablePicture
from vtriune.data.schema import Row
from vtriune.data.tables import TableFile
from vtriune.types import UserError

WHERE = "train.parquet row 3 images[0]"


@pytest.fixture
def saved(tmp_path: Path) -> Callable[..., FilePicture]:
    def save(picture: PIL.Image.Image, kind: str = "PNG", **options: Any) -> FilePicture:
        path = tmp_path / "picture"
        picture.save(path, kind, **options)
        return FilePicture(path, WHERE)

    return save


def _pixels(picture: PIL.Image.Image) -> np.ndarray[Any, np.dtype[np.uint8]]:
    assert picture.mode == "RGB"
    return np.asarray(picture)


def test_transparent_pixels_become_white(saved: Callable[..., FilePicture]) -> None:
    picture = PIL.Image.new("RGBA", (2, 1), (255, 0, 0, 255))
    picture.putpixel((1, 0), (0, 0, 255, 0))
    assert _pixels(saved(picture).load()).tolist() == [[[255, 0, 0], [255, 255, 255]]]
    grey = PIL.Image.new("LA", (1, 1), (0, 128))
    assert _pixels(saved(grey).load()).tolist() == [[[127, 127, 127]]]


def test_a_palette_is_looked_up_and_its_transparent_entry_is_white(saved: Callable[..., FilePicture]) -> None:
    picture = PIL.Image.new("P", (2, 1))
    picture.putpalette([10, 20, 30, 40, 50, 60])
    picture.putpixel((1, 0), 1)
    assert _pixels(saved(picture).load()).tolist() == [[[10, 20, 30], [40, 50, 60]]]
    assert _pixels(saved(picture, transparency=0).load()).tolist() == [[[255, 255, 255], [40, 50, 60]]]


def test_grey_pictures_keep_their_range_in_8_and_16_bits(saved: Callable[..., FilePicture]) -> None:
    assert _pixels(saved(PIL.Image.new("L", (1, 1), 77)).load()).tolist() == [[[77, 77, 77]]]
    deep = PIL.Image.fromarray(np.array([[0, 77 * 257, 65535]], dtype=np.uint16))
    assert _pixels(saved(deep).load())[0, :, 0].tolist() == [0, 77, 255]
    assert _pixels(saved(PIL.Image.new("1", (1, 1), 1)).load()).tolist() == [[[255, 255, 255]]]


def test_a_cmyk_jpeg_becomes_rgb(saved: Callable[..., FilePicture]) -> None:
    assert np.abs(_pixels(saved(PIL.Image.new("CMYK", (8, 8)), "JPEG").load()).astype(int) - 255).max() <= 1


def test_a_picture_is_turned_upright_as_its_exif_tag_says(saved: Callable[..., FilePicture]) -> None:
    picture = PIL.Image.new("RGB", (16, 8), "white")
    picture.paste("black", (0, 0, 8, 8))
    exif = PIL.Image.Exif()
    exif[0x0112] = 6  # stored on its side: turn by 90 degrees clockwise
    upright = _pixels(saved(picture, "JPEG", exif=exif, quality=100).load())
    assert upright.shape == (16, 8, 3)
    assert upright[:7].max() < 30
    assert upright[9:].min() > 225


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("over", [1.5, 3])
def test_a_decompression_bomb_is_refused_by_its_header(
    saved: Callable[..., FilePicture], monkeypatch: pytest.MonkeyPatch, over: float
) -> None:
    picture = saved(PIL.Image.new("L", (600, 500)))
    monkeypatch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", int(600 * 500 / over))
    for read in (picture.check, picture.load):
        with pytest.raises(UserError, match=r"row 3 images\[0\]: too large a picture .*store a smaller one"):
            read()


def test_a_truncated_jpeg_is_found_at_the_latest_when_it_is_loaded(saved: Callable[..., FilePicture]) -> None:
    picture = saved(PIL.Image.linear_gradient("L"), "JPEG")
    picture.path.write_bytes(picture.path.read_bytes()[:-500])
    with pytest.raises(
        UserError, match=r"row 3 images\[0\]: cannot be read as a picture .*: replace it or remove the row"
    ):
        picture.load()


def test_a_format_whose_reader_starts_a_program_is_refused(saved: Callable[..., FilePicture]) -> None:
    with pytest.raises(UserError, match=r"cannot be read as a picture .* none of PNG, JPEG"):
        saved(PIL.Image.new("RGB", (8, 8)), "EPS").check()


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"])
def test_the_usual_formats_are_read(saved: Callable[..., FilePicture], kind: str) -> None:
    picture = saved(PIL.Image.new("RGB", (9, 7), (200, 10, 10)), kind)
    picture.check()
    assert np.abs(_pixels(picture.load()).astype(int) - (200, 10, 10)).max() <= 3


@pytest.mark.parametrize("name", ["gone.png", "nul\0.png", ""])
def test_a_picture_that_is_not_there_is_reported_with_its_place_and_the_remedy(tmp_path: Path, name: str) -> None:
    picture = FilePicture(tmp_path / name, WHERE)
    for read in (picture.check, picture.load):
        with pytest.raises(
            UserError, match=r"row 3 images\[0\]: no picture at .*: correct the path or put the picture"
        ):
            read()


def test_a_reference_is_small_and_another_process_can_load_it(
    parquet: Callable[..., Path], math_row: Callable[..., Row]
) -> None:
    file = TableFile.at(parquet(*[math_row(pictures=2)] * 50))
    picture = TablePicture(file, 49, 1, "train.parquet row 49 images[1]")
    assert len(pickle.dumps(picture)) < 1000
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(TablePicture.load, (picture,)).getpixel((0, 0)) == (1, 0, 0)
