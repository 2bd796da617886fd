"""The bar: from a history's peaks, and online."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest

from monitor.surges.budget import AlarmRate, aim, bar_from_history, height_from_history, tail_rate


@pytest.mark.parametrize("budget", [0.01, 0.001])
@pytest.mark.parametrize("steepness", [0.75, 0.85, 1.0])
def test_the_bar_of_an_exponential_tail_is_found(budget: float, steepness: float) -> None:
    """Peaks above x number 0.2 * 10^-steepness (x - 1.5) a key-day: the bar follows, also beyond the data, and where
    the tail is not the shipped one."""
    key_days = 3000.0
    rates = []
    for seed in range(20):
        scale = 1.0 / math.log(10.0) / steepness
        peaks = 1.5 + np.random.default_rng(seed).exponential(scale, round(0.2 * key_days))
        bar = bar_from_history(peaks.tolist(), key_days, budget)
        rates.append(math.log10(0.2) - steepness * (bar - 1.5))
    assert np.mean(rates) == pytest.approx(math.log10(aim(budget) * budget), abs=0.18)
    assert np.std(rates) < 0.2


def test_a_smaller_budget_has_a_higher_bar() -> None:
    peaks = [1.5 + 0.01 * i for i in range(200)]
    bars = [bar_from_history(peaks, 1000.0, budget) for budget in (0.1, 0.03, 0.01, 0.003, 0.001)]
    assert bars == sorted(bars)


def test_a_history_without_key_days_is_refused() -> None:
    with pytest.raises(ValueError, match="key-days"):
        bar_from_history([], 0.0, 0.01)


def test_the_shipped_tail_falls_all_the_way() -> None:
    rates = [tail_rate(x) for x in np.arange(1.0, 20.0, 0.25)]
    assert all(a > b > 0.0 for a, b in pairwise(rates))


def test_online_the_bar_follows_the_low_peaks_and_hardly_the_high_ones() -> None:
    quiet, usual, busy, surges = (AlarmRate(half_life_days=1e9) for _ in range(4))
    shipped = tail_rate(1.5) - tail_rate(2.5)
    for rate, times in ((quiet, 0.3), (usual, 1.0), (busy, 3.0), (surges, 1.0)):
        rate.pass_days(10_000.0)
        for _ in range(round(10_000 * shipped * times)):
            rate.peak(2.0)
    for _ in range(1000):
        surges.peak(9.0)
    bars = [rate.bar(0.01) for rate in (quiet, usual, busy)]
    assert bars == sorted(bars)
    assert bars[2] > bars[0] + 0.5
    assert tail_rate(bars[1]) == pytest.approx(aim(0.01) * 0.01, rel=0.02)
    assert surges.bar(0.01) == bars[1]


def test_a_kind_that_is_known_to_peak_more_often_has_a_higher_bar_until_it_is_known_itself() -> None:
    usual, higher = AlarmRate(half_life_days=1e9), AlarmRate(half_life_days=1e9, height=2.5)
    assert tail_rate(higher.bar(0.01)) == pytest.approx(tail_rate(usual.bar(0.01)) / 2.5)
    shipped = tail_rate(1.5) - tail_rate(2.5)
    for rate in (usual, higher):
        rate.pass_days(20_000.0)
        for _ in range(round(20_000 * shipped)):
            rate.peak(2.0)
    assert higher.bar(0.01) == pytest.approx(usual.bar(0.01), abs=0.02)


def test_a_height_from_a_history_is_what_the_bar_begins_with_and_goes_on_from() -> None:
    key_days = 3000.0
    shipped = tail_rate(1.5) - tail_rate(2.5)
    height = height_from_history([2.0] * round(2 * key_days * shipped) + [9.0] * 50, key_days)
    assert height == pytest.approx(2.0, rel=0.05)
    known, unknown = AlarmRate(14.0, height, 500.0), AlarmRate(14.0)
    assert tail_rate(known.bar(0.01)) == pytest.approx(tail_rate(unknown.bar(0.01)) / 2.0, rel=0.05)
    for rate in (known, unknown):
        rate.pass_days(200_000.0)
        for _ in range(round(200_000 * shipped)):
            rate.peak(2.0)
    assert known.bar(0.01) == pytest.approx(unknown.bar(0.01), abs=0.01)
    with pytest.raises(ValueError, match="key-days"):
        height_from_history([], 0.0)


def test_a_small_budget_is_made_more_of() -> None:
    assert [round(aim(budget), 3) for budget in (0.5, 0.01, 0.00316, 0.001, 1e-6)] == [0.8, 0.8, 0.875, 0.95, 0.95]
