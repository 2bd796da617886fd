"""The gate: what passes, what does not, and why."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from models.answers import Predictions
from models.calibration import expected_calibration_error
from models.training.datasets import Example
from models.training.gate import MARGIN, MAX_ECE_GROWTH, Answers, Verdict, answers, ece_growth, judge, lower_bound

TOPICS = 20


def questions(n: int, seed: int = 0) -> list[Example]:
    rng = np.random.default_rng(seed)
    return [
        Example(
            text=f"text {i}",
            entity=(0, 4) if i % 3 == 0 else None,
            sentiment=int(rng.integers(3)),
            topic=-1 if i % 3 == 0 else int(rng.integers(TOPICS)),
        )
        for i in range(n)
    ]


def _sure(labels: list[int], wrong: set[int], classes: int, confidence: float) -> NDArray[np.float32]:
    p = np.full((len(labels), classes), (1 - confidence) / (classes - 1), dtype=np.float32)
    for i, label in enumerate(labels):
        p[i, (max(label, 0) + (i in wrong)) % classes] = confidence
    return p


def said(examples: list[Example], wrong: set[int], confidence: float = 0.9) -> Predictions:
    """Answers that are right but for the rows in `wrong`."""
    n = len(examples)
    return Predictions(
        sentiment=_sure([e.sentiment for e in examples], wrong, 3, confidence),
        topic=_sure([e.topic for e in examples], wrong, TOPICS, confidence),
        chart=np.full((n, 3), 1 / 3, dtype=np.float32),
        p_chart=np.zeros(n, dtype=np.float32),
        used_chart=np.zeros(n, dtype=np.bool_),
    )


def told(examples: list[Example], wrong: set[int], confidence: float = 0.9) -> dict[str, Answers]:
    return answers(said(examples, wrong, confidence), examples)


def verdict(before: set[int], after: set[int], held_before: set[int], held_after: set[int], **more: float) -> Verdict:
    test, held = questions(900), questions(20, seed=1)
    return judge(told(test, before), told(test, after, **more), told(held, held_before), told(held, held_after))


ONE_IN_TEN = set(range(0, 900, 10))


def test_better_on_corrections_and_nowhere_worse_passes() -> None:
    found = verdict(ONE_IN_TEN, ONE_IN_TEN, {1, 2, 3, 4}, {1})
    assert found.passed
    assert [one.head for one in found.heads] == ["sentiment", "entities", "topic"]
    assert all(one.before == one.after == pytest.approx(0.9, abs=0.02) for one in found.heads)
    assert found.corrections[1] < found.corrections[2]
    assert "Nowhere worse" in found.reason
    assert found.metrics()["heads"]["topic"]["n"] == 600
    assert found.metrics()["gate"] == "passed"


def test_worse_on_corrections_does_not_pass() -> None:
    found = verdict(ONE_IN_TEN, ONE_IN_TEN, {1}, {1, 2})
    assert not found.passed
    assert "corrections" in found.reason


def test_corrections_that_contradict_the_base_data_do_not_pass() -> None:
    # 84 corrections with turned labels: from none right to 13, where guessing gives more.
    test, held = questions(900), [Example(text=f"c{i}", sentiment=i % 3) for i in range(84)]
    turned, sound = (told(held, set(range(right, 84))) for right in (13, 27))
    before = told(held, set(range(84)))
    found = judge(told(test, set()), told(test, set()), before, turned)
    assert not found.passed
    assert "contradict what the base data teaches: of 84 held out only 13 are right" in found.reason
    assert judge(told(test, set()), told(test, set()), before, sound).passed


def test_one_worse_head_is_enough() -> None:
    # Only entity rows (every third) go wrong.
    found = verdict(ONE_IN_TEN, ONE_IN_TEN | set(range(0, 900, 15)), {1, 2}, set())
    assert not found.passed
    assert "entities" in found.reason
    assert [one.head for one in found.heads if one.problem] == ["entities"]
    assert found.metrics()["gate"] == "rejected"


def test_small_losses_do_not_add_up_from_night_to_night() -> None:
    test, held = questions(3000), told(questions(20, seed=1), set())
    best: dict[str, tuple[int, float]] = {}
    passed = []
    for night in range(4):
        # About .9 points worse than the night before: by itself within the margin.
        before, after = (told(test, set(range(night * 27 + more))) for more in (0, 27))
        found = judge(before, after, held, held, best)
        passed.append(found.passed)
        best = {one.head: (one.n, max(one.best, one.after)) for one in found.heads}
    assert passed == [True, True, False, False]
    assert "an earlier model had 1.000" in found.reason
    # Another set of questions: nothing is known of how the earlier models did on it.
    assert judge(before, after, held, held, {head: (n + 1, best) for head, (n, best) in best.items()}).passed


def test_lost_calibration_does_not_pass() -> None:
    found = verdict(ONE_IN_TEN, ONE_IN_TEN, {1, 2}, set(), confidence=0.45)
    assert not found.passed
    assert "calibration" in found.reason


def test_without_test_rows_or_corrections_nothing_passes() -> None:
    few, held = questions(20), questions(10, seed=1)
    found = judge(told(few, set()), told(few, set()), told(held, set()), told(held, set()))
    assert not found.passed
    assert "nothing can be compared" in found.reason
    many = questions(300)
    found = judge(told(many, set()), told(many, set()), {}, {})
    assert not found.passed
    assert "held out" in found.reason


def test_answers_about_charts_are_judged_as_well() -> None:
    test, held = told(questions(900), set()), told(questions(20, seed=1), set())
    good = Answers(_sure([0] * 300, set(), 3, 0.9), np.zeros(300, dtype=np.int64))
    bad = Answers(_sure([0] * 300, set(range(40)), 3, 0.9), np.zeros(300, dtype=np.int64))
    found = judge(test | {"fused": good}, test | {"fused": bad}, held, held)
    assert not found.passed
    assert "Worse on fused" in found.reason


def test_the_interval_is_that_of_paired_differences() -> None:
    n = 1000
    before = np.zeros(n, dtype=np.bool_)
    before[:800] = True
    after = before.copy()
    assert lower_bound(before, after) == 0.0
    after[:10], after[990:] = False, True
    # 10 rows lost, 10 gained: the standard error is sqrt(20)/1000.
    assert lower_bound(before, after) == pytest.approx(-1.645 * np.sqrt(20) / n, abs=1e-3)
    after[:60] = False
    assert lower_bound(before, after) < -MARGIN


def test_the_growth_of_the_calibration_error_is_bounded_from_above() -> None:
    n = 1000
    rng = np.random.default_rng(0)
    right = rng.random(n) < 0.8
    labels = np.zeros(n, dtype=np.int64)

    def sure(confidence: float) -> Answers:
        return Answers(_sure([0] * n, set(np.flatnonzero(~right).tolist()), 3, confidence), labels)

    calm, bold = sure(0.8), sure(0.95)
    assert ece_growth(calm, calm) == 0.0
    growth = expected_calibration_error(*bold) - expected_calibration_error(*calm)
    assert growth < ece_growth(calm, bold) < growth + 0.03
    assert ece_growth(calm, bold) > MAX_ECE_GROWTH
    assert ece_growth(bold, calm) < 0
