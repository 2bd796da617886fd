"""A model measured on labelled lines: accuracy, macro-F1, calibration error, confusion; by part."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from models.answers import SENTIMENTS, LoadedModel
from models.calibration import calibration_error_by_chance, expected_calibration_error
from models.sentences import entity_rows
from models.tokens import Row
from models.training.datasets import find_entity, places_of
from models.training.lines import TRENDS, LabelledLine, Notice, read_labelled_lines
from monitor.records import Trend

__all__ = ["class_figures", "evaluate_file", "evaluate_lines", "score_figures"]

_CHUNK: Final = 512
_ABSTAINED: Final = TRENDS.index(Trend.NOT_A_CHART)


def class_figures(
    predicted: NDArray[np.integer],
    labels: NDArray[np.integer],
    classes: Sequence[str],
    ece: float,
    *,
    abstention: int | None = None,
) -> dict[str, Any]:
    """`n`, `accuracy`, `macro_f1`, `ece`, `per_class` and `confusion` of class numbers (N,) against labels (N,).

    `macro_f1` is the mean over `per_class`, the classes that occur as a label or as an answer; the class
    `abstention` is among them only where it is a label. `confusion` maps each true class to the answers given and
    their numbers, abstentions among them.
    """
    size = len(classes)
    matrix = np.zeros((size, size), dtype=np.int64)
    np.add.at(matrix, (labels, predicted), 1)
    right = np.diag(matrix).astype(np.float64)
    answered, true = matrix.sum(axis=0), matrix.sum(axis=1)
    precision = np.divide(right, answered, out=np.zeros(size), where=answered > 0)
    recall = np.divide(right, true, out=np.zeros(size), where=true > 0)
    both = precision + recall
    f1 = np.divide(2 * precision * recall, both, out=np.zeros(size), where=both > 0)
    present = (answered + true) > 0
    counted = present.copy()
    if abstention is not None:
        counted[abstention] = true[abstention] > 0
    return {
        "n": len(labels),
        "accuracy": round(float(right.sum() / max(1, len(labels))), 4),
        "macro_f1": round(float(f1[counted].mean()) if counted.any() else 0.0, 4),
        "ece": round(ece, 4),
        "per_class": {
            name: {
                "precision": round(float(precision[i]), 4),
                "recall": round(float(recall[i]), 4),
                "f1": round(float(f1[i]), 4),
                "n": int(true[i]),
            }
            for i, name in enumerate(classes)
            if counted[i]
        },
        "confusion": {
            name: {answer: int(matrix[i, j]) for j, answer in enumerate(classes) if present[j]}
            for i, name in enumerate(classes)
            if counted[i]
        },
    }


def score_figures(predicted: NDArray[np.floating], scores: NDArray[np.floating]) -> dict[str, Any]:
    """`n`, `mse` and `r2` (coefficient of determination) of predicted scores (N,) in [-1, 1]."""
    residual = float(((predicted - scores) ** 2).mean())
    spread = float(scores.var())
    return {
        "n": len(scores),
        "mse": round(residual, 4),
        "r2": round(1.0 - residual / spread, 4) if spread > 0 else 0.0,
    }


def _direction(
    probabilities: NDArray[np.float32], labels: NDArray[np.int64], read: NDArray[np.bool_]
) -> dict[str, Any]:
    """`n` charts that fall or rise, and `accuracy`: how often the likelier of the two is right; unread ones are not."""
    down, up = TRENDS.index(Trend.DOWN), TRENDS.index(Trend.UP)
    moved = (labels == down) | (labels == up)
    right = (probabilities[moved, up] > probabilities[moved, down]) == (labels[moved] == up)
    right &= read[moved]
    return {"n": int(moved.sum()), "accuracy": round(float(right.mean()) if moved.any() else 0.0, 4)}


class _Gathered:
    """Probabilities and labels of each part, chunk after chunk."""

    def __init__(self, model: LoadedModel) -> None:
        self.model = model
        self.topics = {name: i for i, name in enumerate(model.taxonomy.labels)}
        self.probabilities: dict[str, list[NDArray[np.float32]]] = {}
        self.labels: dict[str, list[float]] = {}
        self.is_chart: list[bool] = []
        self.read: list[bool] = []

    def _add(self, part: str, probabilities: NDArray[np.float32], label: float) -> None:
        self.probabilities.setdefault(part, []).append(probabilities)
        self.labels.setdefault(part, []).append(label)

    def take(self, lines: Sequence[LabelledLine]) -> None:
        """Ask the model about a chunk."""
        rows: list[Row] = []
        asked: list[tuple[str, LabelledLine, str]] = []
        for line in lines:
            if line.sentiment is not None or line.topic is not None or line.trend is not None:
                rows.append(Row(line.text, image=line.image))
                asked.append(("item", line, ""))
            places = {name: found for name in line.entities if (found := places_of(line.text, name))}
            read = entity_rows(line.text, list(places.values()))
            for name, label in line.entities.items():
                rows.append(read[places[name][0]] if name in places else Row(line.text))
                asked.append(("entities", line, label))
            if line.score is not None:
                rows.append(Row(line.text, find_entity(line.text, line.target) if line.target else None, line.image))
                asked.append(("score", line, ""))
        said = self.model.predict(rows)
        vision = self.model.network.vision
        threshold = vision.threshold if vision is not None else 0.5
        for i, (kind, line, label) in enumerate(asked):
            if kind == "entities":
                self._add("entities", said.sentiment[i], SENTIMENTS.index(label))
                # The hard ones: the text as a whole says the wrong thing about one of them.
                if {"negative", "positive"} <= set(line.entities.values()):
                    self._add("entities_opposite", said.sentiment[i], SENTIMENTS.index(label))
            elif kind == "score":
                self._add("score", said.sentiment[i], line.score if line.score is not None else 0.0)
            else:
                if line.sentiment is not None:
                    self._add("sentiment", said.sentiment[i], SENTIMENTS.index(line.sentiment))
                    if line.all_agree:
                        self._add("sentiment_all_agree", said.sentiment[i], SENTIMENTS.index(line.sentiment))
                if line.topic is not None:
                    self._add("topic", said.topic[i], self.topics[line.topic])
                if line.trend is not None:
                    self._add("chart", said.chart[i], TRENDS.index(line.trend))
                    self.is_chart.append(bool(said.p_chart[i] >= threshold))
                    self.read.append(line.image is not None)

    def figures(self) -> dict[str, Any]:
        """All parts that the lines label."""
        found: dict[str, Any] = {}
        for part, classes in (
            ("sentiment", SENTIMENTS),
            ("sentiment_all_agree", SENTIMENTS),
            ("topic", self.model.taxonomy.labels),
            ("entities", SENTIMENTS),
            ("entities_opposite", SENTIMENTS),
        ):
            if part in self.labels:
                probabilities, labels = self._part(part)
                found[part] = _measured(probabilities, labels, probabilities.argmax(axis=1), classes)
        if "chart" in self.labels:
            found["chart"] = self._chart()
        if "score" in self.labels:
            sentiment = np.stack(self.probabilities["score"])
            found["score"] = score_figures(sentiment[:, 2] - sentiment[:, 0], np.array(self.labels["score"]))
        return found

    def _part(self, part: str) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        return np.stack(self.probabilities[part]), np.array(self.labels[part], dtype=np.int64)

    def _chart(self) -> dict[str, Any]:
        """An abstention is an answer of its own: right for a picture that is no chart, wrong for a chart."""
        probabilities, labels = self._part("chart")
        read = np.array(self.read)
        predicted = np.where(np.array(self.is_chart), probabilities.argmax(axis=1), _ABSTAINED)
        known = (labels != _ABSTAINED) & read
        return _measured(probabilities, labels, predicted, TRENDS, known=known, abstention=_ABSTAINED) | {
            "direction": _direction(probabilities, labels, read)
        }


def _measured(
    probabilities: NDArray[np.float32],
    labels: NDArray[np.int64],
    predicted: NDArray[np.integer],
    classes: Sequence[str],
    *,
    known: NDArray[np.bool_] | None = None,
    abstention: int | None = None,
) -> dict[str, Any]:
    """`class_figures`, and the calibration error that chance would show; both errors of the rows `known` (N,) alone."""
    shown = np.ones(len(labels), dtype=np.bool_) if known is None else known
    error = expected_calibration_error(probabilities[shown], labels[shown])
    chance, bound = calibration_error_by_chance(probabilities[shown])
    return class_figures(predicted, labels, classes, error, abstention=abstention) | {
        "ece_by_chance": round(chance, 4),
        "ece_by_chance_95": round(bound, 4),
    }


def evaluate_lines(
    model: LoadedModel, lines: Iterable[LabelledLine], progress: Callable[[int], None] | None = None
) -> dict[str, Any]:
    """Figures of `model`, one part for each of `sentiment`, `topic`, `entities`, `chart`, `score` that is labelled.

    `sentiment_all_agree` are the texts of `sentiment` that all annotators agreed on, `entities_opposite` the entities
    of texts that are good news for one and bad news for another. A text that comes with a chart is scored from both.
    An entity that does not stand in its text is answered with the sentiment of the whole; a chart that could not be
    read is an abstention. `progress` is told the number of lines done.
    """
    gathered = _Gathered(model)
    chunk: list[LabelledLine] = []
    done = 0
    for line in lines:
        chunk.append(line)
        if len(chunk) == _CHUNK:
            gathered.take(chunk)
            done += len(chunk)
            chunk = []
            if progress:
                progress(done)
    gathered.take(chunk)
    return gathered.figures()


def evaluate_file(model: LoadedModel, path: Path, notice: Notice = lambda _: None) -> dict[str, Any]:
    """Figures of `model` on the lines of a labelled file, see `evaluate_lines` and `read_labelled_lines`."""
    return evaluate_lines(model, read_labelled_lines(path, model.taxonomy.labels, notice))
