"""One finished run on verl, which all tests of runs look at."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.integrations.verl.support.runs import train, write_recipe

import vtriune


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where runs lie; here and in every process that is started, `support` can be imported."""
    with pytest.MonkeyPatch.context() as patch:
        places = Path(vtriune.__file__).parents[1], Path(__file__).parent
        patch.setenv("PYTHONPATH", os.pathsep.join(map(str, places)))
        patch.syspath_prepend(places[1])
        yield tmp_path_factory.mktemp("verl")


@pytest.fixture(scope="session")
def run(folder: Path) -> Path:
    """A finished run of two ranks."""
    output = folder / "output.txt"
    assert train(output, write_recipe(folder, ranks=2), "--out", folder / "run").wait() == 0, output.read_text()
    return folder / "run"
