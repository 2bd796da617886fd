"""Counting in event time: contributions in, changes of ticks and stories out. Pure: no clock, no store.

The aggregator and `backtest` run the same `Counter`. One record is one call of `apply`; the caller stores the
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
from typing import TYPE_CHECKING, Final

import msgspec

from monitor.open_stories import OpenStories, OpenStory
from monitor.records import Contribution, ContributionBatch
from monitor.stories import SIGNATURE_BYTES, Copies, Story, add_copies, story_id
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
    joined them already; `copies` (by the story's id) join stories of earlier changes (`add_copies`). `waiting`
    are the contributions that have come and are not counted yet, by the minute that they will be counted in, in the
    order in which they came; those of minutes before `open_minute` have been counted, or taken back, and wait no more.

    `counted` is by how many the pairs of key and item grew that are counted or stale; `late`, `stale` and `duplicates`
    are numbers of contributions.
    """

    ticks: dict[tuple[str, int], TickDelta] = {}
    stories: dict[str, Story] = {}
    copies: dict[str, Copies] = {}
    waiting: dict[int, list[Contribution]] = {}
    open_minute: int = 0
    counted: int = 0
    late: int = 0
    stale: int = 0
    duplicates: int = 0


class Counter:
    """Counts one partition's contributions.

    Parameters
    ----------
    config : lateness and story window.
    state : as stored; changed in place by `apply`.
    open_stories : the stored stories of this partition with `last_at >= open_from(state.watermark)`.
    waiting : what `Changes.waiting` told and is not counted yet, by minute, in the order in which it was told.
    """

    def __init__(
        self,
        config: CountingConfig,
        state: CounterState,
        open_stories: Iterable[OpenStory] = (),
        waiting: Mapping[int, Sequence[Contribution]] | None = None,
    ) -> None:
        self.config = config
        self.state = state
        self._open: dict[str, OpenStories] = {}
        self._swept = state.watermark
        for key, id_, first_at, last_at, sketch in open_stories:
            if len(sketch) == SIGNATURE_BYTES:
                stories = self._open.get(key)
                if stories is None:
                    stories = self._open[key] = OpenStories()
                stories.add(id_, first_at, last_at, sketch)
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
        return sum(map(len, self._open.values()))

    def apply(self, batch: ContributionBatch, ledger: Ledger, changes: Changes | None = None) -> Changes:
        """Take in a batch, move the watermark by what it reports, and count the minutes that are closed by that.

        Adds to `changes` where given, those of the records before it that are stored in the same transaction.
        """
        changes = Changes() if changes is None else changes
        first_open = self.state.watermark // MINUTE_MS
        for contribution in batch.contributions:
            minute = contribution.at // MINUTE_MS
            waiting = self._waiting.get(minute)
            if waiting is None or minute < first_open or contribution.retracted:
                self._take(contribution, ledger, changes)
                continue
            # What nearly all are: new ones of a minute that is open.
            pair = contribution.key, contribution.item_id
            if pair in waiting:
                self._take(contribution, ledger, changes)
                continue
            waiting[pair] = contribution
            told = changes.waiting.get(minute)
            if told is None:
                changes.waiting[minute] = [contribution]
            else:
                told.append(contribution)
        merge_sources(self.state, batch.sources, batch.source_count)
        if advance(self.state, self.config.lateness_ms):
            self._close(ledger, changes)
            if self.state.watermark - self._swept >= SWEEP_MS:
                self._sweep()
        changes.open_minute = self.state.watermark // MINUTE_MS
        return changes

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

    def _close(self, ledger: Ledger, changes: Changes) -> None:
        first_open = self.state.watermark // MINUTE_MS
        for minute in sorted(minute for minute in self._waiting if minute < first_open):
            # Each key's in order of event time; the order among keys is of no consequence.
            self._count(sorted(self._waiting.pop(minute).values(), key=_in_order), minute, ledger, changes)
            changes.waiting.pop(minute, None)

    def _count(self, contributions: list[Contribution], minute: int, ledger: Ledger, changes: Changes) -> None:
        begin = minute * MINUTE_MS
        ticks: dict[str, TickDelta] = {}
        in_time: list[Counted] = []
        for c in contributions:
            key = c.key
            tick = ticks.get(key)
            if tick is None:
                tick = ticks[key] = _tick(changes, key, minute)
            self._join(c, minute, tick, changes)
            tick.items += 1
            tick.negative_items += c.negative
            tick.score_sum += c.score
            counted = Counted(key, c.item_id, minute, c.score, c.negative)
            if c.at < begin:
                tick.late += 1
                ledger.put(c.at // MINUTE_MS, counted)
            else:
                in_time.append(counted)
        ledger.put_all(minute, in_time)
        changes.counted += len(contributions)

    def _join(self, c: Contribution, minute: int, tick: TickDelta, changes: Changes) -> None:
        key, at, sketch, source = c.key, c.at, c.signature, c.source
        stories = self._open.get(key)
        if stories is None:
            stories = self._open[key] = OpenStories()
        signed = len(sketch) == SIGNATURE_BYTES
        if signed:
            window = self.config.story_window_ms
            # What has expired hangs on the minute alone, not on how far the watermark has jumped meanwhile.
            found = stories.find(sketch, at, window, self.config.similarity, minute * MINUTE_MS - window)
            if found is not None:
                stories.see(found, at)
                _add_copy(stories.id(found), c, changes)
                return
        id_ = story_id(key, c.item_id, at)
        changes.stories[id_] = Story(
            id=id_,
            key=key,
            first_at=at,
            last_at=at,
            minute=minute,
            negative=c.negative,
            items=1,
            sources=(source,) if source else (),
            title=c.title,
            url=c.url,
            source=source,
            item_id=c.item_id,
            item_ids=(c.item_id,),
            p_negative=c.p_negative,
            signature=sketch,
            positive=c.positive,
            p_positive=_p_positive(c),
        )
        if signed:
            # One without a signature is never found again and therefore not held.
            stories.add(id_, at, at, sketch)
        tick.stories += 1
        tick.negative_stories += c.negative
        tick.positive_stories += c.positive

    def _sweep(self) -> None:
        self._swept = self.state.watermark
        open_from = self.open_from(self._swept)
        for key in list(self._open):
            stories = self._open[key]
            stories.expire(open_from)
            if not stories:
                del self._open[key]


def _add_copy(id_: str, c: Contribution, changes: Changes) -> None:
    copy = Copies(c.key, c.at, 1, (c.source,) if c.source else (), (c.item_id,))
    story = changes.stories.get(id_) or changes.copies.get(id_)
    if story is None:
        changes.copies[id_] = copy
    else:
        add_copies(story, copy)


def _p_positive(c: Contribution) -> float:
    """The score is p(positive) - p(negative)."""
    return min(max(round(c.score + c.p_negative, 6), 0.0), 1.0)


def _tick(changes: Changes, key: str, minute: int) -> TickDelta:
    tick = changes.ticks.get((key, minute))
    if tick is None:
        tick = changes.ticks[key, minute] = TickDelta()
    return tick
