"""How far each input partition has been worked off: what may be committed and what event time has been reached.

Pure: offsets and times come in, positions and watermarks come out. A record is *read* when it was polled and *done*
when everything that follows from it is stored and sent. The position never passes a record that is not done, in
whatever order records get done; the event time is that of the records before the position. One thread may read while
another one is done with records.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Set
from typing import NamedTuple

from monitor.records import SourceWatermark

__all__ = ["AT_UNKNOWN", "Mark", "PartitionProgress", "Sources"]

AT_UNKNOWN = 0


class PartitionProgress:
    """Progress of one partition from the moment it was assigned.

    Parameters
    ----------
    at : event time (epoch ms) that was reached before, `AT_UNKNOWN` when nothing is known.
    position : the committed offset; None when nothing was committed yet.

    `read_at` is the event time that reading has reached, done or not.
    """

    def __init__(self, at: int = AT_UNKNOWN, position: int | None = None) -> None:
        self.at = at
        self.read_at = at
        self.position = position
        self._open: deque[tuple[int, int]] = deque()
        self._done: set[int] = set()
        self._turn = threading.Lock()

    @property
    def pending(self) -> int:
        """Records at or after the position that were read."""
        return len(self._open)

    def read(self, offset: int, at: int) -> None:
        """A record was polled. `at` is its event time (epoch ms), 0 when it has none. Offsets rise but may skip."""
        with self._turn:
            if not self._open:
                # Lower than expected when the log was cut off or made anew: what is there now counts.
                self.position = offset
            elif offset <= self._open[-1][0]:
                raise ValueError(f"offset {offset} was read already")
            self._open.append((offset, at))
            self.read_at = max(self.read_at, at)

    def done(self, offset: int) -> None:
        """A record that was read is done. Saying so twice does no harm."""
        with self._turn:
            if self.position is None or offset < self.position:
                return
            self._done.add(offset)
            while self._open and self._open[0][0] in self._done:
                first, at = self._open.popleft()
                self._done.discard(first)
                self.at = max(self.at, at)
                self.position = first + 1
            if self._open:
                self.position = self._open[0][0]

    def skip_to(self, offset: int) -> None:
        """Nothing that can be read lies before `offset` (the rest of a transaction, a compacted stretch)."""
        with self._turn:
            if not self._open and (self.position is None or offset > self.position):
                self.position = offset

    @property
    def mark(self) -> Mark | None:
        """What may be committed now; None when nothing is known."""
        with self._turn:
            return None if self.position is None else Mark(self, self.position, self.at)


class Mark(NamedTuple):
    """A position that may be committed, and the event time (epoch ms) reached there. `of` tells a partition's progress
    from what it was before it was assigned anew."""

    of: PartitionProgress
    position: int
    at: int


class Sources:
    """The input partitions of one worker, by name (`news:0`), and which of them are idle.

    A partition is idle when it is read to its end, all that was read is done, and nothing has come for `idle_after_s`
    seconds on the clock whose readings come in as `now`; it has ended when that has lasted for `ended_after_s`.
    """

    def __init__(self, idle_after_s: float, ended_after_s: float) -> None:
        self.partitions: dict[str, PartitionProgress] = {}
        self._idle_after_s = idle_after_s
        self._ended_after_s = max(idle_after_s, ended_after_s)
        self._quiet_since: dict[str, float] = {}
        self._turn = threading.RLock()

    def assign(self, name: str, at: int, now: float, position: int | None = None) -> PartitionProgress:
        """Start with a partition that was assigned; what was known of it before is forgotten."""
        with self._turn:
            self.partitions[name] = PartitionProgress(at, position)
            self._quiet_since[name] = now
            return self.partitions[name]

    def clear(self) -> None:
        """All partitions are taken away."""
        with self._turn:
            self.partitions.clear()
            self._quiet_since.clear()

    def active(self, name: str, now: float) -> None:
        """Something has come, or cannot be seen to come because nothing is fetched at present."""
        with self._turn:
            self._quiet_since[name] = now

    def marks(self) -> dict[str, Mark]:
        """What may be committed of each partition that anything is known of."""
        with self._turn:
            partitions = list(self.partitions.items())
        return {name: mark for name, progress in partitions if (mark := progress.mark) is not None}

    def watermarks(self, at_end: Set[str], now: float) -> tuple[SourceWatermark, ...]:
        """Progress of every partition that anything is known of. `at_end`: those that are read to their end."""
        out = []
        with self._turn:
            for name, progress in sorted(self.partitions.items()):
                quiet_s = now - self._quiet_since[name] if name in at_end and progress.pending == 0 else 0.0
                idle, ended = quiet_s >= self._idle_after_s, quiet_s >= self._ended_after_s
                if idle or progress.at != AT_UNKNOWN:
                    out.append(SourceWatermark(source=name, at=progress.at, idle=idle, ended=ended))
        return tuple(out)
