"""The face of whatever judges: what an asynchronous judge offers, and the same for code without an event loop.

Embedded workers (`pool.py`) and servers behind HTTP (`client.py`) are used alike: they give identical verdicts.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from types import TracebackType
from typing import Generic, Protocol, Self, TypeVar

from vtriune.reward.judge import JudgeItem
from vtriune.types import Verdict

OnVerdict = Callable[[int, Verdict], None]
"""Called in the judge's event loop with the position of an item and its verdict, as soon as there is one."""


class AsyncJudge(Protocol):
    """Judges answers in an event loop; all of its methods belong to the loop that started it."""

    async def start(self) -> None:
        """Begin. Verdicts may be asked for at once, whatever is still warming up."""

    async def judge(self, items: Sequence[JudgeItem], on_verdict: OnVerdict | None = None) -> list[Verdict]:
        """One verdict per item, in order. Never raises for what an item or a worker does: that is a verdict, too."""

    async def close(self) -> None:
        """End at once. What has no verdict yet is `failed`."""


JudgeT = TypeVar("JudgeT", bound=AsyncJudge)


class BlockingJudge(Generic[JudgeT]):
    """An asynchronous judge behind a thread with an event loop of its own; may be used from any thread.

    Raises:
        Whatever the judge raises if it can't be started.
    """

    def __init__(self, judge: JudgeT) -> None:
        self.judge = judge
        self._loop = asyncio.new_event_loop()
        self._closed = False
        self._thread = threading.Thread(target=self._loop.run_forever, name="judge", daemon=True)
        self._thread.start()
        try:
            asyncio.run_coroutine_threadsafe(judge.start(), self._loop).result()
        except BaseException:
            self._stop()
            raise

    def submit(self, items: Sequence[JudgeItem]) -> Future[list[Verdict]]:
        """Judge `items` in the background; the future holds their verdicts in the same order, and never raises.

        Raises:
            RuntimeError: it is closed.
        """
        if self._closed:
            raise RuntimeError("the judge is closed")
        return asyncio.run_coroutine_threadsafe(self.judge.judge(items), self._loop)

    def close(self) -> None:
        """End at once. What has no verdict yet is `failed`, so take the results first."""
        if not self._closed:
            self._closed = True
            asyncio.run_coroutine_threadsafe(self.judge.close(), self._loop).result()
            self._stop()

    def _stop(self) -> None:
        self._closed = True
        # Whatever was still waiting has its verdict now, and one more turn of the loop to hand it over.
        asyncio.run_coroutine_threadsafe(asyncio.sleep(0), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
