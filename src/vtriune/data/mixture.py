"""Which row comes next: weighted over sources, shuffled inside each, the same after a resume.

Nothing is drawn at random while it runs. The order of a source in one epoch is a function of seed, epoch and row ids;
the turn of the sources follows from how many rows each has given. So the state is a few counters.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vtriune.data.seeds import stable_hash
from vtriune.types import Sample, UserError


@dataclass(frozen=True, slots=True)
class Draw:
    """A sample, and how often its source had been gone through before: the prompt pool is seeded by both."""

    sample: Sample
    epoch: int


class Mixture:
    """An endless sequence of draws.

    Each next draw goes to the source with the smallest (2 given + 1) / weight (Webster's method of sharing seats).
    After t draws a source of weight w has therefore given t w / sum(w) rows to within (number of sources + 1) / 2, and
    every batch holds the sources in proportion. If the weights are numbers of rows, each sum(w) draws are every row
    once.
    """

    def __init__(
        self, sources: Sequence[Sequence[Sample]], weights: Sequence[float] | None = None, *, seed: int
    ) -> None:
        """Mix `sources`, by the numbers of their rows if `weights` is None.

        Raises:
            UserError: a sample id occurs twice.
        """
        self._weights = [float(len(source)) for source in sources] if weights is None else [float(w) for w in weights]
        if len(self._weights) != len(sources):
            raise ValueError(f"{len(self._weights)} weights for {len(sources)} sources")
        self._seed = seed
        self._samples: dict[str, Sample] = {}
        for source in sources:
            for sample in source:
                if sample.id in self._samples:
                    raise UserError(
                        f"{sample.id}: read by two sources; to see a row more often, raise its source's weight"
                    )
                self._samples[sample.id] = sample
        self._members = [[sample.id for sample in source] for source in sources]
        self._source_of = {id_: number for number, ids in enumerate(self._members) for id_ in ids}
        self._left = [len(source) for source in sources]
        """Rows of each source that are not removed."""
        self._removed: dict[str, None] = {}
        self._given = [0] * len(sources)
        self._epoch = [0] * len(sources)
        self._position = [0] * len(sources)
        """Place in the epoch's order, removed rows counted."""
        self._order = [self._ordered(source) for source in range(len(sources))]

    def next_batch(self, n: int) -> list[Draw]:
        """Return the next `n` draws.

        Raises:
            UserError: every row has been removed.
        """
        return [self._next() for _ in range(n)]

    def remove(self, sample_id: str) -> None:
        """Never draw this sample again. Removing it twice is the same as once."""
        if sample_id not in self._removed:
            self._left[self._source_of[sample_id]] -= 1
            self._removed[sample_id] = None

    def state_dict(self) -> dict[str, Any]:
        """Return what `load_state_dict` needs to go on from here: JSON values, three a source and one a removed row."""
        return {
            "data": self._fingerprint(),
            "given": list(self._given),
            "epoch": list(self._epoch),
            "position": list(self._position),
            "removed": list(self._removed),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on exactly where `state` was taken.

        Raises:
            UserError: the state belongs to other rows, weights or another seed.
        """
        if state["data"] != self._fingerprint():
            raise UserError(
                "the checkpoint was made with other data: rows, their order, weights or the seed have changed since; "
                "restore them, or start a new run"
            )
        self._given, self._epoch, self._position = list(state["given"]), list(state["epoch"]), list(state["position"])
        self._removed = {}
        self._left = [len(members) for members in self._members]
        for sample_id in state["removed"]:
            self.remove(sample_id)
        self._order = [self._ordered(source) for source in range(len(self._members))]

    def _next(self) -> Draw:
        candidates = [source for source, left in enumerate(self._left) if left]
        if not candidates:
            raise UserError("every row has been set aside, see quarantine.jsonl: no data is left to train on")
        source = min(candidates, key=lambda number: (2 * self._given[number] + 1) / self._weights[number])
        self._given[source] += 1
        while True:
            if self._position[source] == len(self._order[source]):
                self._epoch[source] += 1
                self._position[source] = 0
                self._order[source] = self._ordered(source)
            sample_id = self._order[source][self._position[source]]
            self._position[source] += 1
            if sample_id not in self._removed:
                return Draw(self._samples[sample_id], self._epoch[source])

    def _ordered(self, source: int) -> list[str]:
        epoch = self._epoch[source]
        return sorted(self._members[source], key=lambda sample_id: stable_hash(self._seed, epoch, sample_id))

    def _fingerprint(self) -> str:
        rows = [(sample.id, sample.source, sample.messages, sample.reward) for sample in self._samples.values()]
        return f"{stable_hash(self._seed, repr(self._weights), repr(self._members), repr(rows)):016x}"
