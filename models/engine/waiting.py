"""Rows that wait for a pass, whoever asked for them: what waits side by side is computed together.

A thread that is free takes what is there, as far as a pass goes, so that passes grow with the backlog and nobody waits
for a batch to fill or to end (continuous batching, Yu et al. 2022, "Orca"; here each row takes one pass).
"""

from __future__ import annotations

import heapq
import itertools
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

from models.engine.cache import RowScore
from models.tokens import TokenizedRow

__all__ = ["Part", "PartQueue"]


@dataclass(slots=True, eq=False)
class Part:
    """Rows of one call that are computed in one pass, with others or not (`apart`); `future` gives their scores."""

    rows: Sequence[TokenizedRow]
    apart: bool = False
    future: Future[list[RowScore]] = field(default_factory=Future)

    @property
    def tokens(self) -> int:
        """Of all its rows."""
        return sum(map(len, self.rows))


class PartQueue:
    """Parts by their turn, from many threads to many."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._taken = threading.Condition(self._lock)
        self._heap: list[tuple[float, int, int, Part]] = []
        self._numbers = itertools.count()
        self._tokens = 0

    def put(self, part: Part, at: float) -> None:
        """One more, to be taken after those with an earlier turn (seconds on the monotonic clock)."""
        tokens = part.tokens
        with self._lock:
            self._tokens += tokens
            heapq.heappush(self._heap, (at, next(self._numbers), tokens, part))

    def take(self, most: Callable[[int], int]) -> list[Part]:
        """The next pass: the first part, and those after it that fit; none when others have taken all.

        `most` : tokens of one pass at the most, of those that wait.
        """
        found: list[Part] = []
        held = 0
        with self._lock:
            room = most(self._tokens)
            while self._heap:
                _, _, tokens, part = self._heap[0]
                if found and (part.apart or held + tokens > room):
                    break
                heapq.heappop(self._heap)
                self._tokens -= tokens
                # Its call may have ended meanwhile, with an error of another part.
                if not part.future.set_running_or_notify_cancel():
                    continue
                found.append(part)
                held += tokens
                if part.apart:
                    break
            self._taken.notify_all()
        return found

    def wait_while_due(self, seconds: float) -> None:
        """While something waits whose turn has come, for so long at the most."""
        with self._taken:
            self._taken.wait_for(lambda: not self._heap or self._heap[0][0] > time.monotonic(), seconds)
