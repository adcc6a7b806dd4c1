"""References to pictures: where one is, a check that needs no decoding, and decoding to RGB when it is asked for.

Resizing and patching belong to the model's processor; caching decoded pictures belongs to nobody.
"""

from __future__ import annotations

import errno
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol

import numpy as np
import PIL.ExifTags
import PIL.Image
import PIL.ImageOps
import pyarrow as pa

from vtriune.data.tables import Rows
from vtriune.types import ImageRef, UserError

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
"""What is read. Other readers of PIL start programs (EPS) or are too rare to trust with files from elsewhere."""

SIDEWAYS = (5, 6, 7, 8)
"""EXIF orientations that swap width and height."""


class CheckedImageRef(ImageRef, Protocol):
    """A reference that can also be looked over before training starts."""

    def check(self) -> tuple[int, int]:
        """Read the header (and the checksums of a PNG) without decoding. Raises UserError as `load` does.

        Returns:
            Width and height of what `load` will give (of a PNG: before any EXIF rotation).
        """


class _EncodedPicture(ABC):
    """A picture whose file can be opened."""

    __slots__ = ()
    where: str

    @abstractmethod
    def _bytes(self) -> AbstractContextManager[BinaryIO]:
        """The encoded picture."""

    def check(self) -> tuple[int, int]:
        """See CheckedImageRef."""
        with self._bytes() as stream:
            return _check(stream, self.where)

    def load(self) -> PIL.Image.Image:
        """See ImageRef."""
        with self._bytes() as stream:
            return _decode(stream, self.where)


@dataclass(frozen=True, slots=True)
class TablePicture(_EncodedPicture):
    """Picture `position` in the `images` column of row `row`, both counted from 0."""

    file: Rows
    row: int
    position: int
    where: str

    @contextmanager
    def _bytes(self) -> Iterator[BinaryIO]:
        images = self.file.table().column("images")[self.row]
        # The buffer points into the (memory-mapped) table: nothing is copied.
        with pa.BufferReader(images[self.position]["bytes"].as_buffer()) as stream:
            yield stream


@dataclass(frozen=True, slots=True)
class FilePicture(_EncodedPicture):
    """A picture in a file of its own."""

    path: Path
    where: str

    @contextmanager
    def _bytes(self) -> Iterator[BinaryIO]:
        try:
            if self.path.exists() and not self.path.is_file():
                raise OSError(errno.EINVAL, "not an ordinary file")  # reading a pipe would wait for ever
            stream = self.path.open("rb")
        except (OSError, ValueError) as error:  # ValueError: a NUL in the name
            reason = error.strerror if isinstance(error, OSError) else str(error)
            raise UserError(
                f"{self.where}: no picture at {self.path} ({reason}); paths are relative to the data file: "
                "correct the path or put the picture there"
            ) from error
        with stream:
            yield stream


def _check(stream: BinaryIO, where: str) -> tuple[int, int]:
    with _readable(where):
        picture = _open(stream)
        picture.verify()
        if picture.format == "PNG":  # asking for its EXIF data would decode it, and cameras write none
            return picture.size
        stream.seek(0)
        orientation = _open(stream).getexif().get(PIL.ExifTags.Base.Orientation, 1)
        return picture.size[::-1] if orientation in SIDEWAYS else picture.size


def _decode(stream: BinaryIO, where: str) -> PIL.Image.Image:
    with _readable(where):
        return to_rgb(_open(stream))


def _open(stream: BinaryIO) -> PIL.Image.Image:
    picture = PIL.Image.open(stream, formats=FORMATS)
    limit = PIL.Image.MAX_IMAGE_PIXELS  # PIL itself only warns at its limit and refuses at twice that
    if limit is not None and picture.width * picture.height > limit:
        raise PIL.Image.DecompressionBombError(f"{picture.width} x {picture.height} pixels; the limit is {limit}")
    return picture


@contextmanager
def _readable(where: str) -> Iterator[None]:
    try:
        yield
    except PIL.Image.DecompressionBombError as error:
        raise UserError(f"{where}: too large a picture ({error}); store a smaller one") from error
    except Exception as error:  # PIL's readers raise whatever the damaged bytes lead them to
        # The text of an unidentified picture only shows the stream object.
        reason = "unknown content" if isinstance(error, PIL.UnidentifiedImageError) else error
        raise UserError(
            f"{where}: cannot be read as a picture ({reason}); it is damaged or none of {', '.join(FORMATS)}: "
            "replace it or remove the row"
        ) from error


def to_rgb(picture: PIL.Image.Image) -> PIL.Image.Image:
    """Return the picture upright as its EXIF tag says, on white where it is transparent, in 8-bit RGB."""
    picture = PIL.ImageOps.exif_transpose(picture)
    if picture.mode.startswith("I"):  # 16-bit grey, which PIL would clip to its 256 darkest values
        grey = np.clip(np.asarray(picture).astype(np.int64) // 257, 0, 255)
        return PIL.Image.fromarray(grey.astype(np.uint8)).convert("RGB")
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        return PIL.Image.alpha_composite(PIL.Image.new("RGBA", picture.size, "white"), picture).convert("RGB")
    return picture.convert("RGB")
