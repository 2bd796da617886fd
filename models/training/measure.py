"""Figures of a model on examples: accuracy, macro-F1 and calibration error of each set and task."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import f1_score

from models.bundle import LoadedModel
from models.calibration import expected_calibration_error
from models.training.datasets import Example

__all__ = ["figures", "measure"]


def figures(probabilities: NDArray[np.floating], labels: NDArray[np.integer]) -> dict[str, float]:
    """`accuracy`, `macro_f1`, `ece` and `n` of probabilities (N, C) against class numbers (N,)."""
    predicted = probabilities.argmax(axis=1)
    return {
        "accuracy": float((predicted == labels).mean()),
        "macro_f1": float(f1_score(labels, predicted, average="macro")),
        "ece": expected_calibration_error(probabilities, labels),
        "n": float(len(labels)),
    }


def measure(model: LoadedModel, examples: Sequence[Example]) -> dict[str, float]:
    """Figures by `set.task.figure`, for instance `sentfin.entities.accuracy`, of all examples with that label."""
    predictions = model.predict([example.row for example in examples])
    sentiment = np.array([example.sentiment for example in examples])
    topic = np.array([example.topic for example in examples])
    asked = np.array([example.entity is not None for example in examples])
    origin = np.array([example.origin for example in examples])
    found: dict[str, float] = {}
    for name in sorted(set(origin.tolist())):
        for task, probabilities, labels, rows in (
            ("sentiment", predictions.sentiment, sentiment, ~asked),
            ("entities", predictions.sentiment, sentiment, asked),
            ("topic", predictions.topic, topic, ~asked),
        ):
            mask = (origin == name) & rows & (labels >= 0)
            if mask.any():
                values = figures(probabilities[mask], labels[mask])
                found |= {f"{name}.{task}.{figure}": round(value, 4) for figure, value in values.items()}
    return found
