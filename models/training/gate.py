"""The gate between training and use: a new model is promoted only if it is nowhere worse and right where it was taught.

What is compared, on questions that neither model was trained on: sentiment of items, sentiment of entities, topic, the
fused sentiment of text and chart, and that of a chart alone. The comparison is paired, question by question, and tested
by the bootstrap over questions (Efron and Tibshirani 1993, chapter 13). For every head

- accuracy: the lower end of the one-sided 95 % interval of the difference must lie above -0.02;
- calibration: the upper end of the one-sided 95 % interval of the growth of the calibration error must lie below 0.03;
- accuracy may be at most 0.02 below the best that was measured on the same questions in the line of models that leads
  to this one, so that small losses do not add up from night to night.

On corrections that were held out of training the candidate must be right at least as often as the active model. It
must not be right less often than by guessing either: then the corrections contradict what the base data teaches.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest

from models.answers import Predictions
from models.calibration import expected_calibration_error
from models.training.datasets import Example

__all__ = ["Answers", "HeadVerdict", "Verdict", "answers", "ece_growth", "judge", "lower_bound"]

MARGIN: Final = 0.02
MAX_ECE_GROWTH: Final = 0.03
# With fewer rows than this, no interval is worth its name: a head is not judged at all.
MIN_ROWS: Final = 30
_RESAMPLES: Final = 2_000
_BINS: Final = 15


class Answers(NamedTuple):
    """What a model said to the questions of one head: `probabilities` (N, C), and the right classes `labels` (N,)."""

    probabilities: NDArray[np.float32]
    labels: NDArray[np.int64]

    @property
    def right(self) -> NDArray[np.bool_]:
        """Which answers are right (N,)."""
        return np.asarray(self.probabilities.argmax(axis=1) == self.labels)


class HeadVerdict(msgspec.Struct, frozen=True, kw_only=True):
    """One head: accuracies and calibration errors before and after, and the ends of the intervals of their changes.

    `lower` is the lower end for the accuracy, `ece_upper` the upper end for the calibration error; `best` is the
    highest accuracy that an ancestor had on the same questions.
    """

    head: str
    n: int
    before: float
    after: float
    lower: float
    best: float
    ece_before: float
    ece_after: float
    ece_upper: float

    @property
    def judged(self) -> bool:
        """Whether there are rows enough."""
        return self.n >= MIN_ROWS

    @property
    def problem(self) -> str:
        """What is worse, in a few words; empty when the head passes."""
        if not self.judged:
            return ""
        if self.lower <= -MARGIN:
            return (
                f"accuracy {self.before:.3f} to {self.after:.3f}, and with {self.n} rows it may have fallen by "
                f"{-self.lower:.3f} where {MARGIN} is allowed"
            )
        if self.after < self.best - MARGIN:
            return f"accuracy {self.after:.3f}, an earlier model had {self.best:.3f}, and {MARGIN} may be lost in all"
        if self.ece_upper >= MAX_ECE_GROWTH:
            return (
                f"calibration error {self.ece_before:.3f} to {self.ece_after:.3f}, and it may have grown by "
                f"{self.ece_upper:.3f} where {MAX_ECE_GROWTH} is allowed"
            )
        return ""


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """Whether a candidate passes, and in one sentence why. `corrections` are (n, before, after) of those held out."""

    passed: bool
    reason: str
    heads: tuple[HeadVerdict, ...]
    corrections: tuple[int, float, float]

    def metrics(self) -> dict[str, Any]:
        """For the registry."""
        return {
            "gate": "passed" if self.passed else "rejected",
            "heads": {
                one.head: {name: getattr(one, name) for name in one.__struct_fields__ if name != "head"}
                for one in self.heads
            },
            "held_out_corrections": dict(zip(("n", "before", "after"), self.corrections, strict=True)),
        }


def answers(predictions: Predictions, examples: Sequence[Example]) -> dict[str, Answers]:
    """The answers of each head to those of the questions that are labelled for it; heads without any are left out."""
    sentiment = np.array([example.sentiment for example in examples], dtype=np.int64)
    topic = np.array([example.topic for example in examples], dtype=np.int64)
    asked = np.array([example.entity is not None for example in examples], dtype=np.bool_)
    found = {}
    for head, probabilities, labels, mask in (
        ("sentiment", predictions.sentiment, sentiment, ~asked & (sentiment >= 0)),
        ("entities", predictions.sentiment, sentiment, asked & (sentiment >= 0)),
        ("topic", predictions.topic, topic, topic >= 0),
    ):
        if mask.any():
            found[head] = Answers(probabilities[mask], labels[mask])
    return found


def lower_bound(before: NDArray[np.bool_], after: NDArray[np.bool_], *, seed: int = 0) -> float:
    """Lower end of the one-sided 95 % bootstrap interval of mean(after) - mean(before), paired by row (N,)."""
    difference = after.astype(np.int64) - before.astype(np.int64)
    worse, same, better = (int((difference == value).sum()) for value in (-1, 0, 1))
    n = len(difference)
    # A resample of rows is a draw from the multinomial of the three kinds of row: no need to draw every row.
    drawn = np.random.default_rng(seed).multinomial(n, [worse / n, same / n, better / n], size=_RESAMPLES)
    return float(np.quantile((drawn[:, 2] - drawn[:, 0]) / n, 0.05))


def _gaps(answered: Answers) -> NDArray[np.float32]:
    """Confidence minus correctness of each row, in the column of its bin of confidence: (N, bins)."""
    confidence = answered.probabilities.max(axis=1)
    place = np.minimum((confidence * _BINS).astype(np.int64), _BINS - 1)
    found = np.zeros((len(confidence), _BINS), dtype=np.float32)
    found[np.arange(len(confidence)), place] = confidence - answered.right
    return found


def ece_growth(before: Answers, after: Answers, *, seed: int = 0) -> float:
    """Upper end of the one-sided 95 % bootstrap interval of the growth of the expected calibration error.

    Paired by row. The error of a resample is too large by chance (a mean of absolute values); the change is not, as
    both models are measured on the same resample.
    """
    n = len(before.labels)
    drawn = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=_RESAMPLES // 4).astype(np.float32)
    growth = (np.abs(drawn @ _gaps(after)).sum(axis=1) - np.abs(drawn @ _gaps(before)).sum(axis=1)) / n
    return float(np.quantile(growth, 0.95))


def _compared(head: str, before: Answers, after: Answers, best: tuple[int, float]) -> HeadVerdict:
    n, accuracy = len(before.labels), round(float(before.right.mean()), 4)
    return HeadVerdict(
        head=head,
        n=n,
        before=accuracy,
        after=round(float(after.right.mean()), 4),
        lower=round(lower_bound(before.right, after.right), 4),
        # Another number of questions is another set of them.
        best=max(accuracy, best[1] if best[0] == n else 0.0),
        ece_before=round(expected_calibration_error(*before, bins=_BINS), 4),
        ece_after=round(expected_calibration_error(*after, bins=_BINS), 4),
        ece_upper=round(ece_growth(before, after), 4),
    )


def _contradicted(corrections: Mapping[str, Answers]) -> bool:
    """Whether the answers to held-out corrections are right less often than by guessing (one-sided binomial, 5 %).

    What is learned from sound corrections holds for others like them. Labels that were turned round are followed half
    at the most, as the base data speaks against them.
    """
    n = sum(len(answered.labels) for answered in corrections.values())
    guessed = sum(len(answered.labels) / answered.probabilities.shape[1] for answered in corrections.values())
    right = sum(int(answered.right.sum()) for answered in corrections.values())
    return n > 0 and bool(binomtest(right, n, guessed / n, alternative="less").pvalue < 0.05)


def judge(
    before: Mapping[str, Answers],
    after: Mapping[str, Answers],
    corrections_before: Mapping[str, Answers],
    corrections_after: Mapping[str, Answers],
    best: Mapping[str, tuple[int, float]] | None = None,
) -> Verdict:
    """Compare the answers of the active model (`before`) with the candidate's (`after`), head by head.

    The first two are answers to frozen questions that neither model was trained on, the other two to corrections that
    were held out of the candidate's training. `best` says for each head how many questions there were and the highest
    accuracy on them among the models that the active one comes from.
    """
    known = best or {}
    heads = tuple(
        _compared(head, answered, after[head], known.get(head, (0, 0.0))) for head, answered in before.items()
    )
    n = sum(len(answered.labels) for answered in corrections_before.values())
    fixed_before, fixed_after = (
        sum(int(answered.right.sum()) for answered in told.values()) for told in (corrections_before, corrections_after)
    )
    worse = [one for one in heads if one.problem]
    if not any(one.judged for one in heads):
        passed, reason = False, f"There are fewer than {MIN_ROWS} test rows for every head: nothing can be compared."
    elif worse:
        told = "; ".join(f"{one.head}: {one.problem}" for one in worse)
        passed, reason = False, f"Worse on {', '.join(one.head for one in worse)} ({told})."
    elif n == 0:
        passed, reason = False, "No correction could be held out: nothing shows that it learned."
    elif fixed_after < fixed_before:
        passed, reason = False, f"Worse on {n} corrections held out: {fixed_before} to {fixed_after} right."
    elif _contradicted(corrections_after):
        passed = False
        reason = (
            f"The corrections contradict what the base data teaches: of {n} held out only {fixed_after} are right "
            "after learning, fewer than by guessing."
        )
    else:
        rows = sum(one.n for one in heads)
        passed = True
        reason = (
            f"Nowhere worse on {rows} test rows; {fixed_before} to {fixed_after} right of {n} held-out corrections."
        )
    return Verdict(
        passed=passed,
        reason=reason,
        heads=heads,
        corrections=(n, round(fixed_before / max(1, n), 4), round(fixed_after / max(1, n), 4)),
    )
