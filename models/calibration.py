"""Calibration: one temperature a head (Guo et al. 2017), and the calibration error beside what chance gives."""

from __future__ import annotations

import msgspec
import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax

__all__ = ["Calibration", "calibration_error_by_chance", "expected_calibration_error", "fit_temperature"]

_LOWEST, _HIGHEST = 0.25, 8.0


class Calibration(msgspec.Struct, frozen=True):
    """Temperatures that logits are divided by: for sentiment of an item and of an entity, with a chart, and topic."""

    item: float = 1.0
    entity: float = 1.0
    fused: float = 1.0
    chart_only: float = 1.0
    topic: float = 1.0


def fit_temperature(logits: NDArray[np.floating], labels: NDArray[np.integer]) -> float:
    """The temperature in [0.25, 8] with the least negative log-likelihood; 1.0 when there are fewer than 20 rows.

    `logits` is (N, C), `labels` (N,) class numbers.
    """
    if len(labels) < 20:
        return 1.0
    rows = np.arange(len(labels))
    wide = np.asarray(logits, dtype=np.float64)

    def loss(log_temperature: float) -> float:
        return float(-log_softmax(wide / np.exp(log_temperature), axis=-1)[rows, labels].mean())

    found = minimize_scalar(loss, bounds=(np.log(_LOWEST), np.log(_HIGHEST)), method="bounded")
    return float(np.exp(found.x))


def expected_calibration_error(
    probabilities: NDArray[np.floating], labels: NDArray[np.integer], *, bins: int = 15
) -> float:
    """Mean gap between confidence and accuracy over equal-width bins of confidence, weighted by their rows.

    `probabilities` is (N, C), `labels` (N,) class numbers. 0.0 for no rows.
    """
    if not len(labels):
        return 0.0
    confidence = probabilities.max(axis=1)
    return _error(confidence, probabilities.argmax(axis=1) == labels, bins)


def calibration_error_by_chance(
    probabilities: NDArray[np.floating], *, bins: int = 15, draws: int = 200, seed: int = 0
) -> tuple[float, float]:
    """What `expected_calibration_error` would be if the probabilities (N, C) were exactly right: mean, 95 % quantile.

    Rows are few and bins many, so even perfect probabilities show an error (Vaicenavicius et al. 2019): one at or
    below the quantile cannot be told from none. (0.0, 0.0) for no rows.
    """
    if not len(probabilities):
        return 0.0, 0.0
    confidence = probabilities.max(axis=1)
    generator = np.random.default_rng(seed)
    found = [_error(confidence, generator.random(len(confidence)) < confidence, bins) for _ in range(draws)]
    return float(np.mean(found)), float(np.quantile(found, 0.95))


def _error(confidence: NDArray[np.floating], correct: NDArray[np.bool_], bins: int) -> float:
    index = np.minimum((confidence * bins).astype(np.int64), bins - 1)
    gap = np.abs(np.bincount(index, confidence, bins) - np.bincount(index, correct, bins))
    return float(gap.sum() / len(confidence))
