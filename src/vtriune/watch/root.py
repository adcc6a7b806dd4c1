"""The folder of runs that the dashboard serves, and which names lead into it. All that comes from a request and means
a folder goes through `Root.run`; what is in a run is read by the others.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from vtriune.monitor.files import DamagedRun, valid_text
from vtriune.monitor.runs import find_runs, holds_run
from vtriune.types import UserError

READ = (
    "run.json",
    "recipe.yaml",
    "versions.json",
    "summary.json",
    "metrics.jsonl",
    "history.bin",
    "alerts.jsonl",
    "quarantine.jsonl",
    "skipped.jsonl",
    "rollouts",
)
"""What the dashboard reads of a run folder."""


class NotFound(UserError):  # noqa: N818 - named for what the reply says
    """There is nothing of that name: 404."""


@dataclass(frozen=True, slots=True)
class Root:
    """A folder of runs; `path` is absolute and free of symbolic links."""

    path: Path

    @classmethod
    def open(cls, path: Path) -> Root:
        """Raises UserError if `path` is no folder."""
        if not path.is_dir():
            raise UserError(f"{path}: no such folder; give the folder that holds your runs, e.g. vtriune watch runs")
        return cls(path.resolve())

    def runs(self) -> list[tuple[str, Path]]:
        """All runs as (name, folder). A name is the path below the root, or `.` where the root itself is a run."""
        return [(valid_text(folder.relative_to(self.path).as_posix()), folder) for folder in find_runs(self.path)]

    def run(self, name: str) -> Path:
        """The folder of a run, found by the name that `runs` gives it.

        Raises:
            NotFound: no run has that name: there is none, or it is absolute, holds `..`, or leads over a link.
            DamagedRun: a file of the run leads out of the root.
        """
        missing = NotFound(f'no run "{name[:200]}" in this folder; vtriune runs list shows those that there are')
        parts = PurePosixPath(name)
        if parts.is_absolute() or ".." in parts.parts or str(parts) != name:
            raise missing
        folder = self.path / parts
        try:
            inside = [one for one in folder.parents if one.is_relative_to(self.path)]
            if folder.resolve() != folder or not holds_run(folder) or any(holds_run(one) for one in inside):
                raise missing
            leading_out = [one for one in READ if not (folder / one).resolve().is_relative_to(self.path)]
        except (
            OSError,
            ValueError,
            RuntimeError,
        ):  # too long, holds a zero byte or a lone surrogate, links in a circle
            raise missing from None
        if leading_out:
            raise DamagedRun(
                f"{folder / leading_out[0]} leads out of {self.path}: what lies elsewhere isn't shown; "
                "serve a folder that holds both"
            )
        return folder
