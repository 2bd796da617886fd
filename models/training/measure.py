"""Figures of a model on examples: accuracy, macro-F1 and calibration error of each set and task, and graded scores."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import f1_score, precision_recall_fscore_support

from models.answers import SENTIMENTS, LoadedModel
from models.calibration import expected_calibration_error
from models.training.datasets import Example
from models.training.evaluate import score_figures

__all__ = ["figures", "measure"]

# The commonest mistakes that a model card names, of each set and task.
_MISTAKES = 3


def figures(
    probabilities: NDArray[np.floating], labels: NDArray[np.integer], names: Sequence[str] = ()
) -> dict[str, float]:
    """`accuracy`, `macro_f1`, `ece` and `n` of probabilities (N, C) against class numbers (N,).

    With `names` of the classes also `precision.CLASS`, `recall.CLASS` and `f1.CLASS` of every class that occurs, and
    `mistaken.CLASS for CLASS`, the commonest mistakes as shares of the true class.
    """
    predicted = probabilities.argmax(axis=1)
    found = {
        "accuracy": float((predicted == labels).mean()),
        "macro_f1": float(f1_score(labels, predicted, average="macro")),
        "ece": expected_calibration_error(probabilities, labels),
        "n": float(len(labels)),
    }
    return found | (_by_class(predicted, labels, names) if names else {})


def _by_class(predicted: NDArray[np.integer], labels: NDArray[np.integer], names: Sequence[str]) -> dict[str, float]:
    present = np.unique(labels)
    scores = precision_recall_fscore_support(labels, predicted, labels=present, average=None, zero_division=0.0)
    found = {
        f"{figure}.{names[number]}": float(score)
        for figure, values in zip(("precision", "recall", "f1"), scores[:3], strict=True)
        for number, score in zip(present, values, strict=True)
    }
    mistakes = Counter(zip(labels[predicted != labels].tolist(), predicted[predicted != labels].tolist(), strict=True))
    for (true, answer), count in mistakes.most_common(_MISTAKES):
        found[f"mistaken.{names[true]} for {names[answer]}"] = float(count / (labels == true).sum())
    return found


def measure(model: LoadedModel, examples: Sequence[Example]) -> dict[str, float]:
    """Figures by `set.task.figure`, for instance `sentfin.entities.accuracy`, of all examples with that label.

    How each class fares is told as by `figures`. A graded score is compared with p(positive) - p(negative):
    `set.score.mse`, `set.score.r2`.
    """
    predictions = model.predict([example.row for example in examples])
    sentiment = np.array([example.sentiment for example in examples])
    topic = np.array([example.topic for example in examples])
    asked = np.array([example.entity is not None for example in examples])
    origin = np.array([example.origin for example in examples])
    score = np.array([np.nan if example.score is None else example.score for example in examples])
    balance = predictions.sentiment[:, 2] - predictions.sentiment[:, 0]
    found: dict[str, float] = {}
    for name in sorted(set(origin.tolist())):
        for task, probabilities, labels, rows, names in (
            ("sentiment", predictions.sentiment, sentiment, ~asked, SENTIMENTS),
            ("entities", predictions.sentiment, sentiment, asked, SENTIMENTS),
            ("topic", predictions.topic, topic, ~asked, model.taxonomy.labels),
        ):
            mask = (origin == name) & rows & (labels >= 0)
            if mask.any():
                values = figures(probabilities[mask], labels[mask], names)
                found |= {f"{name}.{task}.{figure}": round(value, 4) for figure, value in values.items()}
        mask = (origin == name) & ~np.isnan(score)
        if mask.any():
            graded = score_figures(balance[mask], score[mask])
            found |= {f"{name}.score.{figure}": float(value) for figure, value in graded.items()}
    return found
