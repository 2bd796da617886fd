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
from datetime import UTC, datetime, timedelta
from typing import Any, Final, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from monitor.surges.baseline import KINDS, PRIOR_SHARE, Baseline, kind_of
from monitor.surges.budget import AlarmRate, tail_of
from monitor.surges.config import JudgeConfig
from monitor.surges.decisions import Action, Decision, MinuteCounts, Standing, WindowStanding, episode_id
from monitor.surges.episodes import Excursion, Excursions
from monitor.surges.keys import MARKET, TOPIC
from monitor.surges.mixture import Burst, Calm, gamma_poisson, mixture
from monitor.surges.season import BLOCK_MINUTES, BLOCKS_A_DAY, Season
from monitor.surges.sorts import VOLUME, stories_of
from monitor.surges.windows import Arrived, Windows

__all__ = ["Decision", "Judge", "JudgeConfig", "MinuteCounts", "Standing", "WindowStanding"]

Ints = NDArray[np.int64]
Array = NDArray[np.float64]

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
SNAPSHOT_VERSION: Final = 1
# Common mode: how much a whole kind of keys may be up, and the imagined stories that hold it to 1.
MAX_COMMON, COMMON_STORIES = 20.0, 5.0
# A key whose discounted stories fell below this, with nothing in its windows, is forgotten.
FORGET_BELOW: Final = 0.01
MAX_SCORE: Final = 300.0


class _Measured(NamedTuple):
    """Arrays (windows, keys measured) but for `score`, `window` (keys measured,). p is 1 where there is too little.

    `window` is the row of the window that has most to say."""

    negatives: Array
    stories: Array
    expected: Array
    common: Array
    burst: Array
    p: Array
    score: Array
    window: Ints


class Judge:
    """See the module. `on_peak(key, score)` is told the peak of every ended excursion of a key that is no sum of others
    (topics and the market are), for setting a bar; `key_days` counts the days that such keys were judged."""

    def __init__(self, config: JudgeConfig, on_peak: Callable[[str, float], None] | None = None) -> None:
        self.config = config
        self._on_peak = on_peak
        self._minute: int | None = None
        self._names: list[str] = []
        self._index: dict[str, int] = {}
        self._since = np.zeros(0, dtype=np.int64)
        self._volume_alone = config.surge == VOLUME
        prior_share = 1.0 if self._volume_alone else PRIOR_SHARE
        self._baseline = Baseline(
            config.rate_half_life_days, config.share_half_life_days, config.share_stories, prior_share
        )
        self._season = Season(config.season_half_life_days, config.season_day_stories, config.season_week_stories)
        self._windows = Windows(config.windows, config.level_minutes)
        self._excursions = Excursions(config.calm_minutes, config.hold_off_minutes)
        self._alarms = AlarmRate(config.alarm_half_life_days, tail_of(config.surge))
        self._longest = int(np.argmax(config.windows))
        weights = np.array(config.windows, dtype=np.float64) ** config.window_weight
        self._weights: Array = weights / weights.sum()
        # Where there are no others to tell the level of the window itself, it wanders the more the longer that is.
        wander = config.volume_wander if self._volume_alone else 0.0
        self._wander: Array = wander * np.array(config.windows, dtype=np.float64) / config.level_minutes
        # A topic or the market is a changing mix of keys, so that its share wanders more than any one's.
        self._dispersion = np.where(_SUMS, config.pooled_dispersion, config.dispersion)
        self._burst = Burst(config.burst_probability, config.burst_mean, config.burst_shape)
        self._exposure = 0.0
        self._block_stories = 0.0
        # Discounted stories and exposure of all keys together: the level that season is relative to.
        self._volume = [0.0, 0.0]
        self._pooled = np.zeros((len(KINDS), 2))
        self.bar = config.bar if config.bar is not None else self._alarms.bar(config.budget)
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
        order = sorted(range(len(counts.keys)), key=counts.keys.__getitem__)
        names = [counts.keys[i] for i in order]
        stories, negatives = counts.stories[order], counts.of(self.config.surge)[order]
        topics = [i for i, name in enumerate(names) if name.startswith(TOPIC)]
        if topics:
            names.append(MARKET)
            stories = np.append(stories, stories[topics].sum())
            negatives = np.append(negatives, negatives[topics].sum())
            self._block_stories += float(stories[-1])
        else:
            self._block_stories += float(stories.sum())
        self._register([name for name in names if name not in self._index])
        index = np.array([self._index[name] for name in names], dtype=np.int64)
        order_by_index = np.argsort(index)
        index, stories, negatives = index[order_by_index], stories[order_by_index], negatives[order_by_index]
        totals = np.zeros((len(KINDS), 2), dtype=np.int64)
        np.add.at(totals, self._baseline.kinds[index], np.stack([negatives, stories], axis=1))
        return Arrived(index, stories, negatives, totals)

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
            judged = float(np.count_nonzero(old & ~_SUMS[self._baseline.kinds])) * days
            self.key_days += judged
            self._alarms.pass_days(judged, days)
            if block % BLOCKS_A_DAY == 0:
                self._forget()
            if self.config.bar is None:
                self.bar = max(self._alarms.bar(self.config.budget), self.config.calm_score)
        self._exposure = self._season.factor(block) / (24 * 60)
        for column, rates in enumerate((self._baseline.negatives, self._baseline.others)):
            self._pooled[:, column] = np.bincount(self._baseline.kinds, weights=rates, minlength=len(KINDS))

    def _forget(self) -> None:
        """Drop the keys that have not been heard of for so long that nothing is known of them any more."""
        keep = (self._baseline.rate_stories >= FORGET_BELOW) | (self._windows.stories[self._longest] > 0)
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

    def _measure(self, index: Ints) -> _Measured:
        """The statistic for the keys of `index`."""
        config, baseline, windows = self.config, self._baseline, self._windows
        negatives = windows.negatives[:, index].astype(np.float64)
        stories = windows.stories[:, index].astype(np.float64)
        others = stories - negatives
        exposure = windows.exposure[:, None]
        mu_y, mu_z = exposure * baseline.negatives[index], exposure * baseline.others[index]
        # Common mode: what the other keys of its kind do just now, in negatives and in other stories.
        kinds = baseline.kinds[index]
        totals = windows.totals[:, kinds].astype(np.float64)
        pooled = exposure[:, :, None] * self._pooled[kinds]
        common_y = _common(totals[:, :, 0] - negatives, pooled[:, :, 0] - mu_y)
        common_z = _common(totals[:, :, 1] - totals[:, :, 0] - others, pooled[:, :, 1] - mu_z)
        mu_y, mu_z = mu_y * common_y, mu_z * common_z
        expected, burst, p = mu_y.copy(), np.zeros_like(mu_y), np.ones_like(mu_y)
        calm = Calm(
            config.level_shape + windows.level_of(index),
            config.level_shape + windows.level_exposure[:, None] * baseline.rate[index],
        )
        # Only what may turn out surprising is worth the special functions.
        usual = mu_y * (calm.shape + others) / (calm.rate + mu_z)
        enough = (negatives >= config.min_stories) & (negatives > usual + np.sqrt(usual)) & (usual > 0.0)
        if not self._volume_alone:
            enough &= mu_z > 0.0
        if enough.any():
            y, level = negatives[enough], Calm(calm.shape[enough], calm.rate[enough])
            rows, columns = np.nonzero(enough)
            dispersion = (1.0 / baseline.share_weight[index] + self._dispersion[kinds])[columns] + self._wander[rows]
            result = (
                gamma_poisson(y, mu_y[enough], level, dispersion)
                if self._volume_alone
                else mixture(y, others[enough], mu_y[enough], mu_z[enough], level, dispersion, self._burst)
            )
            p[enough], expected[enough], burst[enough] = result.p, result.expected, result.burst
        say = self._weights[:, None] / p
        # Harmonic mean p-value: the windows overlap, and several that agree say more than the best alone.
        score = np.clip(np.log10(say.sum(axis=0)), 0.0, MAX_SCORE)
        return _Measured(negatives, stories, expected, common_y, burst, p, score, say.argmax(axis=0))

    def _decide(self, minute: int, arrived: Arrived) -> Iterator[Decision]:
        """Looks at the keys that negative stories came for, and at those in an excursion: it takes news to raise an
        alarm, not the lack of it, and all other keys cost nothing."""
        config, excursions = self.config, self._excursions
        index = arrived.keys[arrived.negatives > 0]
        if excursions.under_way:
            index = np.union1d(index, np.fromiter(excursions.under_way, dtype=np.int64))
        enough = self._windows.negatives[self._longest, index] >= config.min_stories
        enough &= minute - self._since[index] >= config.min_age_minutes
        index = index[enough]
        if len(index):
            measured = self._measure(index)
            for position in np.flatnonzero(measured.score >= config.calm_score):
                key, score, row = int(index[position]), float(measured.score[position]), int(measured.window[position])
                made = excursions.above(minute, key, score, row, self.bar)
                if made is not None:
                    action, excursion = made
                    yield self._decision(action, minute, key, excursion, measured, int(position))
        for key, excursion in sorted(excursions.ended(minute), key=lambda pair: self._names[pair[0]]):
            self._note_peak(key, excursion.peak)
            if excursion.fired >= 0:
                measured = self._measure(np.array([key], dtype=np.int64))
                yield self._decision("resolve", minute, key, excursion, measured, 0)

    def _decision(
        self, action: Action, minute: int, key: int, excursion: Excursion, measured: _Measured, position: int
    ) -> Decision:
        row = excursion.window
        observed, stories = measured.negatives[row, position], measured.stories[row, position]
        expected, score = float(measured.expected[row, position]), float(measured.score[position])
        return Decision(
            action=action,
            episode_id=episode_id(self.config.rule, self._names[key], excursion.start),
            rule=self.config.rule,
            surge=self.config.surge,
            key=self._names[key],
            at=_time(minute + 1),
            started_at=_time(excursion.start),
            fired_at=_time(excursion.fired + 1),
            window_minutes=self.config.windows[row],
            observed=int(observed),
            expected=expected,
            stories=int(stories),
            share=float(observed / stories) if stories else 0.0,
            expected_share=float(self._baseline.share[key]),
            p_value=10.0**-score,
            score=score,
            severity=excursion.severity,
        )

    def _note_peak(self, key: int, peak: float) -> None:
        """Sums of keys are few, and hold their keys' surges: the bar is set by the keys themselves."""
        if _SUMS[self._baseline.kinds[key]]:
            return
        self._alarms.peak(peak)
        if self._on_peak is not None:
            self._on_peak(self._names[key], peak)

    def peaks_under_way(self) -> list[float]:
        """Peaks of the excursions that have not ended, for setting a bar at the end of a replay."""
        kinds = self._baseline.kinds
        return sorted(e.peak for index, e in self._excursions.under_way.items() if not _SUMS[kinds[index]])

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
        measured = self._measure(np.array([index], dtype=np.int64))
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
        verdict, reason = self._verdict(index, score, windows[int(measured.window[0])])
        return Standing(
            surge=self.config.surge,
            key=key,
            verdict=verdict,
            reason=reason,
            score=score,
            bar=self.bar,
            windows=windows,
        )

    def _verdict(self, index: int, score: float, best: WindowStanding) -> tuple[str, str]:
        excursion = self._excursions.under_way.get(index)
        age = (self._minute or 0) - int(self._since[index])
        if excursion is not None and excursion.fired >= 0:
            return "firing", f"An episode has been firing since {_time(excursion.fired + 1).isoformat()}."
        if age < self.config.min_age_minutes:
            needed = self.config.min_age_minutes / 60
            return "too_young", f"Known for {age / 60:.1f} hours only; it is judged after {needed:.0f}."
        most = int(self._windows.negatives[:, index].max())
        if most < self.config.min_stories:
            needed_stories = self.config.min_stories
            return "too_few_stories", f"{most} {stories_of(self.config.surge)}; an alert needs {needed_stories}."
        there = (
            f"there are {best.stories} stories in {best.minutes} minutes"
            if self._volume_alone
            else f"{best.observed} of {best.stories} stories in {best.minutes} minutes are {self.config.surge}"
        )
        told = f"{there}, where {best.expected:.1f} were expected"
        if score >= self.bar:
            return "above_bar", f"The score {score:.2f} has reached the bar {self.bar:.2f} ({told}), in the hold-off."
        return "below_bar", f"The score {score:.2f} is below the bar {self.bar:.2f}: {told}."

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
                "exposure": self._exposure,
                "block_stories": self._block_stories,
                "volume": self._volume,
                "pooled": self._pooled.tobytes(),
                "bar": self.bar,
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
        judge._exposure = float(state["exposure"])
        judge._block_stories = float(state["block_stories"])
        judge._volume = [float(value) for value in state["volume"]]
        judge._pooled = np.frombuffer(state["pooled"]).reshape(len(KINDS), 2).copy()
        judge.bar = float(state["bar"])
        judge.key_days = float(state["key_days"])
        return judge


_SUMS = np.array([kind in ("topic", "market") for kind in KINDS])
_NONE = np.zeros(0, dtype=np.int64)
_NOTHING = Arrived(_NONE, _NONE, _NONE, np.zeros((len(KINDS), 2), dtype=np.int64))


def _common(observed: Array, expected: Array) -> Array:
    """Observed over expected of all other keys, held to 1 by a few imagined stories, between 1 and `MAX_COMMON`."""
    return np.clip((observed + COMMON_STORIES) / (expected + COMMON_STORIES), 1.0, MAX_COMMON)


def _time(minute: int) -> datetime:
    return _EPOCH + timedelta(minutes=minute)
