"""Season: learned from counts, held to 1 without, interpolated, faded."""

from __future__ import annotations

import numpy as np
import pytest

from monitor.surges.season import BLOCKS_A_DAY, Season


def learned(days: int, stories: float) -> Season:
    season = Season(40.0, 20.0, 40.0)
    for block in range(days * BLOCKS_A_DAY):
        hour, day = block // 4 % 24, block // BLOCKS_A_DAY % 7
        season.learn(block, stories * (2.0 if 8 <= hour < 20 else 0.5) * (0.3 if day >= 5 else 1.3), stories)
    return season


def test_without_evidence_every_hour_is_alike() -> None:
    season = Season(40.0, 20.0, 40.0)
    assert {season.factor(block) for block in range(700)} == {1.0}
    season.learn(0, 3.0, 0.1)
    assert season.factor(1) == pytest.approx(1.0, abs=0.4)


def test_hours_and_weekdays_are_learned() -> None:
    season = learned(28, 100.0)
    at = lambda day, hour: season.factor((28 + day) * BLOCKS_A_DAY + hour * 4 + 2)  # noqa: E731
    assert at(1, 12) / at(1, 2) == pytest.approx(4.0, rel=0.1)
    assert at(5, 12) / at(1, 12) == pytest.approx(0.3 / 1.3, rel=0.15)


def test_the_factor_is_interpolated_between_hours() -> None:
    season = learned(14, 100.0)
    night, day = season.factor(BLOCKS_A_DAY * 14 + 7 * 4 + 1), season.factor(BLOCKS_A_DAY * 14 + 8 * 4 + 2)
    between = season.factor(BLOCKS_A_DAY * 14 + 8 * 4 - 1)
    assert night < between < day


def test_the_state_is_restored_exactly() -> None:
    season, other = learned(9, 7.0), Season(40.0, 20.0, 40.0)
    other.load(season.state())
    assert np.array_equal([season.factor(b) for b in range(700)], [other.factor(b) for b in range(700)])
