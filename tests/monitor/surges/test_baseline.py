"""What is learned as normal for a key."""

from __future__ import annotations

import numpy as np
import pytest

from monitor.surges.baseline import KINDS, Baseline

BLOCK = 1.0 / 96.0


def learned(shares: list[float], a_day: list[float]) -> Baseline:
    """After a day of each share for keys of these many stories a day."""
    baseline = Baseline(rate_half_life_days=10.0, share_wander=0.02, share_stories=15.0)
    baseline.add(np.zeros(len(a_day), dtype=np.int64))
    g = np.random.default_rng(3)
    for share in shares:
        for _ in range(96):
            stories = g.poisson(np.array(a_day) * BLOCK)
            baseline.learn(stories.astype(np.float64), g.binomial(stories, share).astype(np.float64), BLOCK, BLOCK)
    return baseline


def test_rate_and_share_are_found() -> None:
    baseline = learned([0.3] * 40, [200.0] * 5 + [20.0] * 5 + [2.0] * 5)
    for kind in range(3):
        keys = slice(5 * kind, 5 * kind + 5)
        assert baseline.share[keys].mean() == pytest.approx(0.3, abs=0.05)
        assert baseline.rate[keys].mean() == pytest.approx([200.0, 20.0, 2.0][kind], rel=0.15)
    assert baseline.negatives + baseline.others == pytest.approx(baseline.rate)


def test_a_key_of_many_stories_forgets_its_share_sooner() -> None:
    baseline = learned([0.2] * 30 + [0.4] * 3, [200.0] * 20 + [20.0] * 20 + [2.0] * 20)
    busy, usual, quiet = (baseline.share[first : first + 20].mean() for first in (0, 20, 40))
    assert 0.36 < busy < 0.41
    assert 0.27 < usual < 0.34
    assert 0.19 < quiet < 0.26
    # Evidence behind it: of the negatives of a day and a half, and of all that came in a month.
    assert baseline.share_weight[:20].mean() < 200.0 * 0.4 * 2.5
    assert baseline.share_weight[40:].mean() > 2.0 * 0.2 * 15.0


def test_a_key_without_stories_of_its_own_is_like_its_kind() -> None:
    baseline = learned([0.3] * 20, [20.0] * 10)
    ticker, topic = KINDS.index("ticker"), KINDS.index("topic")
    baseline.add(np.array([ticker, topic]))
    assert baseline.share[-2] == pytest.approx(0.3, abs=0.01)
    assert baseline.share[-1] == pytest.approx(0.2, abs=0.01)
    assert baseline.rate[-2] == pytest.approx(20.0, rel=0.05)


def test_the_share_is_exactly_1_where_all_stories_are_watched() -> None:
    baseline = Baseline(10.0, 0.02, 15.0, prior_share=1.0)
    baseline.add(np.zeros(3, dtype=np.int64))
    g = np.random.default_rng(1)
    for _ in range(300):
        stories = g.poisson([0.1, 2.0, 9.0]).astype(np.float64)
        baseline.learn(stories, stories, BLOCK, BLOCK)
        assert (baseline.share == 1.0).all()
        assert (baseline.others == 0.0).all()
