"""The judge: all keys at once, minute by minute of event time. Pure and deterministic.

    decisions = judge.step(minute, counts)

for every closed minute in turn, also the empty ones. What all keys share (season, common mode, the pool of young
keys, the bar) is part of the judge's state; `snapshot` and `restore` carry it over exactly. The outcome depends
neither on the order of keys inside a minute nor on the process.

A judge watches one sort of surge (`JudgeConfig.surge`); "negatives" here are the stories of that sort, and "others" all
that are not. Where all stories are watched (volume) there are no others, and the count is held against its own level.

The market is a key of its own, the sum over `topic:*`; every item has exactly one topic.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from monitor.surges.baseline import KINDS, PRIOR_SHARE, SUMS, Baseline, kind_of
from monitor.surges.budget import HISTORY_PEAKS, TOPICS_HEIGHT, AlarmRate
from monitor.surges.config import JudgeConfig
from monitor.surges.decisions import Decision, MinuteCounts, Standing, WindowStanding, episode_id
from monitor.surges.episodes import Excursions
from monitor.surges.keys import MARKET
from monitor.surges.season import BLOCK_MINUTES, BLOCKS_A_DAY, Season
from monitor.surges.sightings import Sighting, Sightings, decision_of
from monitor.surges.sorts import VOLUME
from monitor.surges.statistic import Measured, Statistic
from monitor.surges.verdict import verdict_of
from monitor.surges.windows import Arrived, Windows

__all__ = ["Decision", "Judge", "JudgeConfig", "MinuteCounts", "Standing", "WindowStanding"]

Ints = NDArray[np.int64]
Array = NDArray[np.float64]

SNAPSHOT_VERSION: Final = 2
# A key whose discounted stories fell below this, with nothing in its windows, is forgotten.
FORGET_BELOW: Final = 0.01


class Judge:
    """See the module. `on_peak(key, score)` is told the peak of every ended excursion of a key that is no sum of others
    (topics and the market are), for setting a bar; `key_days` counts the days that such keys were judged. `sightings`
    is told what is seen of keys above calm, for a history that is still being measured."""

    def __init__(
        self,
        config: JudgeConfig,
        on_peak: Callable[[str, float], None] | None = None,
        sightings: Sightings | None = None,
    ) -> None:
        self.config = config
        self._on_peak = on_peak
        self._sightings = sightings
        self._minute: int | None = None
        self._names: list[str] = []
        self._index: dict[str, int] = {}
        self._since = np.zeros(0, dtype=np.int64)
        prior_share = 1.0 if config.surge == VOLUME else PRIOR_SHARE
        self._baseline = Baseline(config.rate_half_life_days, config.share_wander, config.share_stories, prior_share)
        self._season = Season(config.season_half_life_days, config.season_day_stories, config.season_week_stories)
        self._windows = Windows(config.windows, config.level_minutes)
        self._excursions = Excursions(config.calm_minutes, config.hold_off_minutes)
        known = (config.height, HISTORY_PEAKS) if config.height is not None else ()
        self._alarms = AlarmRate(config.alarm_half_life_days, *known)
        self._alarms_of_topics = AlarmRate(config.alarm_half_life_days, TOPICS_HEIGHT)
        self._longest = int(np.argmax(config.windows))
        self._statistic = Statistic(config, self._baseline, self._windows)
        self._exposure = 0.0
        self._block_stories = 0.0
        # Discounted stories and exposure of all keys together: the level that season is relative to.
        self._volume = [0.0, 0.0]
        self.bar = self._least_bar_of_topics = 0.0
        self._set_bars()
        self.key_days = 0.0

    @property
    def judged_to(self) -> int | None:
        """The last epoch minute judged; None before the first."""
        return self._minute

    def step(self, minute: int, counts: MinuteCounts) -> list[Decision]:
        """Judge one minute. Raises `ValueError` when it is not the one after the last."""
        if self._minute is not None and minute != self._minute + 1:
            raise ValueError(f"minute {minute} does not follow {self._minute}")
        if self._minute is None or minute % BLOCK_MINUTES == 0:
            self._begin_block(minute)
        self._minute = minute
        arrived = self._arrived(counts)
        self._windows.step(minute, arrived, self._exposure)
        decisions = list(self._decide(minute, arrived))
        decisions.sort(key=lambda decision: (decision.key, decision.action))
        return decisions

    def _arrived(self, counts: MinuteCounts) -> Arrived:
        if not len(counts.keys):
            return _NOTHING
        known = self._index
        self._register(sorted(name for name in counts.keys if name not in known))
        index = np.array([known[name] for name in counts.keys], dtype=np.int64)
        rows = np.array([counts.of(self.config.surge), counts.stories])
        kinds = self._baseline.kinds[index]
        topics = kinds == _TOPICS
        if topics.any():
            if MARKET not in known:
                self._register([MARKET])
            index = np.append(index, known[MARKET])
            rows = np.concatenate([rows, rows[:, topics].sum(axis=1, keepdims=True)], axis=1)
            kinds = np.append(kinds, _MARKETS)
            self._block_stories += float(rows[1, -1])
        else:
            self._block_stories += float(rows[1].sum())
        order = index.argsort()
        totals = np.zeros((2, len(KINDS)), dtype=np.int64)
        for total, row in zip(totals, rows, strict=True):
            np.add.at(total, kinds, row)
        return Arrived(index[order], rows[:, order], totals)

    def _register(self, names: list[str]) -> None:
        if not names:
            return
        for name in names:
            self._index[name] = len(self._names)
            self._names.append(name)
        since = self._minute if self._minute is not None else 0
        self._since = np.concatenate([self._since, np.full(len(names), since, dtype=np.int64)])
        self._baseline.add(np.array([kind_of(name) for name in names], dtype=np.int64))
        self._windows.add(len(names))

    def _begin_block(self, minute: int) -> None:
        """At a quarter of an hour: learn what has left the windows, expect anew, and set the bar."""
        block = minute // BLOCK_MINUTES
        if self._minute is not None:
            days = 1.0 / BLOCKS_A_DAY
            self._windows.settle(minute)
            keep = 0.5 ** (days / self.config.rate_half_life_days)
            stories, exposure = self._volume
            if exposure > 0.0:
                self._season.learn(block - 1, self._block_stories, stories / exposure * days)
            self._volume = [stories * keep + self._block_stories, exposure * keep + self._exposure * BLOCK_MINUTES]
            self._block_stories = 0.0
            lag = max(self.config.windows) // BLOCK_MINUTES
            seen, negatives, left = self._windows.block(block - lag - 1)
            self._baseline.learn(seen, negatives, left, days)
            old = minute - self._since >= self.config.min_age_minutes
            kinds = self._baseline.kinds[old]
            judged = int(np.count_nonzero(~SUMS[kinds])) * days
            self.key_days += judged
            self._alarms.pass_days(judged, days)
            self._alarms_of_topics.pass_days(int(np.count_nonzero(kinds == _TOPICS)) * days, days)
            if block % BLOCKS_A_DAY == 0:
                self._forget()
            self._set_bars()
        if self._sightings is not None:
            self._sightings.learned(minute, self._alarms)
        self._exposure = self._season.factor(block) / (24 * 60)
        self._statistic.begin_block()

    def _set_bars(self) -> None:
        """A topic is a changing mix of keys and surprises more often: it is held to the bar of its own kind."""
        config = self.config
        self.bar = config.bar if config.bar is not None else max(self._alarms.bar(config.budget), config.calm_score)
        self._least_bar_of_topics = self._alarms_of_topics.bar(config.budget)

    @property
    def bar_of_topics(self) -> float:
        """The score that topics alert at."""
        return max(self.bar, self._least_bar_of_topics)

    def _least_bar_of(self, key: int) -> float:
        return self._least_bar_of_topics if self._baseline.kinds[key] == _TOPICS else 0.0

    def _forget(self) -> None:
        """Drop the keys that have not been heard of for so long that nothing is known of them any more."""
        keep = (self._baseline.rate_stories >= FORGET_BELOW) | (self._windows.counts[1, self._longest] > 0)
        # Before it leaves the longest window a story is not in the baseline.
        keep |= self._since > (self._minute or 0) - max(self.config.windows) - 2 * BLOCK_MINUTES
        keep[list(self._excursions.under_way)] = True
        keep[list(self._excursions.held_off)] = True
        if keep.all():
            return
        new = np.cumsum(keep) - 1
        self._names = [name for name, kept in zip(self._names, keep, strict=True) if kept]
        self._index = {name: index for index, name in enumerate(self._names)}
        self._since = self._since[keep]
        self._baseline.keep(keep)
        self._windows.keep(keep)
        self._excursions.renumber(new)

    def _decide(self, minute: int, arrived: Arrived) -> Iterator[Decision]:
        """Looks at the keys that negative stories came for, and at those in an excursion: it takes news to raise an
        alarm, not the lack of it, and all other keys cost nothing."""
        config, excursions = self.config, self._excursions
        index = arrived.keys[arrived.counts[0] > 0]
        if excursions.under_way:
            index = np.array(sorted({*index.tolist(), *excursions.under_way}), dtype=np.int64)
        enough = self._windows.counts[0, self._longest, index] >= config.min_stories
        enough &= minute - self._since[index] >= config.min_age_minutes
        index = index[enough]
        if len(index):
            measured = self._statistic.measure(index)
            for position in np.flatnonzero(measured.score >= config.calm_score).tolist():
                key, row = int(index[position]), int(measured.window[position])
                sighting = self._sighting(minute, key, row, measured, position)
                bar = max(self.bar, sighting.least_bar)
                made = excursions.above(minute, key, sighting.score, row, bar)
                if self._sightings is not None:
                    self._sightings.saw(sighting)
                if made is not None:
                    yield decision_of(config, made[0], minute, made[1], sighting)
        for key, excursion in sorted(excursions.ended(minute), key=lambda pair: self._names[pair[0]]):
            self._note_peak(key, excursion.peak)
            if self._sightings is not None:
                self._sightings.ended(minute, self._names[key])
            if excursion.fired >= 0:
                measured = self._statistic.measure(np.array([key], dtype=np.int64))
                sighting = self._sighting(minute, key, excursion.window, measured, 0)
                yield decision_of(config, "resolve", minute, excursion, sighting)

    def _sighting(self, minute: int, key: int, row: int, measured: Measured, position: int) -> Sighting:
        return Sighting(
            minute,
            self._names[key],
            float(measured.score[position]),
            row,
            int(measured.negatives[row, position]),
            int(measured.stories[row, position]),
            float(measured.expected[row, position]),
            float(self._baseline.share[key]),
            self._least_bar_of(key),
        )

    def _note_peak(self, key: int, peak: float) -> None:
        """Sums of keys are few, and hold their keys' surges: the bar is set by the keys themselves."""
        kind = self._baseline.kinds[key]
        if kind == _TOPICS:
            self._alarms_of_topics.peak(peak)
        if SUMS[kind]:
            return
        self._alarms.peak(peak)
        if self._on_peak is not None:
            self._on_peak(self._names[key], peak)

    def peaks_under_way(self) -> list[float]:
        """Peaks of the excursions that have not ended, for setting a bar at the end of a replay."""
        kinds = self._baseline.kinds
        return sorted(e.peak for index, e in self._excursions.under_way.items() if not SUMS[kinds[index]])

    def firing(self) -> set[str]:
        """Ids of the episodes that have fired and not resolved."""
        under_way = self._excursions.under_way.items()
        return {episode_id(self.config.rule, self._names[key], e.start) for key, e in under_way if e.fired >= 0}

    def explain(self, key: str) -> Standing:
        """Why `key` fires or does not, as of the last minute judged."""
        index = self._index.get(key)
        if index is None or self._minute is None:
            reason = "Nothing was counted for this key yet."
            return Standing(
                surge=self.config.surge, key=key, verdict="unknown", reason=reason, score=0.0, bar=self.bar, windows=()
            )
        measured = self._statistic.measure(np.array([index], dtype=np.int64))
        score = float(measured.score[0])
        windows = tuple(
            WindowStanding(
                minutes=minutes,
                stories=int(measured.stories[row, 0]),
                observed=int(measured.negatives[row, 0]),
                expected=float(measured.expected[row, 0]),
                expected_share=float(self._baseline.share[index]),
                common=float(measured.common[row, 0]),
                burst=float(measured.burst[row, 0]),
                p_value=float(measured.p[row, 0]),
            )
            for row, minutes in enumerate(self.config.windows)
        )
        excursion, bar = self._excursions.under_way.get(index), max(self.bar, self._least_bar_of(index))
        verdict, reason = verdict_of(
            self.config,
            fired=excursion.fired if excursion is not None else -1,
            age=self._minute - int(self._since[index]),
            score=score,
            bar=bar,
            windows=windows,
            best=windows[int(measured.window[0])],
        )
        return Standing(
            surge=self.config.surge,
            key=key,
            verdict=verdict,
            reason=reason,
            score=score,
            bar=bar,
            windows=windows,
        )

    def snapshot(self) -> bytes:
        """The whole state; `restore` gives a judge that decides bit for bit the same."""
        return msgspec.msgpack.encode(
            {
                "version": SNAPSHOT_VERSION,
                "config": msgspec.to_builtins(self.config),
                "minute": self._minute,
                "names": self._names,
                "since": self._since.tobytes(),
                "baseline": self._baseline.state(),
                "season": self._season.state(),
                "windows": self._windows.state(),
                "excursions": self._excursions.state(),
                "alarms": self._alarms.state(),
                "alarms_of_topics": self._alarms_of_topics.state(),
                "exposure": self._exposure,
                "block_stories": self._block_stories,
                "volume": self._volume,
                "common": self._statistic.common.state(),
                "bars": [self.bar, self._least_bar_of_topics],
                "key_days": self.key_days,
            }
        )

    @classmethod
    def restore(
        cls, config: JudgeConfig, snapshot: bytes, on_peak: Callable[[str, float], None] | None = None
    ) -> Judge:
        """The judge that made `snapshot`. Raises `ValueError` when it was made by another configuration or version:
        judge again from the stored ticks then."""
        state: dict[str, Any] = msgspec.msgpack.decode(snapshot)
        made_by = state.get("config")
        if state.get("version") != SNAPSHOT_VERSION or made_by != msgspec.json.decode(msgspec.json.encode(config)):
            raise ValueError("the snapshot was made by another configuration or version of the judge")
        judge = cls(config, on_peak)
        judge._minute = state["minute"]
        judge._names = list(state["names"])
        judge._index = {name: index for index, name in enumerate(judge._names)}
        judge._since = np.frombuffer(state["since"], dtype=np.int64).copy()
        judge._baseline.load(state["baseline"])
        judge._season.load(state["season"])
        judge._windows.load(state["windows"])
        judge._excursions.load(state["excursions"])
        judge._alarms.load(state["alarms"])
        judge._alarms_of_topics.load(state["alarms_of_topics"])
        judge._exposure = float(state["exposure"])
        judge._block_stories = float(state["block_stories"])
        judge._volume = [float(value) for value in state["volume"]]
        judge._statistic.common.load(state["common"])
        judge.bar, judge._least_bar_of_topics = map(float, state["bars"])
        judge.key_days = float(state["key_days"])
        return judge


_TOPICS, _MARKETS = KINDS.index("topic"), KINDS.index("market")
_NONE = np.zeros(0, dtype=np.int64)
_NOTHING = Arrived(_NONE, np.zeros((2, 0), dtype=np.int64), np.zeros((2, len(KINDS)), dtype=np.int64))
