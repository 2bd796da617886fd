"""The gate between training and use: a new model is promoted only if it is nowhere worse and better where it counts.

Per head, on rows that neither model was trained on: the candidate must not be worse than the active model by more
than a margin of 2 points of accuracy. That is tested, not eyeballed: the lower end of the one-sided 95 % interval of
the paired difference (bootstrap over rows, Efron and Tibshirani 1993, chapter 13) must lie above -0.02. Its
calibration error may grow by .03 at the most. On corrections that were held out of training it must be as good as
the active model or better; an analyst's corrections are where the active one was found wrong, so no gain there means
that nothing was learned.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from models.bundle import Predictions
from models.calibration import expected_calibration_error
from models.training.datasets import Example

__all__ = ["HEADS", "HeadVerdict", "Verdict", "answers", "judge", "lower_bound"]

MARGIN: Final = 0.02
MAX_ECE_GROWTH: Final = 0.03
# With fewer rows than this, no interval is worth its name: a head is not judged at all.
MIN_ROWS: Final = 30
_RESAMPLES: Final = 2_000
HEADS: Final = ("sentiment", "entities", "topic")


class HeadVerdict(msgspec.Struct, frozen=True, kw_only=True):
    """One head on the test part: accuracies, the interval's lower end of their difference, calibration errors."""

    head: str
    n: int
    before: float
    after: float
    lower: float
    ece_before: float
    ece_after: float

    @property
    def passed(self) -> bool:
        """Not worse beyond the margin, and still calibrated."""
        return self.n < MIN_ROWS or (self.lower > -MARGIN and self.ece_after <= self.ece_before + MAX_ECE_GROWTH)


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """Whether a candidate passes, and in one sentence why. `corrections` are (n, before, after) of those held out."""

    passed: bool
    reason: str
    heads: tuple[HeadVerdict, ...]
    corrections: tuple[int, float, float]

    def metrics(self) -> dict[str, Any]:
        """For the registry."""
        return {
            "heads": {
                one.head: {name: getattr(one, name) for name in one.__struct_fields__ if name != "head"}
                for one in self.heads
            },
            "held_out_corrections": dict(zip(("n", "before", "after"), self.corrections, strict=True)),
        }


def answers(
    predictions: Predictions, examples: Sequence[Example]
) -> dict[str, tuple[NDArray[np.float32], NDArray[np.int64]]]:
    """Probabilities (N, C) and class numbers (N,) of each head, of the examples that are labelled for it."""
    sentiment = np.array([example.sentiment for example in examples], dtype=np.int64)
    topic = np.array([example.topic for example in examples], dtype=np.int64)
    asked = np.array([example.entity is not None for example in examples], dtype=np.bool_)
    found = {}
    for head, probabilities, labels, mask in (
        ("sentiment", predictions.sentiment, sentiment, ~asked & (sentiment >= 0)),
        ("entities", predictions.sentiment, sentiment, asked & (sentiment >= 0)),
        ("topic", predictions.topic, topic, topic >= 0),
    ):
        found[head] = (probabilities[mask], labels[mask])
    return found


def lower_bound(before: NDArray[np.bool_], after: NDArray[np.bool_], *, seed: int = 0) -> float:
    """Lower end of the one-sided 95 % bootstrap interval of mean(after) - mean(before), paired by row (N,)."""
    difference = after.astype(np.int64) - before.astype(np.int64)
    worse, same, better = (int((difference == value).sum()) for value in (-1, 0, 1))
    n = len(difference)
    # A resample of rows is a draw from the multinomial of the three kinds of row: no need to draw every row.
    drawn = np.random.default_rng(seed).multinomial(n, [worse / n, same / n, better / n], size=_RESAMPLES)
    return float(np.quantile((drawn[:, 2] - drawn[:, 0]) / n, 0.05))


def _right(answer: tuple[NDArray[np.float32], NDArray[np.int64]]) -> NDArray[np.bool_]:
    probabilities, labels = answer
    return np.asarray(probabilities.argmax(axis=1) == labels)


def judge(
    before: Predictions,
    after: Predictions,
    examples: Sequence[Example],
    corrections_before: Predictions,
    corrections_after: Predictions,
    corrections: Sequence[Example],
) -> Verdict:
    """Compare the active model (`before`) with the candidate (`after`).

    Parameters
    ----------
    examples : frozen test rows; neither model was trained on them.
    corrections : corrections that were held out of the candidate's training.
    """
    old, new = answers(before, examples), answers(after, examples)
    heads = []
    for head in HEADS:
        if not len(old[head][1]):
            continue
        right_before, right_after = _right(old[head]), _right(new[head])
        heads.append(
            HeadVerdict(
                head=head,
                n=len(right_before),
                before=round(float(right_before.mean()), 4),
                after=round(float(right_after.mean()), 4),
                lower=round(lower_bound(right_before, right_after), 4),
                ece_before=round(expected_calibration_error(*old[head]), 4),
                ece_after=round(expected_calibration_error(*new[head]), 4),
            )
        )
    held_before, held_after = answers(corrections_before, corrections), answers(corrections_after, corrections)
    n = sum(len(labels) for _, labels in held_before.values())
    fixed_before = sum(int(_right(held_before[head]).sum()) for head in HEADS)
    fixed_after = sum(int(_right(held_after[head]).sum()) for head in HEADS)
    told = (n, round(fixed_before / max(1, n), 4), round(fixed_after / max(1, n), 4))
    worse = [one for one in heads if not one.passed]
    if not any(one.n >= MIN_ROWS for one in heads):
        passed, reason = False, f"There are fewer than {MIN_ROWS} test rows for every head: nothing can be compared."
    elif worse:
        one = worse[0]
        why = (
            f"accuracy {one.before:.3f} to {one.after:.3f}, surely no worse than {one.lower:+.3f}"
            if one.lower <= -MARGIN
            else f"calibration error {one.ece_before:.3f} to {one.ece_after:.3f}"
        )
        passed, reason = False, f"Worse on {', '.join(w.head for w in worse)} ({one.head}: {why})."
    elif n == 0:
        passed, reason = False, "No correction could be held out: nothing shows that it learned."
    elif fixed_after < fixed_before:
        passed, reason = False, f"Worse on {n} corrections held out: {fixed_before} to {fixed_after} right."
    else:
        passed = True
        reason = (
            f"Nowhere worse on {len(examples)} test rows; {fixed_before} to {fixed_after} right of {n} corrections."
        )
    return Verdict(passed=passed, reason=reason, heads=tuple(heads), corrections=told)
