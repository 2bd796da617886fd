"""Event time: minutes, how far a source has come, and the watermark that says which minutes are closed.

Every input partition is a *source* that reports how far it has been worked off. The watermark of a contributions
partition is the smallest report less the allowed lateness; quiet sources (read to their end) do not hold it up, and
when all have ended (quiet for a minute and the lateness) it moves just past the last event, so that the last minute is
closed, too. It never goes back.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import msgspec

from monitor.records import SourceWatermark

__all__ = ["MAX_GAP_MINUTES", "MINUTE_MS", "CounterState", "Reached", "TickDelta", "advance", "merge_sources"]

MINUTE_MS: Final = 60_000
# After a longer stretch without anything judging begins anew: what was normal before says nothing any more.
MAX_GAP_MINUTES: Final = 90 * 24 * 60


class Reached:
    """How far reading a source has come in event time, by the times of what is read, in order.

    One item that is far ahead of all before it moves nothing: its date may be wrong, and then every minute up to it
    would be closed and all that follows late. The next one of another time tells: if that is as far ahead, there was
    nothing to read in between, and what is reached is the earlier of the two; if not, the first was ahead by itself.
    It waits for its minute like any other item.

    Parameters
    ----------
    max_ahead_ms : an item more than this ahead of what was reached is far ahead.
    at : event time (epoch ms) that was reached before, 0 when nothing is known: then the first item is taken as it is.

    `ahead` is the time of the item that is far ahead and waits to be borne out, 0 without one; `alone` counts those
    that were not.
    """

    def __init__(self, max_ahead_ms: int, at: int = 0) -> None:
        self._max_ahead_ms = max_ahead_ms
        self.at = at
        self.ahead = 0
        self.alone = 0

    def read(self, at: int) -> int:
        """An item of event time `at` (epoch ms) is read; returns what is reached now."""
        if self.at and at > self.at + self._max_ahead_ms:
            if self.ahead and at != self.ahead:
                earlier, later = sorted((self.ahead, at))
                self.at, self.ahead = earlier, 0
                self.read(later)
            else:
                self.ahead = at
        else:
            if self.ahead:
                self.alone += 1
                self.ahead = 0
            self.at = max(self.at, at)
        return self.at

    def end(self) -> int:
        """Nothing more is to be read for now: what is far ahead counts, too."""
        self.at, self.ahead = max(self.at, self.ahead), 0
        return self.at


class TickDelta(msgspec.Struct, gc=False):
    """What is to be added to one key's tick of one minute. `late` are the items of later counting among `items`."""

    stories: int = 0
    negative_stories: int = 0
    items: int = 0
    negative_items: int = 0
    score_sum: float = 0.0
    late: int = 0
    positive_stories: int = 0


class CounterState(msgspec.Struct):
    """What a counter of one contributions partition carries over, stored in the transaction with its ticks.

    `sources` are the reports by source; `source_count` the number of sources there are in all; `watermark` the
    event time (epoch ms) before which every minute is closed, 0 before anything is; `next_offset` the next record
    of the partition to read (kept here for the caller, not used in counting).
    """

    sources: dict[str, SourceWatermark] = {}
    source_count: int = 0
    watermark: int = 0
    next_offset: int = 0


def merge_sources(state: CounterState, reports: Iterable[SourceWatermark], source_count: int) -> None:
    """Take up new reports in place: a source's progress never goes back, whether it is idle is as last said."""
    for report in reports:
        before = state.sources.get(report.source)
        at = report.at if before is None else max(before.at, report.at)
        state.sources[report.source] = SourceWatermark(report.source, at, report.idle, report.ended)
    state.source_count = max(state.source_count, source_count)


def advance(state: CounterState, lateness_ms: int) -> bool:
    """Move the watermark as far as the sources allow; True when it moved."""
    if not state.sources or len(state.sources) < state.source_count:
        return False
    sources = state.sources.values()
    newest = max(source.at for source in sources)
    if all(source.ended for source in sources):
        watermark = newest + MINUTE_MS
    else:
        # The quiet ones hold nobody up; when all are quiet, more may still come for the newest minute.
        watermark = min((source.at for source in sources if not source.idle), default=newest) - lateness_ms
    if watermark <= state.watermark:
        return False
    state.watermark = watermark
    return True
