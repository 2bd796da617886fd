"""The same counting and judging over history, in memory.

Items go through `Counter` and closed minutes through `Judge`, as in the live processes; what differs is only who
remembers. The watermark moves when an item of a later minute comes, so that the outcome does not hang on how the
input was cut into pieces.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from heapq import merge
from typing import Final

import msgspec
import numpy as np

from monitor.alerts.records import MAX_STORIES, AlertStory, AlertWindow
from monitor.records import ContributionBatch, ScoredItem, SourceWatermark
from monitor.stories import Story
from monitor.surges.counting import Changes, Counter, CounterState, CountingConfig
from monitor.surges.decisions import Decision, MinuteCounts
from monitor.surges.evidence import Evidence
from monitor.surges.judge import Judge, JudgeConfig
from monitor.surges.keys import contributions_by_item, epoch_ms
from monitor.surges.ledger import MemoryLedger
from monitor.surges.sightings import Sightings
from monitor.surges.sorts import NEGATIVE
from monitor.surges.ticks import MAX_GAP_MINUTES, MINUTE_MS, Reached

__all__ = ["Backtest", "BacktestAlert", "Stretch", "Watch"]

INPUT: Final = "input"
BATCHES: Final = 256
DAY_MINUTES: Final = 24 * 60
_NO_COUNTS = np.zeros(0, dtype=np.int64)
_EMPTY = MinuteCounts((), _NO_COUNTS, _NO_COUNTS)


class BacktestAlert(msgspec.Struct, kw_only=True):
    """One episode as `backtest` prints it; `surge` is its sort. The figures are those of its worst minute that was
    reported; `resolved_at` is null while it was still firing at the end of the input."""

    id: str
    key: str
    rule: str
    surge: str = NEGATIVE
    severity: str
    started_at: datetime
    fired_at: datetime
    resolved_at: datetime | None
    window: AlertWindow
    observed: int
    expected: float
    total: int
    share: float
    expected_share: float
    p_value: float
    score: float
    sources: int
    stories: tuple[AlertStory, ...]


class Stretch:
    """What a judge saw of one stretch of minutes: the `peaks` of ended excursions with the minute that they ended in,
    and the `key_days` judged up to each midnight and the end. `begin` is its first minute."""

    def __init__(self, begin: int) -> None:
        self.begin = begin
        self.peaks: list[tuple[int, float]] = []
        self.key_days: list[tuple[int, float]] = []


class Watch:
    """The judge of one sort of surge, with what it saw; `sightings` where its history is to come later."""

    def __init__(self, config: JudgeConfig, history_later: bool) -> None:
        self.config = config
        self.sightings = Sightings(config) if history_later else None
        self.stretches: list[Stretch] = []
        self.judge = Judge(config)

    @property
    def bar(self) -> float:
        """The score that is alerted at in the end."""
        return self.sightings.bar if self.sightings is not None else self.judge.bar

    def begin(self, minute: int) -> None:
        """A judge that knows nothing yet goes on at `minute`."""
        self.stretches.append(Stretch(minute))
        self.judge = Judge(self.config, self._note_peak, self.sightings)

    def _note_peak(self, _key: str, peak: float) -> None:
        self.stretches[-1].peaks.append((self.judge.judged_to or 0, peak))

    def midnight(self, minute: int) -> None:
        """All minutes before `minute` are judged."""
        self.stretches[-1].key_days.append((minute, self.judge.key_days))

    def end(self, minute: int) -> None:
        """The stretch is over, all minutes before `minute` are judged."""
        if self.stretches:
            self.stretches[-1].peaks += [(minute, peak) for peak in self.judge.peaks_under_way()]
            self.midnight(minute)


class Backtest:
    """Runs items through counting and judging; `alerts` grow as episodes fire, in that order.

    Parameters
    ----------
    counting : as in the live processes.
    judging : the judge of each sort of surge that is looked for, one at least.
    history_later : what a history tells is not known yet: there are no alerts until `decide` is told it.
    """

    def __init__(self, counting: CountingConfig, *judging: JudgeConfig, history_later: bool = False) -> None:
        self.alerts: list[BacktestAlert] = []
        self.items = self.duplicates = self.late = self.stale = 0
        self.watches = [Watch(config, history_later) for config in judging]
        self._history_later = history_later
        self._counter = Counter(counting, CounterState())
        self._ledger = MemoryLedger()
        self._evidence = Evidence([config.surge for config in judging])
        # In a night without news nothing is far ahead, however little lateness is allowed.
        self._reached = Reached(max(counting.max_late_ms, DAY_MINUTES * MINUTE_MS))
        self._lateness_ms = counting.lateness_ms
        self._max_late_minutes = counting.max_late_ms // MINUTE_MS
        # The items of one minute, and those of earlier ones with what was reached after each. Minutes are counted
        # together: that is faster, and judged is one after the other all the same.
        self._minute_items: list[ScoredItem] = []
        self._pending: list[tuple[list[ScoredItem], int]] = []
        self._day = 0
        self._ticks: dict[int, dict[str, list[int]]] = {}
        self._last_tick = 0
        self._next_minute: int | None = None
        # Up to which minute (not inclusive) was judged in each step of the evidence.
        self._judged: list[int] = []
        self._open: dict[str, int] = {}
        self._memory = max(max(config.windows) for config in judging)
        # So long after its last story nothing is under way any more.
        self._settled = self._memory + max(config.calm_minutes for config in judging) + 1

    @property
    def judge(self) -> Judge:
        """The judge of the first sort, to ask it `explain`."""
        return self.watches[0].judge

    @property
    def alone(self) -> int:
        """Items so far ahead of all others that they did not move the watermark."""
        return self._reached.alone

    def add(self, item: ScoredItem) -> None:
        """Count one item. Items may come out of order within the lateness; later ones are counted as late."""
        before = self._reached.at
        reached = self._reached.read(epoch_ms(item.published_at))
        if reached // MINUTE_MS > before // MINUTE_MS and self._minute_items:
            self._end_minute(before)
        self._minute_items.append(item)
        self.items += 1

    def finish(self) -> None:
        """All has come: close and judge the last minutes. Call it once."""
        reached = self._reached.end()
        self._end_minute(reached, last=True)
        for watch in self.watches:
            watch.end(self._next_minute or 0)

    def _end_minute(self, reached: int, *, last: bool = False) -> None:
        self._pending.append((self._minute_items, reached))
        self._minute_items = []
        day = (reached - self._lateness_ms) // (DAY_MINUTES * MINUTE_MS)
        # What is older than a day is forgotten at its end: what comes after that must not find it.
        if last or len(self._pending) == BATCHES or day > self._day:
            self._day = day
            self._count(last)

    def _count(self, last: bool) -> None:
        signed = iter(contributions_by_item([item for items, _ in self._pending for item in items]))
        batches = []
        for number, (items, reached) in enumerate(self._pending, start=1):
            ended = last and number == len(self._pending)
            of_minute = tuple(c for _ in items for c in next(signed))
            source = SourceWatermark(INPUT, reached, ended, ended)
            batches.append(ContributionBatch(contributions=of_minute, sources=(source,), source_count=1))
        self._pending.clear()
        for number, changes in enumerate(self._counter.apply_each(batches, self._ledger), start=1):
            self._remember(changes)
            self._judge_closed(changes.open_minute, last and number == len(batches))
            self._judged.append(self._next_minute or 0)

    def _remember(self, changes: Changes) -> None:
        self.duplicates += changes.duplicates
        self.late += changes.late
        self.stale += changes.stale
        for (key, minute), delta in changes.ticks.items():
            if delta.stories or delta.negative_stories:
                tick = self._ticks.setdefault(minute, {}).setdefault(key, [0, 0, 0])
                tick[0] += delta.stories
                tick[1] += delta.negative_stories
                tick[2] += delta.positive_stories
        self._evidence.remember(changes)

    def _judge_closed(self, first_open: int, last: bool) -> None:
        """Judge the minutes before `first_open`. Empty ones in which nothing is under way are put off until something
        comes after them: if that takes months, judging begins anew there, as it does live."""
        for minute in sorted(self._ticks):
            if self._next_minute is None or minute - self._last_tick > MAX_GAP_MINUTES:
                self._begin(minute)
            self._judge_to(minute)
            self._last_tick = minute
        if self._next_minute is not None:
            self._judge_to(first_open - 1 if last else min(first_open - 1, self._last_tick + self._settled))

    def _begin(self, minute: int) -> None:
        """Judge from `minute` on, which need not be the minute of the first item that came."""
        for watch in self.watches:
            watch.end(self._next_minute or 0)
            watch.begin(minute)
        self._next_minute = minute

    def _judge_to(self, last: int) -> None:
        minute = self._next_minute or 0
        while minute <= last:
            counts = self._counts(minute)
            for watch in self.watches:
                for decision in watch.judge.step(minute, counts):
                    if not self._history_later:
                        self._take(decision, self._evidence.steps)
            minute += 1
            if minute % DAY_MINUTES == 0:
                for watch in self.watches:
                    watch.midnight(minute)
                self._evidence.forget(minute - self._memory, self._wanted(minute))
                self._ledger.forget(minute - self._max_late_minutes)
        self._next_minute = minute

    def _wanted(self, midnight: int) -> set[str]:
        """The keys whose stories may be asked for when the history is known."""
        since = midnight - DAY_MINUTES - self._memory
        seen = [watch.sightings.last_seen.items() for watch in self.watches if watch.sightings is not None]
        return {key for keys in seen for key, minute in keys if minute >= since}

    def _counts(self, minute: int) -> MinuteCounts:
        ticks = self._ticks.pop(minute, None)
        if not ticks:
            return _EMPTY
        rows = np.array(list(ticks.values()), dtype=np.int64)
        return MinuteCounts(list(ticks), *rows.T)

    def decide(self, heights: Sequence[float]) -> None:
        """Fill `alerts`, by the height that the history has for each judge, in their order. After `finish`, with
        `history_later`."""
        decided = [
            watch.sightings.decide(height)
            for watch, height in zip(self.watches, heights, strict=True)
            if watch.sightings is not None
        ]
        for decision in merge(*decided, key=lambda decision: decision.at):
            minute = epoch_ms(decision.at) // MINUTE_MS - 1
            # The step that this minute was judged in is one more than the number of those that had ended before it.
            self._take(decision, bisect_right(self._judged, minute) + 1)

    def _take(self, decision: Decision, step: int) -> None:
        if decision.action == "resolve":
            self.alerts[self._open.pop(decision.episode_id)].resolved_at = decision.at
            return
        alert = self._alert(decision, step)
        place = self._open.setdefault(decision.episode_id, len(self.alerts))
        self.alerts[place : place + 1] = [alert]

    def _alert(self, decision: Decision, step: int) -> BacktestAlert:
        end = epoch_ms(decision.at) // MINUTE_MS
        stories = self._evidence.of(decision.key, decision.surge, end - decision.window_minutes, end, step)
        return BacktestAlert(
            id=decision.episode_id,
            key=decision.key,
            rule=decision.rule,
            surge=decision.surge,
            severity=decision.severity,
            started_at=decision.started_at,
            fired_at=decision.fired_at,
            resolved_at=None,
            window=AlertWindow(
                minutes=decision.window_minutes,
                start=decision.at - timedelta(minutes=decision.window_minutes),
                end=decision.at,
            ),
            observed=decision.observed,
            expected=round(decision.expected, 4),
            total=decision.stories,
            share=round(decision.share, 4),
            expected_share=round(decision.expected_share, 4),
            p_value=decision.p_value,
            score=round(decision.score, 4),
            sources=len({source for story in stories for source in story.sources}),
            stories=tuple(_public(story) for story in stories[:MAX_STORIES]),
        )


def _public(story: Story) -> AlertStory:
    first = story.first
    return AlertStory(
        item_id=first.item_id,
        title=first.title,
        url=first.url,
        source=first.source,
        published_at=datetime.fromtimestamp(first.at / 1000, UTC),
        copies=story.items,
        p_negative=first.p_negative,
        p_positive=story.p_positive,
    )
