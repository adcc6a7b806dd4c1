"""Keeps all of the answers that a run on verl learned from: the run's tables leave out token ids and log-probs.

Loaded into every process through VERL_USE_EXTERNAL_MODULES; the one that writes the run folder uses it.
"""

from __future__ import annotations

import pickle
from collections.abc import Sequence

from vtriune.monitor.store import RunStore
from vtriune.types import JudgedGroup, Progress

_write_rollouts = RunStore.write_rollouts


def _record(store: RunStore, step: int, groups: Sequence[JudgedGroup], progress: Progress) -> None:
    answers = {one.group.sample.id: (one.group.prompt_ids, one.group.rollouts) for one in groups}
    (store.folder / "answers").mkdir(exist_ok=True)
    (store.folder / "answers" / f"{step}.pickle").write_bytes(pickle.dumps(answers))
    _write_rollouts(store, step, groups, progress)


RunStore.write_rollouts = _record  # type: ignore[assignment, method-assign]
