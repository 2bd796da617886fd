from __future__ import annotations

import numpy as np
import pytest
from scipy.special import softmax

from models.calibration import expected_calibration_error, fit_temperature


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
