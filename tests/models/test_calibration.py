from __future__ import annotations

import numpy as np
import pytest
from scipy.special import softmax

from models.calibration import calibration_error_by_chance, expected_calibration_error, fit_temperature


def test_the_temperature_of_overconfident_logits_is_found() -> None:
    generator = np.random.default_rng(0)
    true = generator.normal(size=(4000, 3)) * 1.5
    labels = np.array([generator.choice(3, p=row) for row in softmax(true, axis=1)])
    assert fit_temperature(true * 3.0, labels) == pytest.approx(3.0, rel=0.1)
    assert fit_temperature(true, labels) == pytest.approx(1.0, rel=0.1)


def test_few_rows_leave_the_logits_alone() -> None:
    assert fit_temperature(np.ones((5, 3)), np.zeros(5, dtype=np.int64)) == 1.0


def test_calibration_error_is_the_gap_between_confidence_and_accuracy() -> None:
    sure = np.tile([0.9, 0.1], (100, 1))
    labels = np.zeros(100, dtype=np.int64)
    labels[:40] = 1
    assert expected_calibration_error(sure, labels) == pytest.approx(0.3)
    assert expected_calibration_error(np.tile([1.0, 0.0], (10, 1)), np.zeros(10, dtype=np.int64)) == 0.0
    assert expected_calibration_error(np.zeros((0, 3)), np.zeros(0, dtype=np.int64)) == 0.0


def test_right_probabilities_lie_within_what_chance_gives() -> None:
    generator = np.random.default_rng(3)
    right = generator.dirichlet([2.0, 1.0, 1.0], size=600)
    errors = []
    for _ in range(60):
        labels = np.array([generator.choice(3, p=row) for row in right])
        errors.append(expected_calibration_error(right, labels))
    mean, bound = calibration_error_by_chance(right)
    assert mean == pytest.approx(np.mean(errors), rel=0.15)
    assert 0.85 <= np.mean(np.array(errors) <= bound) < 1.0
    # Too sure by a tenth: no chance explains that.
    hit = generator.random(600) < right.max(axis=1) - 0.1
    missed = np.where(hit, right.argmax(axis=1), right.argmin(axis=1))
    assert expected_calibration_error(right, missed) > bound
    assert calibration_error_by_chance(np.zeros((0, 3))) == (0.0, 0.0)
