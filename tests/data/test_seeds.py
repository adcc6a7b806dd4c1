from vtriune.data.seeds import stable_hash


def test_the_hash_is_the_same_for_ever() -> None:
    assert stable_hash(7, "train.parquet#12", 0) == stable_hash(7, "train.parquet#12", 0)
    assert f"{stable_hash(7, 'größe.parquet#12', 0):016x}" == "9a90f01a3b80adf8"


def test_text_and_numbers_are_told_apart_and_so_are_the_borders_of_parts() -> None:
    assert len({stable_hash(1, 2), stable_hash("1", 2), stable_hash(12), stable_hash("1", "2"), stable_hash("12")}) == 5
