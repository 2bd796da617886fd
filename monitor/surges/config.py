"""What the judge goes by."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from monitor.surges.season import BLOCK_MINUTES
from monitor.surges.sorts import NEGATIVE, SURGES, detector

if TYPE_CHECKING:
    from monitor.settings import Settings

__all__ = ["JudgeConfig"]


class JudgeConfig(msgspec.Struct, frozen=True, kw_only=True):
    """What the judge goes by. Measured defaults; see docs/surges.md for what each is worth.

    `budget` is the number of false alarms allowed per key and day; `bar` a fixed score to alert at, None: set online;
    `height` how many times as high as the shipped one a history has found the tail of peaks (`monitor.surges.budget`),
    None: there is none; `heights` those of each sort of surge that has one. Windows, calm and hold-off are in minutes;
    the longest window must be whole blocks of 15 minutes.
    `surge` is the sort of surge that is looked for (`monitor.surges.sorts`), `rule` what its judge is called.
    A volume wanders off its level by a variance of `volume_wander` in `level_minutes`, by less in shorter windows.
    A key's share of negatives wanders by a variance of `share_wander` a day, in log odds.
    A window's say is its length to the power `window_weight`: the shorter a window, the more chances it gets a day.
    """

    rule: str = detector(NEGATIVE)
    surge: str = NEGATIVE
    budget: float = 0.01
    bar: float | None = None
    height: float | None = None
    heights: tuple[tuple[str, float], ...] = ()
    windows: tuple[int, ...] = (15, 30, 60, 120, 240, 480)
    window_weight: float = 0.75
    min_stories: int = 3
    min_age_minutes: int = 24 * 60
    calm_score: float = 1.5
    calm_minutes: int = 60
    hold_off_minutes: int = 0
    rate_half_life_days: float = 10.0
    share_wander: float = 0.02
    share_stories: float = 15.0
    season_half_life_days: float = 40.0
    season_day_stories: float = 20.0
    season_week_stories: float = 40.0
    level_minutes: float = 480.0
    level_shape: float = 8.0
    dispersion: float = 0.01
    pooled_dispersion: float = 0.03
    volume_wander: float = 0.1
    burst_probability: float = 0.02
    burst_mean: float = 5.0
    burst_shape: float = 1.0
    alarm_half_life_days: float = 14.0

    def __post_init__(self) -> None:
        if not self.windows or max(self.windows) % BLOCK_MINUTES or min(self.windows) < 1:
            raise ValueError(f"the longest window must be a multiple of {BLOCK_MINUTES} minutes, all at least 1")
        if not self.budget > 0.0:
            raise ValueError("the budget must be above 0")
        if self.surge not in SURGES:
            raise ValueError(f"the sort of surge must be one of {', '.join(SURGES)}")

    def watching(self, surge: str) -> JudgeConfig:
        """The same for another sort of surge, with the height of that sort if there is one."""
        height = dict(self.heights).get(surge, self.height)
        return msgspec.structs.replace(self, surge=surge, rule=detector(surge), height=height)

    @classmethod
    def of(cls, settings: Settings) -> JudgeConfig:
        """From the settings of this installation."""
        return cls(budget=settings.surge_budget)
