"""Converts rows of PuzzleVQA (github.com/declare-lab/LLM-PuzzleTest, MIT) into the schema.

    python -m vtriune.curate.puzzlevqa puzzlevqa.jsonl puzzlevqa.parquet

It converts only; filtering by rules or by difficulty is not done here.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import orjson
import typer
from pydantic import BaseModel, ValidationError

from vtriune.data.schema import Row, write_rows
from vtriune.types import UserError


class _Puzzle(BaseModel):
    """The fields of a PuzzleVQA row that are used; `options` is not: the paper trains on free-form questions only."""

    image: str
    question: str
    answer: str | int


def convert(source: Path) -> Iterator[Row]:
    """Read PuzzleVQA's JSON Lines, pictures beside it, as rows with the question, one picture and a boxed answer.

    Raises:
        UserError: a line that is no PuzzleVQA row, or a picture that is not there.
    """
    with source.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                yield _row(line, source, f"{source} line {number}")


def _row(line: bytes, source: Path, where: str) -> Row:
    try:
        puzzle = _Puzzle.model_validate(orjson.loads(line))
    except (orjson.JSONDecodeError, ValidationError) as error:
        raise UserError(
            f"{where}: not a PuzzleVQA row, which has image, question and answer; correct or remove the line ({error})"
        ) from error
    try:
        picture = (source.parent / puzzle.image).read_bytes()
    except OSError as error:
        raise UserError(
            f"{where}: no picture {puzzle.image} beside {source.name} ({error.strerror}); put it there"
        ) from error
    answer = str(puzzle.answer)
    return {
        "data_source": "puzzlevqa",
        "images": [{"bytes": picture, "path": None}],
        "prompt": [{"role": "user", "content": f"<image>\n{puzzle.question}"}],
        "ability": "puzzle",
        "reward_model": {
            "answer": answer,
            "ground_truth": rf"\boxed{{{answer}}}",
            "accuracy_ratio": 1.0,
            "format_ratio": 0.0,
            "verifier": "mathverify",
        },
        "extra_info": {"id": None, "image_path": puzzle.image},
    }


def main(
    source: Annotated[Path, typer.Argument(help="PuzzleVQA rows: puzzlevqa.jsonl, pictures relative to its folder.")],
    target: Annotated[Path, typer.Argument(help="The Parquet file to write; replaced if it exists.")],
    test_every: Annotated[
        int | None, typer.Option(min=2, help="Hold out every so many rows, in <target>_test.parquet beside it.")
    ] = None,
) -> None:
    r"""Convert PuzzleVQA into a Parquet file that a recipe can name as a data source.

    Each row becomes: data_source puzzlevqa, ability puzzle, verifier mathverify, the question after one <image> mark,
    the answer as \boxed{...}. Options are left out, so that questions stay free-form. Pictures are stored in the file.
    """
    try:
        if not source.is_file():
            raise UserError(f"{source}: no such file")
        rows = list(convert(source))
        parts = {target: [row for number, row in enumerate(rows) if not test_every or number % test_every]}
        if test_every:
            parts[target.with_stem(f"{target.stem}_test")] = rows[::test_every]
        written = {path: write_rows(part, path) for path, part in parts.items()}
    except UserError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2) from error
    for path, count in written.items():
        typer.echo(f"{path}: {count} rows")


if __name__ == "__main__":
    typer.run(main)
