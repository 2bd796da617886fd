"""Drift: quiet on the same mix, loud on another, and it says so when there is too little to tell."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray
from sqlalchemy import Engine, insert

from monitor.jobs.drift import measure_drift, population_stability_index, run
from monitor.settings import Settings
from monitor.storage import tables
from monitor.storage.engine import reading, writing
from tests.monitor.jobs.test_retention import item

NOW = datetime(2026, 3, 8, 12, tzinfo=UTC)
QUIET = lambda done, total, message="": None  # noqa: E731
Counts = NDArray[np.float64]
COUNTS = arrays.arrays(np.float64, 10, elements=st.integers(0, 10_000).map(float))


@given(COUNTS, COUNTS)
def test_the_index_is_symmetric_never_negative_and_zero_for_equal_histograms(a: Counts, b: Counts) -> None:
    psi = population_stability_index(a, b)
    assert psi == pytest.approx(population_stability_index(b, a))
    assert psi >= -1e-12
    assert population_stability_index(a, a) == 0


def test_the_index_has_its_textbook_value() -> None:
    # 50/50 against 90/10: (.5 - .9) ln(.5 / .9) + (.5 - .1) ln(.5 / .1)
    expected = -0.4 * np.log(0.5 / 0.9) + 0.4 * np.log(5)
    assert population_stability_index(np.array([5e6, 5e6]), np.array([9e6, 1e6])) == pytest.approx(expected, rel=1e-4)


def fill(engine: Engine, *, recent_negative: float, recent_topic: str = "earnings", recent: int = 300) -> None:
    rng = np.random.default_rng(5)
    rows = []
    for number in range(2000 + recent):
        last_day = number < recent
        at = NOW - timedelta(hours=float(rng.uniform(0, 24) if last_day else rng.uniform(24.1, 8 * 24 - 1)))
        mean = recent_negative if last_day else 0.25
        p = rng.dirichlet([8 * mean, 4.0, 8 * (1 - mean)])
        topic = recent_topic if last_day and rng.random() < 0.6 else str(rng.choice(["earnings", "macro", "markets"]))
        rows.append(item(number, at, p_negative=p[0], p_neutral=p[1], p_positive=p[2], topic=topic))
    rows.append(item(10**6, NOW, p_negative=0.2, p_neutral=0.3, p_positive=0.5))
    with writing(engine) as connection:
        connection.execute(insert(tables.items), rows)


def verdict(engine: Engine) -> dict[str, object]:
    with reading(engine) as connection:
        return measure_drift(connection, NOW + timedelta(days=500), QUIET, lambda: False)


def test_the_same_mix_is_stable(store: Engine) -> None:
    fill(store, recent_negative=0.25)
    found = verdict(store)
    psi = found["psi"]
    assert isinstance(psi, dict)
    assert psi["p_negative"] < 0.1
    assert found["now"] == NOW.isoformat()


def test_more_negative_scores_are_a_shift(store: Engine) -> None:
    fill(store, recent_negative=0.7)
    found = verdict(store)
    assert found["verdict"] == "shifted"
    assert found["psi"]["p_negative"] > 0.25  # type: ignore[index]


def test_a_new_topic_is_named(store: Engine) -> None:
    fill(store, recent_negative=0.25, recent_topic="politics")
    found = verdict(store)
    assert found["verdict"] == "shifted"
    assert next(iter(found["topic_changes"])) == "politics"  # type: ignore[call-overload]


def test_too_few_items_are_no_verdict(store: Engine, make_settings: Callable[..., Settings]) -> None:
    fill(store, recent_negative=0.9, recent=20)
    assert verdict(store)["verdict"] == "too_few_items"
    assert run(make_settings(), QUIET, lambda: False)["recent_items"] == 21
