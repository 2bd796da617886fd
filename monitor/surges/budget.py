"""The bar: which score to alert at, so that false alarms stay within a budget per key and day.

What is counted are the peaks of excursions (`monitor.surges.episodes`): with the bar at x, the peaks above x are the
alarms. The shape of their tail is shipped; its height is learned from the many low peaks, among which surges hardly
count: from a replay without known surges, if there is one, and then online. The few high peaks of a replay would tell
the steepness, too, but those of another stream are more of a guess than the shipped tail (docs/surges.md).

One count series has a tail of its own: from its earlier peaks height and steepness are learned by the highest. On the
scale of the shipped tail the excess over a threshold is exponential, its mean (Hill's estimator) is held to the
shipped tail's.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from typing import Any, Final

__all__ = ["HISTORY_PEAKS", "TOPICS_HEIGHT", "AlarmRate", "aim", "bar_from_history", "height_from_history"]

# The alarms aimed at, as a part of the budget. Peaks that lie in a surge are no false alarms, so that a stream with
# surges has fewer than a history with the same bar: see docs/surges.md.
# At the smaller budgets precision has room and recall has not.
AIMS: Final = ((0.001, 0.95), (0.01, 0.8))
# The shipped tail: log10 of the peaks above score x per key and day, measured on streams without surges. That of
# positive stories lies .07 higher and that of volumes .2, both as steep, and the height is learned.
TAIL: Final = (
    (1.5, -0.65),
    (2.0, -1.02),
    (2.5, -1.38),
    (3.0, -1.76),
    (3.5, -2.19),
    (4.0, -2.58),
    (4.5, -3.02),
    (5.0, -3.47),
)
# How many times as many peaks a topic has as a ticker, a changing mix of keys as it is, until its own are known.
TOPICS_HEIGHT: Final = 2.5
LOWEST, HIGHEST = 1.0, 30.0
# The low peaks by which the tail's height is learned.
BAND: Final = (1.5, 2.5)
PRIOR_PEAKS: Final = 20.0
# A height from a history counts as much as this many low peaks, two weeks of what 200 keys show: in a stream with
# surges low peaks are fewer, and a bar learned from them alone is too low.
HISTORY_PEAKS: Final = 500.0
TOP_PEAKS: Final = 60
# The shipped tail's steepness counts as much as this many peaks: one replay's highest few are chance.
TAIL_PEAKS: Final = 50.0


def aim(budget: float) -> float:
    """The part of a budget that is aimed at."""
    (small, high), (large, low) = AIMS
    part = math.log(budget / small) / math.log(large / small)
    return high + (low - high) * min(max(part, 0.0), 1.0)


def tail_rate(score: float) -> float:
    """Peaks above `score` per key and day by the shipped tail, log-linear between and beyond its points."""
    (x0, y0), (x1, y1) = _segment(bisect_right(TAIL, score, key=lambda point: point[0]))
    return float(10.0 ** (y0 + (score - x0) * (y1 - y0) / (x1 - x0)))


def _tail_score(rate: float) -> float:
    """The score above which the shipped tail has this rate."""
    height = math.log10(rate)
    (x0, y0), (x1, y1) = _segment(bisect_right(TAIL, -height, key=lambda point: -point[1]))
    return min(max(x0 + (height - y0) * (x1 - x0) / (y1 - y0), LOWEST), HIGHEST)


def _segment(after: int) -> tuple[tuple[float, float], tuple[float, float]]:
    """The points of the tail before and from number `after`, the outermost ones beyond its ends."""
    last = max(1, min(len(TAIL) - 1, after))
    return TAIL[last - 1], TAIL[last]


def bar_from_history(peaks: Sequence[float], key_days: float, budget: float) -> float:
    """The bar for `budget` false alarms per key and day, from the excursions' peaks of a replay of `key_days`.

    Raises `ValueError` when the replay holds no key-days at all.
    """
    if key_days <= 0.0:
        raise ValueError("a history without key-days sets no bar")
    wanted = aim(budget) * budget * key_days
    ordered = sorted(peaks, reverse=True)
    top = min(len(ordered) - 1, max(TOP_PEAKS, math.ceil(1.5 * wanted)))
    if top < 10:
        # Too little to see a tail: the shipped one, its height from what there is.
        rate = AlarmRate(half_life_days=math.inf)
        rate.pass_days(key_days)
        for peak in ordered:
            rate.peak(peak)
        return rate.bar(budget)
    if wanted >= top:
        return max(LOWEST, ordered[top])
    heights = [-math.log(tail_rate(peak)) for peak in ordered[: top + 1]]
    excess = sum(height - heights[top] for height in heights[:top]) / top
    excess = (top * excess + TAIL_PEAKS) / (top + TAIL_PEAKS)
    return max(LOWEST, _tail_score(math.exp(-heights[top] - excess * math.log(top / wanted))))


def height_from_history(peaks: Sequence[float], key_days: float) -> float:
    """How many times as high the tail is as the shipped one, from the excursions' peaks of a replay of `key_days`.

    Raises `ValueError` when the replay holds no key-days at all.
    """
    if key_days <= 0.0:
        raise ValueError("a history without key-days tells nothing")
    rate = AlarmRate(half_life_days=math.inf)
    rate.pass_days(key_days)
    for peak in peaks:
        rate.peak(peak)
    return rate.height


class AlarmRate:
    """Learns online how high the tail of peaks is, and with it the bar. Looks at what has ended only.

    Until there are peaks it is `height` times as high as the shipped one, which counts as much as `weight` peaks.
    """

    def __init__(self, half_life_days: float, height: float = 1.0, weight: float = PRIOR_PEAKS) -> None:
        self._half_life = half_life_days
        self._begin = height
        self._weight = weight
        self.peaks = 0.0
        self.key_days = 0.0

    def pass_days(self, key_days: float, days: float = 0.0) -> None:
        """`days` of event time have passed in which `key_days` were judged."""
        keep = 0.5 ** (days / self._half_life)
        self.peaks *= keep
        self.key_days = self.key_days * keep + key_days

    def peak(self, score: float) -> None:
        """An excursion ended with this peak."""
        if BAND[0] <= score < BAND[1]:
            self.peaks += 1.0

    @property
    def height(self) -> float:
        """How many times as high the tail is as the shipped one."""
        shipped = tail_rate(BAND[0]) - tail_rate(BAND[1])
        return (self.peaks + self._weight) / (self.key_days * shipped + self._weight / self._begin)

    def bar(self, budget: float) -> float:
        """The score above which the peaks are expected to number `budget` per key and day, or the part aimed at."""
        return max(LOWEST, _tail_score(aim(budget) * budget / self.height))

    def state(self) -> dict[str, Any]:
        """For a snapshot."""
        return {"peaks": self.peaks, "key_days": self.key_days}

    def load(self, state: dict[str, Any]) -> None:
        """Take over what `state` returned."""
        self.peaks, self.key_days = float(state["peaks"]), float(state["key_days"])
