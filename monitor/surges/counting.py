"""Counting in event time: contributions in, changes of ticks and stories out. Pure: no clock, no store.

The aggregator and `backtest` run the same `Counter`. One record is one call of `apply`; the caller stores the
`Changes` and `Counter.state` together, so that a crash loses or doubles nothing. After a failed transaction the
counter has run ahead of the store: make a new one from what is stored.

What is counted where
---------------------
An item counts once per key, in the minute of its event time. Copies of a story (`monitor.stories`) count as items
but not as stories; a story counts in the minute of its earliest item and is negative if that item is. Minutes behind
the watermark are closed: their story counts never change again. An item for a closed minute is *late* and counts in
the first open one, when it was learned of; one later than `max_late_ms` is *stale*: remembered, but in no tick.
An item that comes again is a duplicate: only its scores are taken over, should they differ (a newer model).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Final

import msgspec

from monitor.records import Contribution, ContributionBatch
from monitor.stories import MAX_SOURCES, OpenStories, Story, story_id
from monitor.surges.ticks import MINUTE_MS, CounterState, TickDelta, advance, merge_sources

if TYPE_CHECKING:
    from monitor.settings import Settings

__all__ = ["STALE", "Changes", "Counted", "Counter", "CounterState", "CountingConfig", "Story", "TickDelta"]

STALE: Final = -1
HOUR_MS: Final = 60 * MINUTE_MS
# Expired stories are passed over at once and dropped this often.
SWEEP_MS: Final = 4 * HOUR_MS


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


class Counted(msgspec.Struct, frozen=True):
    """What is remembered of a counted pair of key and item. `minute` is the epoch minute, `STALE` if in none."""

    key: str
    item_id: str
    minute: int
    story_id: str
    p_negative: float
    score: float
    negative: bool


class Changes(msgspec.Struct):
    """What one batch changes, to be stored in one transaction.

    `ticks` are added to the stored ones, by key and epoch minute; `stories` (by id) and `counted` replace what is
    stored under their keys. The stories are the counter's own: store them before the next `apply`.
    """

    ticks: dict[tuple[str, int], TickDelta]
    stories: dict[str, Story]
    counted: list[Counted]
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
    """

    def __init__(self, config: CountingConfig, state: CounterState, open_stories: Iterable[Story]) -> None:
        self.config = config
        self.state = state
        self._open: dict[str, OpenStories] = {}
        self._swept = state.watermark
        for story in open_stories:
            self._open.setdefault(story.key, OpenStories()).add(story)

    def open_from(self, watermark: int) -> int:
        """Event time (epoch ms) at or after which a story must have been seen to be open at `watermark`."""
        return watermark - self.config.story_window_ms

    @property
    def open_stories(self) -> int:
        """How many stories are held open."""
        return sum(map(len, self._open.values()))

    def apply(self, batch: ContributionBatch, known: Mapping[tuple[str, str], Counted]) -> Changes:
        """Count a batch, then move the watermark by what it reports.

        `known` holds what was counted before of this batch's pairs `(key, item_id)`; other pairs in it do no harm.
        """
        changes = Changes(ticks={}, stories={}, counted=[])
        fresh: dict[tuple[str, str], Counted] = {}
        for contribution in batch.contributions:
            pair = (contribution.key, contribution.item_id)
            before = fresh.get(pair) or known.get(pair)
            counted = self._count(contribution, changes) if before is None else _recount(contribution, before, changes)
            if counted is not None:
                fresh[pair] = counted
        changes.counted = list(fresh.values())
        merge_sources(self.state, batch.sources, batch.source_count)
        if advance(self.state, self.config.lateness_ms) and self.state.watermark - self._swept >= SWEEP_MS:
            self._sweep()
        return changes

    def _count(self, c: Contribution, changes: Changes) -> Counted:
        watermark = self.state.watermark
        open_minute = watermark // MINUTE_MS
        minute = c.at // MINUTE_MS
        late = minute < open_minute
        if late:
            if c.at < watermark - self.config.max_late_ms:
                changes.stale += 1
                return Counted(c.key, c.item_id, STALE, "", c.p_negative, c.score, c.negative)
            changes.late += 1
            minute = open_minute
        story = self._join(c, minute, late, changes)
        tick = _tick(changes, c.key, minute)
        tick.items += 1
        tick.negative_items += c.negative
        tick.score_sum += c.score
        tick.late += late
        changes.stories[story.id] = story
        return Counted(c.key, c.item_id, minute, story.id, c.p_negative, c.score, c.negative)

    def _join(self, c: Contribution, minute: int, late: bool, changes: Changes) -> Story:
        stories = self._open.get(c.key)
        if stories is None:
            stories = self._open[c.key] = OpenStories()
        config, watermark = self.config, self.state.watermark
        window = config.story_window_ms
        story = stories.find(c.signature, c.at, window, config.similarity, watermark - window) if c.signature else None
        if story is None:
            story = Story(
                id=story_id(c.key, c.item_id),
                key=c.key,
                first_at=c.at,
                last_at=c.at,
                minute=minute,
                negative=c.negative,
                items=1,
                sources=(c.source,) if c.source else (),
                title=c.title,
                url=c.url,
                source=c.source,
                item_id=c.item_id,
                p_negative=c.p_negative,
                signature=c.signature,
            )
            stories.add(story)
            tick = _tick(changes, c.key, minute)
            tick.stories += 1
            tick.negative_stories += c.negative
            return story
        story.items += 1
        story.last_at = max(story.last_at, c.at)
        if c.source and c.source not in story.sources and len(story.sources) < MAX_SOURCES:
            # In order of name, not of arrival: items may overtake each other within the lateness.
            story.sources = tuple(sorted((*story.sources, c.source)))
        if (
            not late
            and (c.at, c.item_id) < (story.first_at, story.item_id)
            and story.minute * MINUTE_MS >= (watermark // MINUTE_MS * MINUTE_MS)
        ):
            self._begin_earlier(story, c, minute, changes)
        return story

    def _begin_earlier(self, story: Story, c: Contribution, minute: int, changes: Changes) -> None:
        """An earlier item came after a later one of its story, both minutes open: the story is the earlier one's."""
        tick = _tick(changes, c.key, story.minute)
        tick.stories -= 1
        tick.negative_stories -= story.negative
        tick = _tick(changes, c.key, minute)
        tick.stories += 1
        tick.negative_stories += c.negative
        story.first_at, story.minute, story.negative = c.at, minute, c.negative
        story.title, story.url, story.source = c.title, c.url, c.source
        story.item_id, story.p_negative = c.item_id, c.p_negative

    def _sweep(self) -> None:
        self._swept = self.state.watermark
        open_from = self.open_from(self._swept)
        for key in list(self._open):
            stories = self._open[key]
            stories.expire(open_from)
            if not stories:
                del self._open[key]


def _recount(c: Contribution, before: Counted, changes: Changes) -> Counted | None:
    """A pair that was counted already: take over changed scores, count nothing twice."""
    changes.duplicates += 1
    if (before.p_negative, before.score, before.negative) == (c.p_negative, c.score, c.negative):
        return None
    if before.minute != STALE:
        tick = _tick(changes, c.key, before.minute)
        tick.negative_items += c.negative - before.negative
        tick.score_sum += c.score - before.score
    return Counted(c.key, c.item_id, before.minute, before.story_id, c.p_negative, c.score, c.negative)


def _tick(changes: Changes, key: str, minute: int) -> TickDelta:
    tick = changes.ticks.get((key, minute))
    if tick is None:
        tick = changes.ticks[key, minute] = TickDelta()
    return tick
