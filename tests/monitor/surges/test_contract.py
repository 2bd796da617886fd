"""What every detector promises: the judge of each sort of surge, and the judge of one count series."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from monitor.surges.decisions import MinuteCounts
from monitor.surges.judge import Judge, JudgeConfig
from monitor.surges.series import Row, SeriesJudge
from monitor.surges.sorts import POSITIVE, SURGES

STEPS, WEEK = 480, 7 * 24 * 60
START = 2922 * WEEK
CONFIG = JudgeConfig(windows=(5, 15, 60), min_age_minutes=240, calm_minutes=20, bar=3.5)

Counts = NDArray[np.int64]
# From counts of consecutive steps and the first one's epoch minute: the steps that alarmed, with their scores.
Detector = Callable[[Counts, int], list[tuple[int, float]]]


def of_stories(surge: str, counts: Counts, start: int) -> list[tuple[int, float]]:
    """The counts are one ticker's stories of the sort, beside a quiet ticker; and three other stories in ten minutes,
    of the opposite sort now and then, which count where the volume is watched."""
    judge, alarms = Judge(CONFIG.watching(surge)), []
    keys = ["ticker:A", "ticker:B"]
    for step, number in enumerate(counts):
        other = int(step % 10 < 3)
        row = np.array([number + other, other])
        mine, opposite = np.array([number, 0]), np.array([other * (step % 3 == 0), 0])
        negative, positive = (opposite, mine) if surge == POSITIVE else (mine, opposite)
        decided = judge.step(start + step, MinuteCounts(keys, row, negative, positive))
        alarms += [(step, decision.score) for decision in decided if decision.action == "fire"]
        assert all(0.0 <= decision.score <= 300.0 and 0.0 <= decision.p_value <= 1.0 for decision in decided)
    return alarms


def of_series(counts: Counts, start: int) -> list[tuple[int, float]]:
    judge, alarms = SeriesJudge(0.01), []
    for step, value in enumerate(counts):
        at = datetime.fromtimestamp((start + 5 * step) * 60, UTC)
        scored = judge.step(Row(str(step), at, float(value)))
        assert 0.0 <= scored.anomaly_score <= 1.0
        if scored.anomaly_score > 0.6:
            alarms.append((step, scored.anomaly_score))
    return alarms


def quiet(seed: int) -> Counts:
    return np.random.default_rng(seed).poisson(0.05, STEPS)


def surging(seed: int) -> Counts:
    counts = quiet(seed)
    counts[400:420] += 3
    return counts


detectors = pytest.mark.parametrize(
    "detector",
    [*(pytest.param(partial(of_stories, surge), id=surge) for surge in SURGES), pytest.param(of_series, id="series")],
)


@detectors
def test_a_surge_alarms_and_quiet_does_not(detector: Detector) -> None:
    for seed in range(3):
        assert 400 <= detector(surging(seed), START)[0][0] < 420
        assert detector(quiet(seed), START) == []


@detectors
@settings(max_examples=3, deadline=None)
@given(seed=st.integers(0, 50), cut=st.integers(380, 425))
def test_what_comes_later_changes_nothing_before(detector: Detector, seed: int, cut: int) -> None:
    counts = surging(seed)
    changed = counts.copy()
    changed[cut:] = 40
    late, plain = detector(changed, START), detector(counts, START)
    assert [alarm for alarm in late if alarm[0] < cut] == [alarm for alarm in plain if alarm[0] < cut]


@detectors
@settings(max_examples=2, deadline=None)
@given(seed=st.integers(0, 50), weeks=st.integers(1, 60))
def test_whole_weeks_later_the_alarms_are_the_same(detector: Detector, seed: int, weeks: int) -> None:
    counts = surging(seed)
    assert detector(counts, START + weeks * WEEK) == detector(counts, START)


@detectors
def test_a_larger_surge_scores_no_less(detector: Detector) -> None:
    def highest(size: int) -> float:
        counts = quiet(7)
        counts[400] = size
        return max((score for _, score in detector(counts, START)), default=0.0)

    scores = [highest(size) for size in (1, 4, 8, 16, 64)]
    assert scores == sorted(scores)
    assert scores[-1] > scores[0]


def test_which_day_it_is_does_not_matter_to_a_series() -> None:
    """Its season is of the hour of day alone."""
    assert of_series(surging(1), START + 3 * 24 * 60) == of_series(surging(1), START)
