"""Reads data files into Samples and finds every bad row before training starts.

The rewards themselves are judged elsewhere: what a verifier can say about a row comes in as the argument `check`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, Literal

import orjson
import pyarrow as pa
from pydantic import BaseModel, ConfigDict, Field, JsonValue, StringConstraints, ValidationError

from vtriune.data.images import CheckedImageRef, FilePicture, TablePicture
from vtriune.data.tables import Rows, TableFile, to_python
from vtriune.types import ImageSize, Message, Preset, RewardSpec, Sample, UserError

IMAGE_MARK = "<image>"
SHOWN_ROWS = 10
"""Bad rows listed in an error; the others are only counted."""
MAX_DIGITS = 15
"""Of a row's number."""
CHECKED_AHEAD = 512
"""Rows whose rewards are being checked while further ones are read."""

Check = Callable[[RewardSpec, tuple[ImageSize, ...]], Callable[[], None]]
"""Begins to check a reward, given its pictures' sizes. What it returns waits for the outcome and raises UserError if
the verifier is unknown or can't judge by this specification."""


class SourceConfig(BaseModel):
    """One entry of the recipe's data sources. What is given here overrides what the rows say."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    path: str
    """A Parquet or JSON Lines file, a folder of such files, a folder written by `Dataset.save_to_disk`, or a glob
    pattern; relative to the recipe's folder."""
    weight: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """Share of this source in the mixture, relative to the other sources' weights; None: the number of its rows, so
    that every row of the run is equally likely. Give it for all sources or for none."""
    only: tuple[str, ...] | None = None
    """Keep only rows with one of these `data_source` values."""
    name: str | None = Field(default=None, min_length=1)
    """Replaces `data_source` of every row."""
    verifier: str | None = None
    """Replaces `verifier`; where that changes it, the row's `verifier_parm` is dropped, being another verifier's."""
    accuracy_ratio: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    """Replaces `accuracy_ratio`, a_acc of eq. 8."""
    format_ratio: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    """Replaces `format_ratio`, a_fmt of eq. 8."""
    verifier_parm: dict[str, JsonValue] = Field(default_factory=dict)
    """Merged over the row's `verifier_parm`, leaf by leaf; a null removes the row's leaf."""
    on_bad_row: Literal["error", "quarantine"] = "error"
    """`error`: training does not start. `quarantine`: bad rows are set aside with their reasons, the others used."""


@dataclass(frozen=True, slots=True)
class QuarantinedRow:
    """A row that is not used, found when loading or during training: one line of `quarantine.jsonl`."""

    id: str
    """`Sample.id`: file and row."""
    reason: str
    """What is wrong, where, and the remedy."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """What one source gave."""

    samples: list[Sample]
    quarantined: list[QuarantinedRow]


def load_samples(config: SourceConfig, *, preset: Preset, base: Path, check: Check) -> Loaded:
    """Read and validate every row of a source, in the order of file names and rows.

    Args:
        config: the source.
        preset: goes into every RewardSpec.
        base: the folder that `config.path` is relative to.
        check: what is said of a reward, or RuntimeError if that can't be told; file and row are added here. How the
            model's processor will resize the pictures is not known yet: the original size stands in.

    Raises:
        UserError: no such file, a damaged file, no rows; or bad rows, unless `config.on_bad_row` is `quarantine`; or a
            row could not be checked.
    """
    samples: list[Sample] = []
    refused: dict[int, QuarantinedRow] = {}
    sources_seen: set[str] = set()
    begun: deque[tuple[int, _RawRow, Sample, Callable[[], None]]] = deque()

    def finish(all_but: int) -> None:
        while len(begun) > all_but:
            number, row, sample, wait = begun.popleft()
            try:
                wait()
            except UserError as error:
                refused[number] = QuarantinedRow(row.id, f"{row.where}: reward_model: {error}")
            except RuntimeError as error:  # what broke is ours or a verifier of the user's: the row is not set aside
                raise UserError(f"{row.where}: {error}; mend that and start again") from error
            else:
                samples.append(sample)

    for number, row in enumerate(_rows(config, base)):
        if isinstance(row, QuarantinedRow):
            refused[number] = row
            continue
        sources_seen.add(source := str(row.fields.get("data_source")))
        if config.only is not None and source not in config.only:
            continue
        try:
            sample, sizes = _sample(row, config, preset)
        except UserError as error:
            refused[number] = QuarantinedRow(row.id, str(error))
        else:
            begun.append((number, row, sample, check(sample.reward, sizes)))
            finish(CHECKED_AHEAD)
    finish(0)
    bad = [refused[number] for number in sorted(refused)]
    if bad and (config.on_bad_row == "error" or not samples):
        raise UserError(_bad_rows_message(config, samples, bad))
    if not samples:
        seen = f": the data_source values there are {', '.join(sorted(sources_seen))}" if sources_seen else ""
        raise UserError(f"{config.path}: no rows to use{seen}; correct `path` or `only` of this source")
    return Loaded(samples, bad)


def find_sample(config: SourceConfig, *, preset: Preset, base: Path, sample_id: str) -> Sample | None:
    """Read one row of a source again, by the id that `load_samples` gave it; None if the source has no such row.

    Only files that the source names are opened, and nothing of them is kept in memory.

    Raises:
        UserError: no such file, a damaged file, a bad row.
    """
    name, _, number = sample_id.rpartition("#")
    path = next((path for path in _files(config, base) if str(_shown(path, base)) == name), None)
    if path is None or not (number.isascii() and number.isdecimal() and len(number) <= MAX_DIGITS):
        return None
    shown = _shown(path, base)
    if path.suffix == ".jsonl":
        row = _json_row(path, shown, int(number))
    else:
        lone = TableFile.at(path).lone_row(int(number))
        row = None if lone is None else _table_row(lone, _checked_table(lone, shown), 0, shown, int(number))
    if isinstance(row, QuarantinedRow):
        raise UserError(row.reason)
    return None if row is None else _sample(row, config, preset)[0]


def mixture_weights(configs: Sequence[SourceConfig]) -> list[float] | None:
    """Return the weights for `Mixture`, None if the sources go by their numbers of rows.

    Raises:
        UserError: some sources have a weight and some have none.
    """
    weights = [config.weight for config in configs if config.weight is not None]
    if weights and len(weights) < len(configs):
        without = next(config.path for config in configs if config.weight is None)
        raise UserError(f"source {without} has no weight but others have; give `weight` for all sources or for none")
    return weights or None


def _bad_rows_message(config: SourceConfig, samples: Sequence[Sample], bad: Sequence[QuarantinedRow]) -> str:
    lines = [
        f"{config.path}: {len(bad)} of {len(samples) + len(bad)} rows cannot be used. Mend or remove them"
        + (", or set on_bad_row: quarantine for this source to train without them:" if samples else ":")
    ]
    lines += [f"  {row.reason}" for row in bad[:SHOWN_ROWS]]
    if len(bad) > SHOWN_ROWS:
        lines.append(f"  ... and {len(bad) - SHOWN_ROWS} more")
    return "\n".join(lines)


# --- from files to raw rows -------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _RawRow:
    id: str
    where: str
    fields: Mapping[str, Any]
    """All columns but `images`, as plain Python objects."""
    images: tuple[CheckedImageRef, ...]


class _RowError(Exception):
    """What is wrong with a row, without saying where."""


def _rows(config: SourceConfig, base: Path) -> Iterator[_RawRow | QuarantinedRow]:
    for path in _files(config, base):
        shown = _shown(path, base)
        yield from _json_rows(path, shown) if path.suffix == ".jsonl" else _table_rows(path, shown)


def _shown(path: Path, base: Path) -> Path:
    """How a data file is called in ids and messages."""
    return path.relative_to(base) if path.is_relative_to(base) else path


def _files(config: SourceConfig, base: Path) -> list[Path]:
    path = base / Path(config.path).expanduser()
    if path.is_file():
        if path.suffix not in (".parquet", ".jsonl"):
            raise UserError(
                f"{config.path}: is neither Parquet (.parquet) nor JSON Lines (.jsonl); convert or rename it"
            )
        return [path]
    if (path / "dataset_dict.json").is_file():
        splits = sorted(child.name for child in path.iterdir() if child.is_dir())
        raise UserError(
            f"{config.path}: holds the splits {', '.join(splits)}; name one, as in {config.path}/{splits[0]}"
        )
    if (path / "state.json").is_file():
        return [path]
    if path.is_dir():
        found = path.rglob("*")
    else:
        root = base if path.is_relative_to(base) else Path(path.anchor)  # a pattern must be relative to something
        found = root.glob(str(path.relative_to(root)))
    files = sorted(file for file in found if file.is_file() and file.suffix in (".parquet", ".jsonl"))
    if not files:
        raise UserError(
            f"{config.path}: no Parquet (.parquet) or JSON Lines (.jsonl) file there; "
            f"correct the path, which is relative to the recipe's folder {base}"
        )
    return files


def _table_rows(path: Path, shown: Path) -> Iterator[_RawRow | QuarantinedRow]:
    file = TableFile.at(path)
    table = _checked_table(file, shown)
    for number in range(table.num_rows):
        yield _table_row(file, table, number, shown, number)


def _checked_table(file: Rows, shown: Path) -> pa.Table:
    """The rows of a file, whose columns are those of the schema."""
    table = file.table()
    table = table.drop_columns([name for name in table.column_names if name.startswith(_PANDAS_INDEX)])
    if unknown := sorted(set(table.column_names) - set(_KNOWN_COLUMNS)):
        raise UserError(f"{shown}: unknown column {_named(unknown[0], _KNOWN_COLUMNS)}; rename or drop it")
    if missing := [
        name for name, field in _Row.model_fields.items() if field.is_required() and name not in table.column_names
    ]:
        raise UserError(f"{shown}: lacks the column {missing[0]}; a row needs {', '.join(_KNOWN_COLUMNS)}")
    if "images" in table.column_names and not _holds_pictures(table.schema.field("images").type):
        raise UserError(
            f"{shown}: the column images is {table.schema.field('images').type}; "
            "store it as list<struct<bytes: binary, path: string>>"
        )
    return table


def _table_row(file: Rows, table: pa.Table, position: int, shown: Path, number: int) -> _RawRow | QuarantinedRow:
    """The row at `position` of `table`, which is number `number` of its file."""
    row_id, where = f"{shown}#{number}", f"{shown} row {number}"
    try:
        images = _table_pictures(file, table, position, where)
        fields = {name: _cell(table, name, position) for name in table.column_names if name != "images"}
    except _RowError as error:
        return QuarantinedRow(row_id, f"{where}: {error}")
    return _RawRow(row_id, where, fields, images)


def _holds_pictures(kind: pa.DataType) -> bool:
    if not (pa.types.is_list(kind) or pa.types.is_large_list(kind)) or not pa.types.is_struct(kind.value_type):
        return bool(pa.types.is_null(kind))
    leaves = [field.name for field in kind.value_type]
    return set(leaves) == {"bytes", "path"}


def _cell(table: pa.Table, name: str, row: int) -> Any:
    try:
        return to_python(table.column(name)[row])
    except UnicodeDecodeError as error:
        raise _RowError(f"{name} is not UTF-8 text ({error.reason}); write the row again as UTF-8") from error


def _table_pictures(file: Rows, table: pa.Table, row: int, where: str) -> tuple[CheckedImageRef, ...]:
    if "images" not in table.column_names or not (images := table.column("images")[row]).is_valid:
        return ()
    pictures: list[CheckedImageRef] = []
    for position, image in enumerate(images):
        place = f"{where} images[{position}]"
        if image.is_valid and image["bytes"].is_valid:
            pictures.append(TablePicture(file, row, position, place))
        else:
            pictures.append(
                _file_picture(image["path"].as_py() if image.is_valid else None, position, file.path, place)
            )
    return tuple(pictures)


def _file_picture(path: object, position: int, data_file: Path, place: str) -> FilePicture:
    if not isinstance(path, str) or not path:
        raise _RowError(f"images[{position}] holds neither bytes nor a path; store the picture in one of the two")
    if "://" in path:
        raise _RowError(f'images[{position}] is the address "{path}"; download it and give a path or its bytes')
    return FilePicture(data_file.parent / path, place)


def _json_rows(path: Path, shown: Path) -> Iterator[_RawRow | QuarantinedRow]:
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                yield _json_line(line, path, shown, number)


def _json_row(path: Path, shown: Path, number: int) -> _RawRow | QuarantinedRow | None:
    with path.open("rb") as lines:
        line = next(islice(lines, number - 1, None), b"") if number else b""
    return _json_line(line, path, shown, number) if line.strip() else None


def _json_line(line: bytes, path: Path, shown: Path, number: int) -> _RawRow | QuarantinedRow:
    row_id, where = f"{shown}#{number}", f"{shown} row {number} (line {number})"
    try:
        fields = _json_object(line)
        images = _json_pictures(fields.pop("images", None), path, where)
    except _RowError as error:
        return QuarantinedRow(row_id, f"{where}: {error}")
    return _RawRow(row_id, where, fields, images)


def _json_object(line: bytes) -> dict[str, Any]:
    try:
        fields = orjson.loads(line.decode())
    except UnicodeDecodeError as error:
        raise _RowError(f"is not UTF-8 text ({error.reason} at byte {error.start}); save the file as UTF-8") from error
    except orjson.JSONDecodeError as error:
        raise _RowError(f"is not valid JSON ({error}); write one JSON object a line") from error
    if not isinstance(fields, dict):
        raise _RowError("is not a JSON object; write one JSON object a line")
    return fields


def _json_pictures(images: object, data_file: Path, where: str) -> tuple[CheckedImageRef, ...]:
    if images is None:
        return ()
    if not isinstance(images, list):
        raise _RowError("images is not a list; write a list of paths, also for one picture")
    paths = [image.get("path") if isinstance(image, dict) else image for image in images]
    return tuple(
        _file_picture(path, position, data_file, f"{where} images[{position}]") for position, path in enumerate(paths)
    )


# --- from raw rows to Samples -----------------------------------------------------------------------------------------

_Text = Annotated[str, StringConstraints(min_length=1)]
_Ratio = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class _Turn(_Strict):
    role: Literal["system", "user", "assistant"]
    content: str


class _RewardModel(_Strict):
    verifier: _Text
    answer: str = ""
    ground_truth: str = ""
    accuracy_ratio: _Ratio = 1.0
    format_ratio: _Ratio = 0.0
    verifier_parm: dict[str, JsonValue] = Field(default_factory=dict)


class _Row(_Strict):
    data_source: _Text
    prompt: Annotated[list[_Turn], Field(min_length=1)]
    ability: _Text
    reward_model: _RewardModel
    extra_info: Any = None


_PANDAS_INDEX = "__index_level_"
_KNOWN_COLUMNS = ("images", *_Row.model_fields)


def _sample(raw: _RawRow, config: SourceConfig, preset: Preset) -> tuple[Sample, tuple[ImageSize, ...]]:
    """The sample and the sizes of its pictures."""
    try:
        row = _parsed(raw.fields)
        _check_marks(row, len(raw.images))
        reward = _reward(row.reward_model, config, preset)
        sizes = tuple(ImageSize(size, size) for size in (image.check() for image in raw.images))
    except _RowError as error:
        raise UserError(f"{raw.where}: {error}") from error
    messages = tuple(Message(turn.role, turn.content) for turn in row.prompt)
    return Sample(raw.id, config.name or row.data_source, row.ability, messages, raw.images, reward), sizes


def _parsed(fields: Mapping[str, Any]) -> _Row:
    try:
        return _Row.model_validate(_without_nulls(fields))
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        if first["type"] == "extra_forbidden":
            known = _RewardModel.model_fields if first["loc"][0] == "reward_model" else _KNOWN_COLUMNS
            name = _named(str(first["loc"][-1]), tuple(known))
            raise _RowError(f"{field}: unknown field {name}; rename or remove it") from error
        if first["type"] == "missing":
            raise _RowError(f"{field} is missing; add it") from error
        raise _RowError(f"{field}: {first['msg']}, not {_short(first['input'])}; correct it") from error


def _check_marks(row: _Row, pictures: int) -> None:
    marks = sum(turn.content.count(IMAGE_MARK) for turn in row.prompt)
    if marks != pictures:
        raise _RowError(
            f"prompt holds {marks} {IMAGE_MARK} marks but the row has {pictures} pictures; "
            "put one mark where each picture belongs"
        )
    if row.prompt[-1].role != "user":
        raise _RowError(f'prompt ends with a turn of the role "{row.prompt[-1].role}"; end it with the user\'s')


def _reward(row: _RewardModel, config: SourceConfig, preset: Preset) -> RewardSpec:
    gold = row.ground_truth if row.ground_truth.strip() else row.answer
    if not gold.strip():
        raise _RowError("reward_model.ground_truth and answer are empty; give the reference answer or remove the row")
    verifier = config.verifier or row.verifier
    own = row.verifier_parm if verifier == row.verifier else {}
    accuracy = row.accuracy_ratio if config.accuracy_ratio is None else config.accuracy_ratio
    format_ = row.format_ratio if config.format_ratio is None else config.format_ratio
    if accuracy == format_ == 0:
        raise _RowError(
            "reward_model.accuracy_ratio and format_ratio are both 0, so no answer is ever rewarded; raise one"
        )
    parameters = _without_nulls(_merged(own, config.verifier_parm))
    return RewardSpec(verifier, gold, accuracy, format_, parameters, preset)


def _without_nulls(value: Mapping[str, Any]) -> dict[str, Any]:
    """Drop null leaves, and structs of nothing but nulls: Parquet has no other way to leave a leaf out."""
    kept = {name: _without_nulls(child) if isinstance(child, Mapping) else child for name, child in value.items()}
    return {name: child for name, child in kept.items() if child is not None and child != {}}


def _merged(under: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(under)
    for name, value in over.items():
        below = merged.get(name)
        merged[name] = _merged(below, value) if isinstance(below, Mapping) and isinstance(value, Mapping) else value
    return merged


def _named(name: str, known: Sequence[str]) -> str:
    close = get_close_matches(name, known, n=1)
    return f'"{name}" (did you mean "{close[0]}"?)' if close else f'"{name}" (known: {", ".join(known)})'


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
