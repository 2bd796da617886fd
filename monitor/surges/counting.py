"""Counting in event time: contributions in, changes of ticks and stories out. Pure: no clock, no store.

The aggregator and `backtest` run the same `Counter`. Records go to `apply`, one or many; the caller stores the
`Changes`, the ledger and `Counter.state` together, so that a crash loses or doubles nothing. After a failed
transaction the counter has run ahead of the store: make a new one from what is stored.

What is counted where
---------------------
An item counts once per key, in the minute of its event time, when that minute closes: contributions wait until the
watermark has passed their minute and are then counted in order of event time and id. So what is counted does not hang
on the order in which partitions were read, nor on where a process was killed. Copies of a story (`monitor.stories`)
count as items but not as stories; a story counts in the minute of its first item, and as negative or positive if that
item is. The
story counts of a closed minute never change. An item for a closed minute is *late* and counts in the first open one,
when it was learned of; one later than `max_late_ms` is *stale*: remembered, but in no tick.

An item comes again with the same event time: then it is waiting still, or the *ledger* tells that it was counted, and
only its scores are taken over, should they differ (a chart, a newer model). A contribution may also be taken back
(`Contribution.retracted`, an item that has changed its topic): the sums over items lose it again, stories stay.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from operator import attrgetter
from typing import TYPE_CHECKING, Final, NamedTuple

import msgspec

from monitor.open_stories import OpenRows, OpenStories
from monitor.records import Contribution, ContributionBatch
from monitor.stories import Copies, Story, add_copy
from monitor.surges.ledger import STALE, Counted, Ledger
from monitor.surges.ticks import MINUTE_MS, CounterState, TickDelta, advance, merge_sources

if TYPE_CHECKING:
    from monitor.settings import Settings

__all__ = ["Changes", "Counter", "CounterState", "CountingConfig", "TickDelta"]

HOUR_MS: Final = 60 * MINUTE_MS
# Expired stories are passed over at once and dropped this often.
SWEEP_MS: Final = 4 * HOUR_MS

_in_order = attrgetter("at", "item_id")


class CountingConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Times in milliseconds of event time; `similarity` is the estimated Jaccard similarity of copies."""

    lateness_ms: int = MINUTE_MS
    max_late_ms: int = 24 * HOUR_MS
    story_window_ms: int = 24 * HOUR_MS
    similarity: float = 0.6

    @classmethod
    def of(cls, settings: Settings) -> CountingConfig:
        """From the settings of this installation."""
        return cls(
            lateness_ms=round(settings.lateness_s * 1000),
            max_late_ms=round(settings.max_late_h * HOUR_MS),
            story_window_ms=round(settings.story_window_h * HOUR_MS),
        )


class Changes(msgspec.Struct):
    """What records change, to be stored in one transaction.

    `ticks` are added to the stored ones, by key and epoch minute. `stories` (by id) are new, with the copies that have
    joined them already; `copies` (by the story's id) join stories of earlier changes (`add_copies`); `opened` are the
    stories that items may join from now on, and those that stay open for longer. `waiting` are the contributions that
    have come and are not counted yet, by the minute that they will be counted in, in the order in which they came;
    those of minutes before `open_minute` have been counted, or taken back, and wait no more.

    `counted` is by how many the pairs of key and item grew that are counted or stale; `late`, `stale` and `duplicates`
    are numbers of contributions.
    """

    ticks: dict[tuple[str, int], TickDelta] = {}
    stories: dict[str, Story] = {}
    copies: dict[str, Copies] = {}
    opened: list[OpenRows] = []
    waiting: dict[int, list[Contribution]] = {}
    open_minute: int = 0
    counted: int = 0
    late: int = 0
    stale: int = 0
    duplicates: int = 0


class _Closed(NamedTuple):
    """A minute that is closed, what counts in it in order of event time, and the changes that this is part of."""

    minute: int
    contributions: list[Contribution]
    changes: Changes


class Counter:
    """Counts one partition's contributions.

    Parameters
    ----------
    config : lateness and story window.
    state : as stored; changed in place by `apply`.
    open_stories : what `Changes.opened` told, in that order; what has expired may be left out.
    waiting : what `Changes.waiting` told and is not counted yet, by minute, in the order in which it was told.
    """

    def __init__(
        self,
        config: CountingConfig,
        state: CounterState,
        open_stories: Iterable[OpenRows] = (),
        waiting: Mapping[int, Sequence[Contribution]] | None = None,
    ) -> None:
        self.config = config
        self.state = state
        self._open = OpenStories(config.story_window_ms, config.similarity, open_stories)
        self._swept = state.watermark
        self._open.expire(self.open_from(state.watermark))
        # By minute, then by pair: a pair that comes again before it is counted is here once.
        self._waiting: dict[int, dict[tuple[str, str], Contribution]] = {}
        for minute, contributions in (waiting or {}).items():
            for contribution in contributions:
                self._wait(minute, contribution)

    def open_from(self, watermark: int) -> int:
        """Event time (epoch ms) at or after which a story must have been seen to be open at `watermark`."""
        return watermark // MINUTE_MS * MINUTE_MS - self.config.story_window_ms

    @property
    def open_stories(self) -> int:
        """How many stories are held open."""
        return len(self._open)

    @property
    def open_keys(self) -> int:
        """How many keys they are of."""
        return self._open.keys

    def apply(self, batches: Iterable[ContributionBatch], ledger: Ledger) -> Changes:
        """Take in batches in their order: move the watermark by what each reports, and count the minutes that are
        closed by that. The outcome is that of one batch after the other; many at once are faster."""
        changes = Changes(open_minute=self.state.watermark // MINUTE_MS)
        self._apply(((batch, changes) for batch in batches), ledger)
        return changes

    def apply_each(self, batches: Iterable[ContributionBatch], ledger: Ledger) -> list[Changes]:
        """`apply`, with the changes of each batch by themselves; `opened` is told with the last."""
        each = [(batch, Changes()) for batch in batches]
        self._apply(each, ledger)
        return [changes for _, changes in each]

    def _apply(self, batches: Iterable[tuple[ContributionBatch, Changes]], ledger: Ledger) -> None:
        closed: list[_Closed] = []
        for batch, changes in batches:
            self._take_in(batch.contributions, ledger, changes)
            merge_sources(self.state, batch.sources, batch.source_count)
            if advance(self.state, self.config.lateness_ms):
                closed += self._close(ledger, changes)
            changes.open_minute = self.state.watermark // MINUTE_MS
        if closed:
            self._count(closed)
        if self.state.watermark - self._swept >= SWEEP_MS:
            self._swept = self.state.watermark
            self._open.expire(self.open_from(self._swept))

    def _take_in(self, contributions: Iterable[Contribution], ledger: Ledger, changes: Changes) -> None:
        first_open = self.state.watermark // MINUTE_MS
        minute = -1
        waiting: dict[tuple[str, str], Contribution] | None = None
        told: list[Contribution] = []
        for c in contributions:
            own = c.at // MINUTE_MS
            if own != minute or waiting is None:
                minute, waiting = own, self._waiting.get(own) if own >= first_open else None
                told = changes.waiting.setdefault(own, []) if waiting is not None else []
            # What nearly all are: new ones of a minute that is open.
            if waiting is None or c.retracted or waiting.setdefault((c.key, c.item_id), c) is not c:
                self._take(c, ledger, changes)
            else:
                told.append(c)

    def _take(self, c: Contribution, ledger: Ledger, changes: Changes) -> None:
        own, first_open = c.at // MINUTE_MS, self.state.watermark // MINUTE_MS
        minute = max(first_open, own)
        waiting = self._waiting.get(minute)
        before = waiting.get((c.key, c.item_id)) if waiting is not None else None
        if before is not None:
            changes.duplicates += not c.retracted
            if c == before:
                return
        elif own < first_open:
            counted = ledger.find(own, c.key, c.item_id)
            if counted is not None:
                self._correct(c, own, counted, ledger, changes)
                return
            if c.retracted:
                return
            if c.at < self.state.watermark - self.config.max_late_ms:
                changes.stale += 1
                changes.counted += 1
                ledger.put(own, Counted(c.key, c.item_id, STALE, c.score, c.negative))
                return
            changes.late += 1
        elif c.retracted:
            return
        self._wait(minute, c)
        told = changes.waiting.get(minute)
        if told is None:
            changes.waiting[minute] = [c]
        else:
            told.append(c)

    def _wait(self, minute: int, c: Contribution) -> None:
        waiting = self._waiting.get(minute)
        if waiting is None:
            waiting = self._waiting[minute] = {}
        if c.retracted:
            waiting.pop((c.key, c.item_id), None)
        else:
            waiting[c.key, c.item_id] = c

    def _correct(self, c: Contribution, own: int, before: Counted, ledger: Ledger, changes: Changes) -> None:
        """A pair that was counted already: take over changed scores, take it back or in again; count nothing twice."""
        changes.duplicates += not c.retracted
        score, negative = (before.score, before.negative) if c.retracted else (c.score, c.negative)
        now = Counted(c.key, c.item_id, before.minute, score, negative, c.retracted)
        if now == before:
            return
        ledger.put(own, now)
        was, there = not before.retracted, not now.retracted
        changes.counted += there - was
        if before.minute != STALE:
            tick = _tick(changes, c.key, before.minute)
            tick.items += there - was
            tick.negative_items += (there and now.negative) - (was and before.negative)
            tick.score_sum += there * now.score - was * before.score

    def _close(self, ledger: Ledger, changes: Changes) -> list[_Closed]:
        closed: list[_Closed] = []
        first_open = self.state.watermark // MINUTE_MS
        for minute in sorted(minute for minute in self._waiting if minute < first_open):
            # Each key's in order of event time; the order among keys is of no consequence.
            contributions = sorted(self._waiting.pop(minute).values(), key=_in_order)
            changes.waiting.pop(minute, None)
            if not contributions:
                continue
            begin = minute * MINUTE_MS
            in_time = [Counted(c.key, c.item_id, minute, c.score, c.negative) for c in contributions if c.at >= begin]
            if len(in_time) < len(contributions):
                for c in contributions[: len(contributions) - len(in_time)]:
                    ledger.put(c.at // MINUTE_MS, Counted(c.key, c.item_id, minute, c.score, c.negative))
            ledger.put_all(minute, in_time)
            changes.counted += len(contributions)
            closed.append(_Closed(minute, contributions, changes))
        return closed

    def _count(self, closed: Sequence[_Closed]) -> None:
        """Find the stories of all closed minutes at once, then count minute by minute."""
        items = [c for one in closed for c in one.contributions]
        minutes = [one.minute for one in closed for _ in one.contributions]
        joined = self._open.join(items, minutes)
        closed[-1].changes.opened.append(joined.opened)
        found = zip(joined.ids, joined.begins, strict=True)
        for minute, contributions, changes in closed:
            begin = minute * MINUTE_MS
            ticks, stories, copies = changes.ticks, changes.stories, changes.copies
            # As many of those found as the minute has, the next minute's after them.
            for c, (id_, begun) in zip(contributions, found, strict=False):
                place = c.key, minute
                tick = ticks.get(place)
                if tick is None:
                    tick = ticks[place] = TickDelta()
                tick.items += 1
                tick.score_sum += c.score
                if c.negative:
                    tick.negative_items += 1
                if c.at < begin:
                    tick.late += 1
                sources = (c.source,) if c.source else ()
                if begun:
                    stories[id_] = Story(id_, minute, c, c.at, 1, sources, (c.item_id,))
                    tick.stories += 1
                    tick.negative_stories += c.negative
                    tick.positive_stories += c.positive
                    continue
                story = stories.get(id_) or copies.get(id_)
                if story is None:
                    copies[id_] = Copies(c.key, c.at, 1, sources, (c.item_id,))
                else:
                    add_copy(story, c.at, c.source, c.item_id)


def _tick(changes: Changes, key: str, minute: int) -> TickDelta:
    tick = changes.ticks.get((key, minute))
    if tick is None:
        tick = changes.ticks[key, minute] = TickDelta()
    return tick
