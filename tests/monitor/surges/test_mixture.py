"""The statistic against scipy's distributions."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import integrate, stats

from monitor.surges.mixture import (
    Burst,
    Calm,
    mid_p,
    mixture,
    negative_binomial_log_pmf,
    negative_binomial_tail,
)

means, shapes = st.floats(0.001, 500.0), st.floats(0.05, 200.0)


def law(mean: float, shape: float) -> stats.distributions.rv_frozen:
    return stats.nbinom(shape, shape / (shape + mean))


@given(st.integers(0, 200), means, shapes)
def test_the_tail_is_the_negative_binomials(y: int, mean: float, shape: float) -> None:
    got = float(negative_binomial_tail(np.array(float(y)), np.array(mean), np.array(shape)))
    assert got == pytest.approx(float(law(mean, shape).sf(y - 1)), rel=1e-6, abs=1e-290)


@given(st.integers(0, 200), means, shapes)
def test_the_log_pmf_is_the_negative_binomials(y: int, mean: float, shape: float) -> None:
    got = float(negative_binomial_log_pmf(np.array(float(y)), np.array(mean), np.array(shape)))
    assert got == pytest.approx(float(law(mean, shape).logpmf(y)), rel=1e-6, abs=1e-8)


def test_mid_p_is_the_tail_less_half_the_point() -> None:
    expected = law(2.5, 3.0).sf(6) + 0.5 * law(2.5, 3.0).pmf(6)
    assert float(mid_p(np.array(6.0), np.array(2.5), np.array(3.0))) == pytest.approx(float(expected), rel=1e-10)


def test_the_calm_law_is_the_gamma_poisson_predictive() -> None:
    """With no burst: integrate Poisson tails over the level's posterior given z, numerically."""
    y, z, mu_y, mu_z, shape, rate = 7.0, 12.0, 2.0, 9.0, 8.0, 10.0
    posterior = stats.gamma(shape + z, scale=1.0 / (rate + mu_z))

    def tail(level: float) -> float:
        poisson = stats.poisson(mu_y * level)
        return float((poisson.sf(y) + 0.5 * poisson.pmf(y)) * posterior.pdf(level))

    expected = integrate.quad(tail, 0.0, 10.0)[0]
    got = mixture(
        *map(np.array, (y, z, mu_y, mu_z)), Calm(np.array(shape), np.array(rate)), np.array(0.0), Burst(1e-12, 5.0, 1.0)
    )
    assert float(got.p) == pytest.approx(expected, rel=1e-6)
    assert float(got.expected) == pytest.approx(mu_y * (shape + z) / (rate + mu_z), rel=1e-9)


def test_the_burst_is_weighed_by_bayes_rule() -> None:
    z, mu_z, burst = 60.0, 9.0, Burst(0.02, 5.0, 1.0)
    got = mixture(*map(np.array, (20.0, z, 2.0, mu_z)), Calm(np.array(8.0), np.array(8.0)), np.array(0.0), burst)
    likely, unlikely = 0.02 * law(mu_z * 5.0, 1.0).pmf(z), 0.98 * law(mu_z, 8.0).pmf(z)
    assert float(got.burst) == pytest.approx(float(likely / (likely + unlikely)), rel=1e-6)
    # In a burst the negatives are held against the others of the window: 20 beside 60 where 2 : 9 is usual.
    assert float(got.burst) > 0.99
    assert float(got.expected) == pytest.approx(2.0 * 61.0 / (0.2 + 9.0), rel=0.01)


def test_volume_alone_is_no_surprise_and_negatives_alone_are() -> None:
    calm, burst, none = Calm(np.array(8.0), np.array(8.0)), Burst(0.02, 5.0, 1.0), np.array(0.01)
    volume = mixture(*map(np.array, (24.0, 96.0, 2.0, 8.0)), calm, none, burst)
    negatives = mixture(*map(np.array, (24.0, 8.0, 2.0, 8.0)), calm, none, burst)
    assert float(volume.p) > 0.1
    assert float(negatives.p) < 1e-6


@given(st.integers(0, 50), st.integers(0, 50), st.floats(0.01, 50.0), st.floats(0.01, 50.0))
def test_more_negatives_are_never_less_surprising(y: int, z: int, mu_y: float, mu_z: float) -> None:
    calm, burst = Calm(np.array(8.0), np.array(8.0)), Burst(0.02, 5.0, 1.0)
    low, high = (
        float(mixture(*map(np.array, (float(n), float(z), mu_y, mu_z)), calm, np.array(0.01), burst).p)
        for n in (y, y + 1)
    )
    assert 0.0 < high <= low <= 1.0
