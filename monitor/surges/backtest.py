"""The same counting and judging over history, in memory.

Items go through `Counter` and closed minutes through `Judge`, as in the live processes; what differs is only who
remembers. The watermark moves when an item of a later minute comes, so that the outcome does not hang on how the
input was cut into pieces.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Final

import msgspec
import numpy as np

from monitor.alerts.records import MAX_STORIES, AlertStory, AlertWindow
from monitor.records import ContributionBatch, ScoredItem, SourceWatermark
from monitor.stories import Story, add_copies
from monitor.surges.budget import bar_from_history
from monitor.surges.counting import Changes, Counter, CounterState, CountingConfig
from monitor.surges.decisions import Decision, MinuteCounts
from monitor.surges.judge import Judge, JudgeConfig
from monitor.surges.keys import MARKET, TOPIC, contributions_of, epoch_ms
from monitor.surges.ledger import MemoryLedger
from monitor.surges.sorts import NEGATIVE, VOLUME
from monitor.surges.ticks import MINUTE_MS

__all__ = ["Backtest", "BacktestAlert", "History", "measure_histories", "measure_history"]

INPUT: Final = "input"
BATCHES: Final = 256
DAY_MS: Final = 24 * 60 * MINUTE_MS
# The first days of a history are for learning what is normal: their peaks say little about later ones.
WARM_DAYS: Final = 8
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


class Watch:
    """The judge of one sort of surge, with the peaks of ended excursions and the minute they ended in, and the key-days
    judged up to each minute of a day's end."""

    def __init__(self, config: JudgeConfig) -> None:
        self.peaks: list[tuple[int, float]] = []
        self.key_days: list[tuple[int, float]] = []
        self.judge = Judge(config, self._note_peak)

    def _note_peak(self, _key: str, peak: float) -> None:
        self.peaks.append((self.judge.judged_to or 0, peak))


class Backtest:
    """Runs items through counting and judging; `alerts` grow as episodes fire, in that order.

    Parameters
    ----------
    counting : as in the live processes.
    judging : the judge of each sort of surge that is looked for, one at least.
    """

    def __init__(self, counting: CountingConfig, *judging: JudgeConfig) -> None:
        self.alerts: list[BacktestAlert] = []
        self.items = self.duplicates = self.late = self.stale = 0
        self.watches = [Watch(config) for config in judging]
        self._counter = Counter(counting, CounterState())
        self._episodes: dict[str, BacktestAlert] = {}
        self._pending: list[ScoredItem] = []
        self._latest = 0
        self.first_minute = 0
        self._next_minute: int | None = None
        self._ticks: dict[int, dict[str, list[int]]] = {}
        self._ledger = MemoryLedger()
        # Minutes that are counted together: that is faster, and judged is one after the other all the same.
        self._batches: list[ContributionBatch] = []
        self._day = 0
        self._lateness_ms = counting.lateness_ms
        self._max_late_ms = counting.max_late_ms
        # Stories that a surge may be made of, by key.
        self._stories: dict[str, dict[str, Story]] = {}
        self._sorts = tuple(config.surge for config in judging)
        self._memory_ms = max(max(config.windows) for config in judging) * MINUTE_MS

    @property
    def judge(self) -> Judge:
        """The judge of the first sort, to ask it `explain`."""
        return self.watches[0].judge

    def add(self, item: ScoredItem) -> None:
        """Count one item. Items may come out of order within the lateness; later ones are counted as late."""
        at = epoch_ms(item.published_at)
        if self.items and at // MINUTE_MS > self._latest // MINUTE_MS:
            self._apply(idle=False)
        self._latest = max(self._latest, at)
        self._pending.append(item)
        self.items += 1

    def finish(self) -> None:
        """All has come: close and judge the last minutes. Call it once."""
        self._apply(idle=True)
        for watch in self.watches:
            watch.peaks += [(self._next_minute or 0, peak) for peak in watch.judge.peaks_under_way()]
            watch.key_days.append((self._next_minute or 0, watch.judge.key_days))

    def _apply(self, idle: bool) -> None:
        batch = ContributionBatch(
            contributions=tuple(contributions_of(self._pending)),
            sources=(SourceWatermark(INPUT, self._latest, idle, idle),),
            source_count=1,
        )
        self._pending.clear()
        self._batches.append(batch)
        day = (self._latest - self._lateness_ms) // DAY_MS
        # What is older than a day is forgotten at its end: what comes after that must not find it.
        if idle or len(self._batches) == BATCHES or day > self._day:
            self._day = day
            for changes in self._counter.apply_each(self._batches, self._ledger):
                self._remember(changes)
                self._judge_closed(changes.open_minute)
            self._batches.clear()

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
        for story in changes.stories.values():
            if any(_is_of(story, surge) for surge in self._sorts):
                self._stories.setdefault(story.key, {})[story.id] = story
        for id_, copies in changes.copies.items():
            begun = self._stories.get(copies.key, {}).get(id_)
            if begun is not None:
                add_copies(begun, copies)

    def _judge_closed(self, first_open: int) -> None:
        minute = self._next_minute
        if minute is None:
            # The first minute that anything was counted in, which need not be the first item's that came.
            minute = min(self._ticks, default=first_open)
            if minute >= first_open:
                return
            self.first_minute = minute
        while minute < first_open:
            counts = self._counts(minute)
            for watch in self.watches:
                for decision in watch.judge.step(minute, counts):
                    self._take(decision)
            minute += 1
            if minute % (24 * 60) == 0:
                for watch in self.watches:
                    watch.key_days.append((minute, watch.judge.key_days))
                self._forget_stories(minute * MINUTE_MS)
                self._ledger.forget(minute - self._max_late_ms // MINUTE_MS)
        self._next_minute = minute

    def _counts(self, minute: int) -> MinuteCounts:
        ticks = self._ticks.pop(minute, None)
        if not ticks:
            return _EMPTY
        rows = np.array(list(ticks.values()), dtype=np.int64)
        return MinuteCounts(list(ticks), *rows.T)

    def _take(self, decision: Decision) -> None:
        if decision.action == "resolve":
            self._episodes.pop(decision.episode_id).resolved_at = decision.at
            return
        stories = self._evidence(decision)
        alert = BacktestAlert(
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
        before = self._episodes.get(decision.episode_id)
        self._episodes[decision.episode_id] = alert
        if before is None:
            self.alerts.append(alert)
        else:
            self.alerts[self.alerts.index(before)] = alert

    def _evidence(self, decision: Decision) -> list[Story]:
        """The stories of the sort that surges that were counted in the decision's window, the latest first."""
        end = epoch_ms(decision.at)
        start = end - decision.window_minutes * MINUTE_MS
        keys = [decision.key]
        if decision.key == MARKET:
            keys = [key for key in self._stories if key.startswith(TOPIC)]
        within = [
            story
            for key in keys
            for story in self._stories.get(key, {}).values()
            if start <= story.minute * MINUTE_MS < end and _is_of(story, decision.surge)
        ]
        return sorted(within, key=lambda story: (-story.first.at, story.id))

    def _forget_stories(self, now: int) -> None:
        for key in list(self._stories):
            recent = {s.id: s for s in self._stories[key].values() if s.minute * MINUTE_MS >= now - self._memory_ms}
            if recent:
                self._stories[key] = recent
            else:
                del self._stories[key]


def _is_of(story: Story, surge: str) -> bool:
    """Whether a surge of this sort is made of such stories."""
    return surge == VOLUME or (story.first.negative if surge == NEGATIVE else story.first.positive)


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


class History(msgspec.Struct, frozen=True):
    """What a replay without known surges of a sort tells of false alarms: peaks of excursions, and key-days judged."""

    peaks: tuple[float, ...]
    key_days: float
    surge: str = NEGATIVE

    def bar(self, budget: float) -> float:
        """The score to alert at for `budget` false alarms per key and day. Raises `ValueError` without key-days."""
        return bar_from_history(self.peaks, self.key_days, budget)


def measure_history(items: Iterable[ScoredItem], counting: CountingConfig, judging: JudgeConfig) -> History:
    """`measure_histories` of one sort."""
    return measure_histories(items, counting, [judging])[0]


def measure_histories(
    items: Iterable[ScoredItem], counting: CountingConfig, judging: Sequence[JudgeConfig]
) -> list[History]:
    """Replay a history, once for all judges; its first `WARM_DAYS` days, or third if that is less, are not counted."""
    replay = Backtest(counting, *judging)
    for item in items:
        replay.add(item)
    replay.finish()
    return [_history(watch, replay.first_minute) for watch in replay.watches]


def _history(watch: Watch, begin: int) -> History:
    end, key_days = watch.key_days[-1]
    warm = begin + min(WARM_DAYS * 24 * 60, (end - begin) // 3)
    # Key-days are known at midnights: peaks are taken from the same one on.
    since, before = max((known for known in watch.key_days if known[0] <= warm), default=(begin, 0.0))
    peaks = tuple(peak for minute, peak in watch.peaks if minute >= since)
    return History(peaks, key_days - before, watch.judge.config.surge)
