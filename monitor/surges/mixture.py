"""The statistic: how surprising are y negative stories beside z others in a window?

A key's news comes at a rate that wanders by itself (its *level*, mean 1), and now and then in a burst that has
nothing to do with sentiment. Both move negative and other stories alike, so that the other stories of the window
tell what to expect of the negative ones:

- calm: level ~ Gamma(s, s'), learned before the window; after z others, Gamma(s + z, s' + mu_z);
- burst: level = calm level x Gamma(c, c / b): shape c, mean b; after z others, Gamma(c + z, c / b + mu_z).

Under either the negative stories are negative binomial (Gamma-Poisson), with the uncertainty of the key's share of
negatives added to the dispersion. How likely the burst is follows from z by Bayes' rule. The p-value is the mixture
(1 - pi) P(Y >= y | calm) + pi P(Y >= y | burst), each tail a mid-p value (Lancaster 1961).

With z left out this is the Gamma-Poisson test on the count; with pi = 1 it is in effect the test on the share.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import betainc, expit, gammaln

__all__ = [
    "Burst",
    "Calm",
    "Mixture",
    "gamma_poisson",
    "mid_p",
    "mixture",
    "negative_binomial_log_pmf",
    "negative_binomial_tail",
]

Array = NDArray[np.float64]


def negative_binomial_tail(y: Array, mean: Array, shape: Array) -> Array:
    """P(Y >= y) for Y negative binomial of this mean and shape: I(mean / (mean + shape); y, shape).

    Variance is mean + mean^2 / shape. All arrays broadcast; means and shapes above 0.
    """
    tail: Array = np.asarray(betainc(np.maximum(y, 1e-300), shape, mean / (mean + shape)), dtype=np.float64)
    return np.where(y > 0, tail, 1.0)


def mid_p(y: Array, mean: Array, shape: Array) -> Array:
    """Mid-p value of the upper tail: the mean of P(Y >= y) and P(Y >= y + 1)."""
    return 0.5 * (negative_binomial_tail(y, mean, shape) + negative_binomial_tail(y + 1.0, mean, shape))


def negative_binomial_log_pmf(y: Array, mean: Array, shape: Array) -> Array:
    """log P(Y = y) for the same law."""
    total = mean + shape
    combinations = gammaln(y + shape) - gammaln(shape) - gammaln(y + 1.0)
    log_pmf: Array = combinations + shape * np.log(shape / total) + y * np.log(mean / total)
    return log_pmf


class Calm(NamedTuple):
    """Gamma law of the level before the window: `shape` and `rate` (arrays). Its mean is shape / rate."""

    shape: Array
    rate: Array


class Burst(NamedTuple):
    """How bursts are imagined: `probability` of one in a window, `mean` and `shape` of the level's jump."""

    probability: float
    mean: float
    shape: float


class Mixture(NamedTuple):
    """Arrays of one shape: the p-value, the expected negative stories, the probability that this is a burst."""

    p: Array
    expected: Array
    burst: Array


def mixture(y: Array, z: Array, mu_y: Array, mu_z: Array, calm: Calm, dispersion: Array, burst: Burst) -> Mixture:
    """The mixture's p-value of `y` negative stories, given `z` others.

    Parameters
    ----------
    y, z : observed counts.
    mu_y, mu_z : expected counts at level 1 (baseline x season x common mode), above 0.
    calm : the level as known before the window.
    dispersion : 1 / shape of what is not known of `mu_y` beside the level (the share's uncertainty), at least 0.
    burst : the law of bursts.

    Returns
    -------
    Mixture of arrays of the inputs' shape; p in (0, 1].
    """
    level = calm.shape / calm.rate
    # Calm and burst in one array each, (2, ...): before the window, and after its z others.
    before = np.array([calm.shape, np.full_like(calm.shape, burst.shape)])
    after = before + z
    others = np.array([mu_z * level, mu_z * level * burst.mean])
    means = mu_y * after / np.array([calm.rate + mu_z, (burst.shape / burst.mean + mu_z * level) / level])
    log_calm, log_burst = negative_binomial_log_pmf(z, others, before)
    pi: Array = expit(np.log(burst.probability / (1.0 - burst.probability)) + log_burst - log_calm)
    p_calm, p_burst = mid_p(y, means, 1.0 / (1.0 / after + dispersion))
    p = (1.0 - pi) * p_calm + pi * p_burst
    return Mixture(np.clip(p, 1e-300, 1.0), (1.0 - pi) * means[0] + pi * means[1], pi)


def gamma_poisson(y: Array, mu_y: Array, calm: Calm, dispersion: Array) -> Mixture:
    """The p-value of `y` stories where there is nothing to hold them against but the level before the window: what
    surges is the volume itself. Parameters and result as those of `mixture`."""
    expected = mu_y * calm.shape / calm.rate
    p = mid_p(y, expected, 1.0 / (1.0 / calm.shape + dispersion))
    return Mixture(np.clip(p, 1e-300, 1.0), expected, np.zeros_like(expected))
