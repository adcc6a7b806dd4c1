import io
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson
import PIL.Image
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset, DatasetDict
from pydantic import ValidationError

from vtriune.data.schema import Row
from vtriune.data.sources import Loaded, QuarantinedRow, SourceConfig, find_sample, mixture_weights
from vtriune.types import Message, RewardSpec, UserError

Rows = Callable[..., Row]
Write = Callable[..., Path]
Load = Callable[..., Loaded]

# --- good input -------------------------------------------------------------------------------------------------------

RELEASED = pa.schema(
    [
        ("data_source", pa.string()),
        ("images", pa.list_(pa.struct([("bytes", pa.binary()), ("path", pa.string())]))),
        ("prompt", pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))),
        ("ability", pa.string()),
        (
            "reward_model",
            pa.struct(
                [
                    ("answer", pa.string()),
                    ("ground_truth", pa.string()),
                    ("accuracy_ratio", pa.float32()),
                    ("format_ratio", pa.float32()),
                    ("verifier", pa.string()),
                    (
                        "verifier_parm",
                        pa.struct(
                            [
                                ("det_verifier_normalized", pa.bool_()),
                                (
                                    "det_reward_ratio",
                                    pa.struct(
                                        [
                                            (leaf, pa.float32())
                                            for leaf in (
                                                "iou_max_label_first",
                                                "iou_max_iou_first",
                                                "iou_completeness",
                                                "map",
                                                "map50",
                                                "map75",
                                            )
                                        ]
                                    ),
                                ),
                            ]
                        ),
                    ),
                ]
            ),
        ),
        ("extra_info", pa.struct([("id", pa.string()), ("image_path", pa.string())])),
    ]
)
"""The layout of the released files as attested, which lacks our own leaves."""


def test_a_released_file_loads_unchanged(tmp_path: Path, png: Callable[..., bytes], load: Load) -> None:
    gold = "<answer>\n[{'bbox_2d': [484, 227, 818, 998], 'label': 'shiba dog'}]\n</answer>"
    no_ratio = dict.fromkeys(("iou_max_label_first", "iou_max_iou_first", "iou_completeness", "map", "map50", "map75"))
    ratio = {**dict.fromkeys(no_ratio, 0.0), "iou_max_label_first": 1.0, "iou_completeness": 0.3}
    rows = [
        {
            "data_source": "mm_math",
            "images": [{"bytes": png(), "path": None}],
            "prompt": [{"role": "user", "content": "<image>What is AB?"}],
            "ability": "math",
            "reward_model": {
                "answer": "4",
                "ground_truth": r"\boxed{4}",
                "accuracy_ratio": 1.0,
                "format_ratio": 0.0,
                "verifier": "mathverify",
                "verifier_parm": {"det_verifier_normalized": None, "det_reward_ratio": no_ratio},
            },
            "extra_info": {"id": None, "image_path": "images/mm_math/1.png"},
        },
        {
            "data_source": "v3det_train",
            "images": [{"bytes": png(), "path": "a name that no file bears"}],
            "prompt": [{"role": "user", "content": "<image>Find the dog. Answer in <answer></answer>."}],
            "ability": "detection",
            "reward_model": {
                "answer": None,
                "ground_truth": gold,
                "accuracy_ratio": 1.0,
                "format_ratio": 0.1,
                "verifier": "detection",
                "verifier_parm": {"det_verifier_normalized": True, "det_reward_ratio": ratio},
            },
            "extra_info": {"id": None, "image_path": None},
        },
    ]
    pq.write_table(pa.Table.from_pylist(rows, schema=RELEASED), tmp_path / "train_math_mm_math_2.parquet")

    math, boxes = load("train_math_mm_math_2.parquet").samples

    assert (math.id, math.source, math.task) == ("train_math_mm_math_2.parquet#0", "mm_math", "math")
    assert math.messages == (Message("user", "<image>What is AB?"),)
    assert math.reward == RewardSpec("mathverify", r"\boxed{4}", 1.0, 0.0, {}, "paper")
    parameters = {"det_verifier_normalized": True, "det_reward_ratio": ratio}  # 0.3 exactly, though stored in 32 bits
    assert boxes.reward == RewardSpec("detection", gold, 1.0, 0.1, parameters, "paper")
    assert boxes.images[0].load().size == (8, 6)


def test_our_own_parameters_travel_in_parquet(parquet: Write, box_row: Rows, load: Load) -> None:
    row = box_row()
    own = {"gold_space": "relative_1000", "iou_threshold": [[0.0, 0.5], [0.5, 0.75]], "eval_iou_threshold": 0.5}
    row["reward_model"]["verifier_parm"] = own  # type: ignore[typeddict-item]
    parquet(row)
    assert load().samples[0].reward.parameters == own


def test_text_only_rows_and_rows_with_several_pictures_load(parquet: Write, math_row: Rows, load: Load) -> None:
    parquet(math_row(pictures=0), math_row(pictures=3))
    text, three = load().samples
    assert text.images == ()
    assert [image.load().getpixel((0, 0)) for image in three.images] == [(0, 0, 0), (1, 0, 0), (2, 0, 0)]


def test_a_file_without_an_images_column_is_text_only(tmp_path: Path, math_row: Rows, load: Load) -> None:
    row = {name: value for name, value in math_row(pictures=0).items() if name != "images"}
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "train.parquet")
    assert load().samples[0].images == ()


def test_unicode_survives(parquet: Write, jsonl: Write, math_row: Rows, load: Load) -> None:
    row = math_row("¿Wie groß ist ∠ABC? 几度? 🐕", "π/2", pictures=0)
    parquet(row)
    jsonl(row)
    for name in ("train.parquet", "train.jsonl"):
        sample = load(name).samples[0]
        assert sample.messages[0].content == "¿Wie groß ist ∠ABC? 几度? 🐕"
        assert sample.reward.gold == r"\boxed{π/2}"


def test_json_lines_name_pictures_relative_to_their_file(
    tmp_path: Path, jsonl: Write, math_row: Rows, png: Callable[..., bytes], load: Load
) -> None:
    (tmp_path / "data" / "images").mkdir(parents=True)
    (tmp_path / "data" / "images" / "a.png").write_bytes(png("blue"))
    row = dict(math_row(pictures=2), images=["images/a.png", {"path": "images/a.png"}])
    jsonl(row, b"", row, name="data/train.jsonl")
    samples = load("data/train.jsonl").samples
    assert [sample.id for sample in samples] == ["data/train.jsonl#1", "data/train.jsonl#3"]
    assert samples[1].images[1].load().getpixel((0, 0)) == (0, 0, 255)
    assert samples[1].images[1].where == "data/train.jsonl row 3 (line 3) images[1]"


def test_parquet_may_name_pictures_relative_to_its_file(
    tmp_path: Path, parquet: Write, math_row: Rows, png: Callable[..., bytes], load: Load
) -> None:
    (tmp_path / "a.png").write_bytes(png("blue"))
    row = math_row()
    row["images"] = [{"bytes": None, "path": "a.png"}]
    parquet(row)
    assert load().samples[0].images[0].load().getpixel((0, 0)) == (0, 0, 255)


def test_a_folder_and_a_glob_read_every_file_in_order_with_unique_ids(
    parquet: Write, jsonl: Write, math_row: Rows, load: Load
) -> None:
    parquet(math_row(), name="data/b/train.parquet")
    parquet(math_row(), math_row(), name="data/a/train.parquet")
    jsonl(math_row(pictures=0), name="data/c.jsonl")
    ids = ["data/a/train.parquet#0", "data/a/train.parquet#1", "data/b/train.parquet#0"]
    assert [sample.id for sample in load("data").samples] == [*ids, "data/c.jsonl#1"]
    assert [sample.id for sample in load("data/**/*.parquet").samples] == ids


def test_an_absolute_path_and_a_glob_outside_of_the_recipes_folder_work(
    tmp_path: Path, parquet: Write, math_row: Rows, load: Load
) -> None:
    parquet(math_row(), name="data [1]/train.parquet")
    assert len(load(tmp_path / "data [1]").samples) == 1
    parquet(math_row(), name="other/train.parquet")
    assert len(load(tmp_path / "other" / "*.parquet").samples) == 1


def test_a_hugging_face_folder_loads_like_the_parquet_file(
    tmp_path: Path, parquet: Write, math_row: Rows, box_row: Rows, load: Load
) -> None:
    path = parquet(math_row(pictures=2), box_row())
    dataset = Dataset.from_parquet(str(path), cache_dir=str(tmp_path / "cache"))
    dataset.save_to_disk(tmp_path / "saved")
    from_folder, from_parquet = load("saved").samples, load().samples
    assert [sample.reward for sample in from_folder] == [sample.reward for sample in from_parquet]
    assert [sample.messages for sample in from_folder] == [sample.messages for sample in from_parquet]
    assert from_folder[0].images[1].load().tobytes() == from_parquet[0].images[1].load().tobytes()
    assert [sample.id for sample in from_folder] == ["saved#0", "saved#1"]

    DatasetDict(train=dataset, test=dataset).save_to_disk(tmp_path / "splits")
    with pytest.raises(UserError, match=r"splits: holds the splits test, train; name one, as in splits/test"):
        load("splits")
    assert len(load("splits/train").samples) == 2


def test_the_index_column_of_pandas_is_ignored(tmp_path: Path, parquet: Write, math_row: Rows, load: Load) -> None:
    table = pq.read_table(parquet(math_row()))
    pq.write_table(table.append_column("__index_level_0__", pa.array([17])), tmp_path / "train.parquet")
    assert len(load().samples) == 1


# --- what a recipe may override ---------------------------------------------------------------------------------------


def test_overrides_of_the_recipe_win_over_the_row_leaf_by_leaf(parquet: Write, box_row: Rows, load: Load) -> None:
    parquet(box_row())
    sample = load(
        name="dogs",
        accuracy_ratio=2.0,
        format_ratio=0.5,
        verifier_parm={
            "iou_threshold": 0.5,
            "det_verifier_normalized": None,
            "det_reward_ratio": {"iou_completeness": 0.3},
        },
    ).samples[0]
    assert sample.source == "dogs"
    assert (sample.reward.accuracy_weight, sample.reward.format_weight) == (2.0, 0.5)
    ratio = {"iou_max_label_first": 1.0, "iou_completeness": 0.3}
    assert sample.reward.parameters == {"iou_threshold": 0.5, "det_reward_ratio": ratio}


def test_another_verifier_does_not_inherit_the_parameters_of_the_rows_own(
    parquet: Write, box_row: Rows, load: Load
) -> None:
    parquet(box_row())
    reward = load(verifier="mathverify").samples[0].reward
    assert (reward.verifier, reward.parameters) == ("mathverify", {})


def test_only_keeps_the_named_sources(parquet: Write, math_row: Rows, box_row: Rows, load: Load) -> None:
    parquet(math_row(), box_row())
    assert [sample.source for sample in load(only=["mm_math"]).samples] == ["mm_math"]
    with pytest.raises(UserError, match=r"train.parquet: no rows to use.*are mm_math, v3det_train; correct"):
        load(only=["mm_maths"])


def test_an_unknown_key_of_a_source_is_refused() -> None:
    with pytest.raises(ValidationError, match="wieght"):
        SourceConfig.model_validate({"path": "a.parquet", "wieght": 2})


def test_weights_are_given_for_all_sources_or_for_none() -> None:
    one, two, none = SourceConfig(path="a", weight=1), SourceConfig(path="b", weight=2), SourceConfig(path="c")
    assert mixture_weights([one, two]) == [1.0, 2.0]
    assert mixture_weights([none]) is None
    with pytest.raises(UserError, match="source c has no weight but others have; give `weight`"):
        mixture_weights([one, none])


# --- bad rows: each error names file, row and remedy ------------------------------------------------------------------


def _set(row: Row, field: str, value: Any) -> dict[str, Any]:
    """Set a field given as a path with dots; lists by number."""
    *path, last = field.split(".")
    inner: Any = row
    for part in path:
        inner = inner[int(part)] if isinstance(inner, list) else inner[part]
    inner[int(last) if isinstance(inner, list) else last] = value
    return dict(row)


@pytest.mark.parametrize(
    "case",
    [
        ("reward_model.verifier", "mathverfy", r'verifier "mathverfy" is not registered; did you mean "mathverify"\?'),
        ("reward_model.verifier_parm", {"det_verifier_normalised": True}, "det_verifier_normalised"),
        ("reward_model.verifier_parm", ["a"], r"verifier_parm: .*valid dictionary.*not \['a'\]; correct it"),
        ("reward_model.verifier_param", {"a": 1}, r'unknown field "verifier_param" \(did you mean "verifier_parm"\?\)'),
        (
            "reward_modle",
            {"a": 1},
            r'unknown field "reward_modle" \(did you mean "reward_model"\?\); rename or remove it',
        ),
        ("reward_model.accuracy_ratio", -1, "accuracy_ratio: .*greater than or equal to 0, not -1; correct it"),
        ("reward_model.accuracy_ratio", 0.0, "both 0, so no answer is ever rewarded; raise one"),
        ("reward_model.ground_truth", 4, "ground_truth: .*valid string, not 4; correct it"),
        ("prompt.0.content", "<image>How many?", "1 <image> marks but the row has 0 pictures; put one mark where"),
        ("prompt.0.role", "humam", "prompt.0.role: .*'user'.*not 'humam'; correct it"),
        ("prompt.0.role", "assistant", 'ends with a turn of the role "assistant"; end it with the user\'s'),
        ("prompt", [], "prompt: .*at least 1 item"),
        ("data_source", None, "data_source is missing; add it"),
        ("ability", "", "ability: .*at least 1 character"),
        ("images", ["gone.png"], r"images\[0\]: no picture at .*gone.png \(No such file.*correct the path"),
        ("images", ["https://x.y/a.png"], r'images\[0\] is the address "https://x.y/a.png"; download it'),
        ("images", [{"bytes": None}], r"images\[0\] holds neither bytes nor a path; store the picture"),
        ("images", "gone.png", "images is not a list; write a list of paths"),
    ],
)
def test_a_bad_field_is_reported_with_file_row_and_remedy(
    jsonl: Write, math_row: Rows, load: Load, case: tuple[str, Any, str]
) -> None:
    field, value, message = case
    bad = _set(math_row(pictures=0), field, value)
    if "images" in field:
        bad["prompt"][0]["content"] = "<image>" * len(value if isinstance(value, list) else [])
    jsonl(math_row(pictures=0), bad)
    with pytest.raises(UserError, match=rf"train\.jsonl row 2 .*{message}"):
        load("train.jsonl")


def test_a_misspelt_verifier_in_parquet_is_reported(parquet: Write, box_row: Rows, load: Load) -> None:
    bad = box_row()
    bad["reward_model"]["verifier"] = "detecton"
    parquet(box_row(), bad)
    with pytest.raises(
        UserError, match=r'train\.parquet row 1: .*"detecton" is not registered; did you mean "detection"'
    ):
        load()


def test_empty_gold_is_reported(parquet: Write, math_row: Rows, load: Load) -> None:
    parquet(math_row(), math_row(answer=""))
    with pytest.raises(
        UserError, match=r"train\.parquet row 1: .*ground_truth and answer are empty; give the reference"
    ):
        load()


def test_answer_stands_in_for_a_missing_ground_truth(jsonl: Write, math_row: Rows, load: Load) -> None:
    jsonl(_set(math_row(pictures=0), "reward_model.ground_truth", None))
    assert load("train.jsonl").samples[0].reward.gold == "4"


@pytest.mark.parametrize("box", ["[818, 227, 484, 998]", "[484, 998, 818, 227]", "[484, NaN, 818, 998]", "[1, 2, 3]"])
def test_swapped_or_nan_box_corners_in_gold_are_reported(parquet: Write, box_row: Rows, load: Load, box: str) -> None:
    parquet(box_row(), box_row(f"[{{'bbox_2d': {box}, 'label': 'dog'}}]"))
    with pytest.raises(UserError, match=r"train\.parquet row 1: reward_model: "):
        load()


@pytest.mark.parametrize("pictures", [0, 1, 3])
def test_a_wrong_number_of_marks_is_reported(parquet: Write, math_row: Rows, load: Load, pictures: int) -> None:
    row = math_row(pictures=2)
    row["prompt"][0]["content"] = "<image>" * pictures
    parquet(math_row(), row)
    with pytest.raises(
        UserError, match=rf"train\.parquet row 1: prompt holds {pictures} <image> marks but the row has 2 pictures; put"
    ):
        load()


@pytest.mark.parametrize("damage", ["text", "cut in half", "a flipped byte", "empty"])
def test_a_corrupt_png_is_reported_before_training(parquet: Write, math_row: Rows, load: Load, damage: str) -> None:
    row = math_row(pictures=2)
    stream = io.BytesIO()
    PIL.Image.linear_gradient("L").save(stream, "PNG")
    whole = stream.getvalue()
    middle = len(whole) // 2
    broken = {
        "text": b"no picture",
        "cut in half": whole[:middle],
        "a flipped byte": whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :],
        "empty": b"",
    }[damage]
    row["images"][1]["bytes"] = broken
    parquet(math_row(), row)
    with pytest.raises(
        UserError, match=r"train\.parquet row 1 images\[1\]: cannot be read as a picture .*: replace it"
    ):
        load()


def test_a_missing_picture_in_parquet_is_reported(parquet: Write, math_row: Rows, load: Load) -> None:
    row = math_row(pictures=2)
    row["images"][1] = {"bytes": None, "path": None}
    parquet(math_row(), row)
    with pytest.raises(UserError, match=r"train\.parquet row 1: images\[1\] holds neither bytes nor a path; store"):
        load()


def test_text_that_is_not_utf8_is_reported_in_parquet_and_json_lines(
    tmp_path: Path, parquet: Write, jsonl: Write, math_row: Rows, load: Load
) -> None:
    table = pq.read_table(parquet(math_row(), math_row()))
    latin = pa.array([b"math", "géométrie".encode("latin-1")]).view(pa.string())  # Arrow lets it pass
    pq.write_table(table.set_column(table.column_names.index("ability"), "ability", latin), tmp_path / "train.parquet")
    with pytest.raises(UserError, match=r"train\.parquet row 1: ability is not UTF-8 text .*; write the row again"):
        load()
    line = orjson.dumps(math_row("Wie groß?", pictures=0))
    jsonl(line, line.decode().encode("latin-1"))
    with pytest.raises(
        UserError, match=r"train\.jsonl row 2 .*is not UTF-8 text .* at byte \d+\); save the file as UTF-8"
    ):
        load("train.jsonl")


@pytest.mark.parametrize("line", [b'{"data_source": "mm_math",', b"[1, 2]", b"{" * 5000, b'{"a": NaN}', b'"\\ud800"'])
def test_a_broken_line_amid_json_lines_is_reported_and_the_others_kept(
    jsonl: Write, math_row: Rows, load: Load, line: bytes
) -> None:
    good = math_row(pictures=0)
    jsonl(good, line, good)
    with pytest.raises(UserError, match=r"train\.jsonl row 2 .*(JSON).*write one JSON object a line"):
        load("train.jsonl")
    loaded = load("train.jsonl", on_bad_row="quarantine")
    assert [sample.id for sample in loaded.samples] == ["train.jsonl#1", "train.jsonl#3"]


def test_the_error_lists_the_first_ten_bad_rows_and_counts_all(parquet: Write, math_row: Rows, load: Load) -> None:
    parquet(math_row(), *[math_row(answer="") for _ in range(25)])
    with pytest.raises(UserError) as raised:
        load()
    head, *lines = str(raised.value).splitlines()
    assert head.startswith(
        "train.parquet: 25 of 26 rows cannot be used. Mend or remove them, or set on_bad_row: quarantine"
    )
    assert [line.split(":")[0].strip() for line in lines[:-1]] == [f"train.parquet row {row}" for row in range(1, 11)]
    assert lines[-1] == "  ... and 15 more"


def test_bad_rows_are_set_aside_if_the_recipe_says_so(parquet: Write, math_row: Rows, load: Load) -> None:
    parquet(math_row(), math_row(answer=""), math_row())
    loaded = load(on_bad_row="quarantine")
    assert [sample.id for sample in loaded.samples] == ["train.parquet#0", "train.parquet#2"]
    assert [row.id for row in loaded.quarantined] == ["train.parquet#1"]
    assert loaded.quarantined[0].reason.startswith("train.parquet row 1: reward_model.ground_truth")


def test_a_source_with_nothing_but_bad_rows_is_an_error_even_if_they_may_be_set_aside(
    parquet: Write, math_row: Rows, load: Load
) -> None:
    parquet(math_row(answer=""))
    with pytest.raises(UserError, match="1 of 1 rows cannot be used"):
        load(on_bad_row="quarantine")


# --- bad files --------------------------------------------------------------------------------------------------------


def test_a_damaged_parquet_file_is_reported(tmp_path: Path, parquet: Write, math_row: Rows, load: Load) -> None:
    whole = parquet(math_row()).read_bytes()
    for name, content in {"cut.parquet": whole[:-20], "text.parquet": b"hello", "zero.parquet": b""}.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=rf"{name}: cannot be read as Parquet .*download or write it again"):
            load(name)


def test_an_empty_file_is_reported(parquet: Write, jsonl: Write, load: Load) -> None:
    parquet()
    jsonl(b"")
    for name in ("train.parquet", "train.jsonl"):
        with pytest.raises(UserError, match=f"{name}: no rows to use; correct"):
            load(name)


@pytest.mark.parametrize("path", ["gone.parquet", "gone/*.parquet", "."])
def test_a_path_without_data_is_reported_with_the_folder_it_is_relative_to(
    tmp_path: Path, load: Load, path: str
) -> None:
    with pytest.raises(UserError, match=r"no Parquet .* or JSON Lines .* file there; correct the path") as raised:
        load(path)
    assert str(tmp_path) in str(raised.value)


def test_a_file_of_another_kind_is_reported(tmp_path: Path, load: Load) -> None:
    (tmp_path / "train.csv").write_text("a,b")
    with pytest.raises(UserError, match=r"train\.csv: is neither Parquet .* nor JSON Lines .*; convert or rename it"):
        load("train.csv")


def test_unknown_and_missing_columns_are_reported_once_for_the_file(
    tmp_path: Path, parquet: Write, math_row: Rows, load: Load
) -> None:
    table = pq.read_table(parquet(math_row(), math_row()))
    pq.write_table(table.rename_columns({"ability": "abilty"}), tmp_path / "a.parquet")
    with pytest.raises(UserError, match=r'^a\.parquet: unknown column "abilty" \(did you mean "ability"\?\); rename'):
        load("a.parquet")
    pq.write_table(table.drop_columns("prompt"), tmp_path / "b.parquet")
    with pytest.raises(UserError, match=r"^b\.parquet: lacks the column prompt; a row needs "):
        load("b.parquet")
    pq.write_table(table.drop_columns("images").append_column("images", pa.array([b"", b""])), tmp_path / "c.parquet")
    with pytest.raises(UserError, match=r"^c\.parquet: the column images is binary; store it as list<struct<bytes"):
        load("c.parquet")


# --- the house's arrows -----------------------------------------------------------------------------------------------


def test_a_quarantined_row_is_plain_data() -> None:
    row = QuarantinedRow("train.parquet#1", "train.parquet row 1: ...")
    assert (row.id, row.reason) == ("train.parquet#1", "train.parquet row 1: ...")


@pytest.mark.parametrize("module", ["sources", "schema", "mixture", "prompts", "images"])
def test_data_never_imports_torch_or_transformers(module: str) -> None:
    code = f"import sys, vtriune.data.{module}; sys.exit(bool({{'torch', 'transformers'}} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def assert_found_again(loaded: Loaded, path: str | Path, base: Path) -> None:
    assert loaded.samples
    for sample in loaded.samples:
        config = SourceConfig(path=str(path))
        found = find_sample(config, preset="paper", base=base, sample_id=sample.id)
        assert found is not None
        assert replace(found, images=()) == replace(sample, images=())
        assert [image.where for image in found.images] == [image.where for image in sample.images]
        assert [image.load().tobytes() for image in found.images] == [image.load().tobytes() for image in sample.images]


def test_every_row_of_a_table_is_found_again_by_its_id(
    load: Load, math_row: Rows, parquet: Write, tmp_path: Path
) -> None:
    parquet(*(math_row(f"Question {n}?", pictures=1 + n % 2) for n in range(300)))  # three row groups
    loaded = load()
    assert len(loaded.samples) == 300
    assert_found_again(loaded, "train.parquet", tmp_path)


def test_every_line_and_every_row_of_a_saved_dataset_is_found_again_by_its_id(
    load: Load, math_row: Rows, parquet: Write, jsonl: Write, png: Callable[..., bytes], tmp_path: Path
) -> None:
    (tmp_path / "a.png").write_bytes(png("blue"))
    row = math_row()
    jsonl({**row, "images": ["a.png"]}, b"", {**row, "images": ["a.png"]})
    assert [sample.id for sample in load("train.jsonl").samples] == ["train.jsonl#1", "train.jsonl#3"]
    assert_found_again(load("train.jsonl"), "train.jsonl", tmp_path)

    path = parquet(row, math_row("And now?"))
    Dataset.from_parquet(str(path), cache_dir=str(tmp_path / "cache")).save_to_disk(tmp_path / "saved")
    assert_found_again(load("saved"), "saved", tmp_path)


@pytest.mark.parametrize(
    "sample_id",
    [
        "train.parquet#2",
        "train.parquet#-1",
        "train.parquet#",
        "train.parquet#9999999999999999999999",
        "train.parquet#\u0663",
        "train.parquet",
        "",
        "#0",
        "other.parquet#0",
        "../train.parquet#0",
        "/etc/passwd#0",
        "lines.jsonl#0",
        "lines.jsonl#2",
    ],
)
def test_an_id_that_the_source_has_no_row_for_finds_nothing_and_opens_nothing(
    math_row: Rows, parquet: Write, jsonl: Callable[..., Path], tmp_path: Path, sample_id: str
) -> None:
    parquet(math_row(), math_row())
    jsonl({**math_row(pictures=0)}, name="lines.jsonl")
    (tmp_path / "other").mkdir()
    (tmp_path / "train.parquet").rename(tmp_path / "other" / "train.parquet")
    for path, base in (("train.parquet", tmp_path / "other"), ("lines.jsonl", tmp_path)):
        assert find_sample(SourceConfig(path=path), preset="paper", base=base, sample_id=sample_id) is None


def test_a_picture_that_is_a_pipe_is_refused_without_waiting_for_it(
    load: Load, math_row: Rows, jsonl: Callable[..., Path], tmp_path: Path
) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    jsonl({**math_row(), "images": ["pipe.png"]})
    with pytest.raises(UserError, match=r"no picture at .*pipe\.png \(not an ordinary file\)"):
        load("train.jsonl")
