"""Season: how much news a time of day and of week brings, pooled over all keys.

Two factors are learned, hour of day and hour of week, each as discounted observed over expected stories of all keys
together, held to 1 by a few imagined stories until there is evidence. Between the middles of two hours the factor is
interpolated. A *block* is a quarter of an hour, counted from 1970; 1970-01-01 was a Thursday, so that hour of week 0
is Thursday 00:00 UTC.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np

__all__ = ["BLOCKS_A_DAY", "BLOCK_MINUTES", "Season"]

BLOCK_MINUTES: Final = 15
BLOCKS_AN_HOUR: Final = 4
BLOCKS_A_DAY: Final = 96
FLOOR: Final = 0.02
DAY, WEEK = 24, 168


class Season:
    """Learned exposure of a block of event time, relative to the mean.

    Parameters
    ----------
    half_life_days : of the discounted sums.
    day_stories, week_stories : imagined stories that hold an hour's factor to 1.
    """

    def __init__(self, half_life_days: float, day_stories: float, week_stories: float) -> None:
        self._day = np.full((2, DAY), day_stories)
        self._week = np.full((2, WEEK), week_stories)
        # An hour of the day is visited by four blocks every day, one of the week by four every week.
        self._day_keep = 0.5 ** (1.0 / (half_life_days * BLOCKS_AN_HOUR))
        self._week_keep = 0.5 ** (7.0 / (half_life_days * BLOCKS_AN_HOUR))
        self._priors = (day_stories, week_stories)

    def _hour(self, hour: int) -> float:
        day, week = self._day[:, hour % DAY], self._week[:, hour % WEEK]
        return max(float(day[0] / day[1]), FLOOR) * max(float(week[0] / week[1]), FLOOR)

    def factor(self, block: int) -> float:
        """Stories to expect in `block`, relative to the mean block."""
        position = (block + 0.5) / BLOCKS_AN_HOUR - 0.5
        hour = int(np.floor(position))
        part = position - hour
        return (1.0 - part) * self._hour(hour) + part * self._hour(hour + 1)

    def learn(self, block: int, observed: float, level: float) -> None:
        """Take up that `block` brought `observed` stories where `level` would be the mean."""
        hour = block // BLOCKS_AN_HOUR
        day, week = self._day[:, hour % DAY], self._week[:, hour % WEEK]
        day_factor = max(float(day[0] / day[1]), FLOOR)
        week_factor = max(float(week[0] / week[1]), FLOOR)
        for sums, keep, prior, other in (
            (day, self._day_keep, self._priors[0], week_factor),
            (week, self._week_keep, self._priors[1], day_factor),
        ):
            # The imagined stories stay; what was seen fades.
            sums -= prior
            sums *= keep
            sums += prior + np.array([observed, level * other])

    def state(self) -> dict[str, Any]:
        """What has been learned, for a snapshot."""
        return {"day": self._day.tobytes(), "week": self._week.tobytes()}

    def load(self, state: dict[str, Any]) -> None:
        """Take over what `state` returned."""
        self._day = np.frombuffer(state["day"]).reshape(2, DAY).copy()
        self._week = np.frombuffer(state["week"]).reshape(2, WEEK).copy()
