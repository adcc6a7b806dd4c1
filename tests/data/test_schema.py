from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pyarrow.parquet as pq
import pytest

from vtriune.data.schema import ROW_FEATURES, ROW_GROUP, Row, write_rows
from vtriune.types import UserError

Rows = Callable[..., Row]


def test_written_rows_open_in_datasets_with_our_features_and_real_pictures(tmp_path: Path, math_row: Rows) -> None:
    write_rows([math_row()], tmp_path / "a.parquet")
    dataset = datasets.Dataset.from_parquet(str(tmp_path / "a.parquet"), cache_dir=str(tmp_path / "cache"))
    assert dataset.features == ROW_FEATURES
    assert dataset[0]["images"][0].size == (8, 6)
    assert dataset[0]["reward_model"]["verifier_parm"] is None


def test_the_features_hold_the_released_layout_and_only_four_leaves_more() -> None:
    assert list(ROW_FEATURES) == ["data_source", "images", "prompt", "ability", "reward_model", "extra_info"]
    released = {"answer", "ground_truth", "accuracy_ratio", "format_ratio", "verifier", "verifier_parm"}
    assert ROW_FEATURES["reward_model"].keys() == released
    ours = {"gold_space", "answer_space", "iou_threshold", "eval_iou_threshold"}
    parameters = ROW_FEATURES["reward_model"]["verifier_parm"].keys()
    assert parameters == {"det_verifier_normalized", "det_reward_ratio"} | ours


def test_rows_are_written_in_small_groups_whatever_their_number(tmp_path: Path, math_row: Rows) -> None:
    path = tmp_path / "new folder" / "a.parquet"
    assert write_rows((math_row(str(n), pictures=0) for n in range(2 * ROW_GROUP + 1)), path) == 2 * ROW_GROUP + 1
    assert pq.ParquetFile(path).metadata.num_row_groups == 3
    assert pq.read_table(path).column("prompt")[ROW_GROUP].as_py()[0]["content"] == str(ROW_GROUP)


@pytest.mark.parametrize(
    ("place", "name"),
    [
        ((), "dificulty"),
        (("reward_model",), "reward_model.dificulty"),
        (("prompt", 0), "prompt.dificulty"),
        (("images", 0), "images.dificulty"),
    ],
)
def test_a_field_that_the_schema_lacks_is_refused_instead_of_dropped(
    tmp_path: Path, math_row: Rows, place: tuple[str | int, ...], name: str
) -> None:
    row: Any = math_row()
    inner = row
    for step in place:
        inner = inner[step]
    inner["dificulty"] = 3
    with pytest.raises(UserError, match=rf"a\.parquet row 1: the schema has no field {name}; rename or remove it"):
        write_rows([math_row(), row], tmp_path / "a.parquet")


def test_a_value_of_the_wrong_type_is_refused_and_the_old_file_stays(tmp_path: Path, math_row: Rows) -> None:
    path = tmp_path / "a.parquet"
    write_rows([math_row()], path)
    old = path.read_bytes()
    bad: Any = math_row()
    bad["reward_model"]["accuracy_ratio"] = "high"
    with pytest.raises(UserError, match=r"a\.parquet rows 0 to 1: a value does not fit the schema"):
        write_rows([math_row(), bad], path)
    assert path.read_bytes() == old
    assert [child.name for child in tmp_path.iterdir()] == ["a.parquet"]
