"""Event time: minutes, and the watermark that says which of them are closed.

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

__all__ = ["MINUTE_MS", "CounterState", "TickDelta", "advance", "merge_sources"]

MINUTE_MS: Final = 60_000


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
