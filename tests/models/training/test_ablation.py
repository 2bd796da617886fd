from __future__ import annotations

import numpy as np

from models.training.ablation import bootstrap


def test_intervals_hold_the_figures_and_a_real_gain_excludes_zero() -> None:
    rng = np.random.default_rng(1)
    labels = rng.integers(0, 3, 900)

    def said(right: float) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
        return np.where(rng.random(900) < right, labels, (labels + 1) % 3).astype(np.int64)

    better = said(0.8)
    rows = {row.name: row for row in bootstrap(labels, {"text": said(0.6), "chart": said(0.4), "both": better})}
    for row in rows.values():
        assert row.accuracy.low <= row.accuracy.value <= row.accuracy.high
        assert row.macro_f1.low <= row.macro_f1.value <= row.macro_f1.high
    assert rows["text"].gain.value == rows["text"].gain.low == rows["text"].gain.high == 0.0
    assert rows["both"].gain.low > 0
    assert abs(rows["both"].gain.value - (rows["both"].accuracy.value - rows["text"].accuracy.value)) < 1e-9
    assert rows["chart"].gain.high < 0
    # The width of a binomial proportion's interval, from the normal approximation.
    assert abs((rows["both"].accuracy.high - rows["both"].accuracy.low) - 2 * 1.96 * (0.16 / 900) ** 0.5) < 0.01
