"""A model measured on labelled lines: accuracy, macro-F1, calibration error, confusion; by part."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from models.bundle import SENTIMENTS, LoadedModel
from models.calibration import calibration_error_by_chance, expected_calibration_error
from models.charts.images import decode_image
from models.tokens import Row
from models.training.datasets import find_entity
from monitor.errors import InputError
from monitor.records import Rejected, Trend

__all__ = [
    "LabelledLine",
    "class_figures",
    "evaluate_file",
    "evaluate_lines",
    "read_labelled_lines",
    "score_figures",
]

_CHUNK: Final = 512
_TRENDS: Final = tuple(str(trend) for trend in Trend)
_HINT: Final = (
    "A line has text and any of sentiment, topic, entities (name to sentiment), score; or chart (an image file) and "
    "trend."
)


class LabelledLine(msgspec.Struct, frozen=True, kw_only=True):
    """One line of the file, checked. `image` is the chart's bytes; `target` the entity that `score` is about."""

    number: int
    text: str = ""
    sentiment: str | None = None
    topic: str | None = None
    entities: dict[str, str] = {}
    score: float | None = None
    target: str = ""
    image: bytes | None = None
    trend: str | None = None


def _bad(path: Path, number: int, what: str) -> InputError:
    return InputError(f"{path}, line {number}: {what}.", _HINT)


def _image(path: Path, number: int, name: object) -> bytes:
    if not isinstance(name, str) or not name:
        raise _bad(path, number, "chart must be the name of an image file")
    try:
        image = (path.parent / name).read_bytes()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise _bad(path, number, f"the chart {name[:200]} cannot be read ({reason})") from error
    decoded = decode_image(image)
    if isinstance(decoded, Rejected):
        raise _bad(path, number, f"the chart {name[:200]} cannot be used: {decoded.reason.rstrip('.')}")
    return image


def _label(path: Path, number: int, field: str, value: object, allowed: Sequence[str]) -> str:
    if not isinstance(value, str) or value not in allowed:
        listed = ", ".join(allowed) if len(allowed) < 6 else "a topic of the model's taxonomy"
        raise _bad(path, number, f"{field} must be {'one of ' if len(allowed) < 6 else ''}{listed}, not {value!r:.60}")
    return value


def _line(path: Path, number: int, content: bytes, topics: Sequence[str]) -> LabelledLine:
    try:
        fields = msgspec.json.decode(content.decode("utf-8"))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise _bad(path, number, f"this is not JSON ({error})") from error
    if not isinstance(fields, dict):
        raise _bad(path, number, "this is not a JSON object")
    known: dict[str, Any] = {"number": number}
    text = fields.get("text")
    if text is not None and not isinstance(text, str):
        raise _bad(path, number, "text must be a string")
    known["text"] = (text or "").strip()
    if fields.get("chart") is not None:
        known["image"] = _image(path, number, fields["chart"])
    if not known["text"] and "image" not in known:
        raise _bad(path, number, "the text is missing or empty")
    for field, allowed in (("sentiment", SENTIMENTS), ("topic", topics), ("trend", _TRENDS)):
        if fields.get(field) is not None:
            known[field] = _label(path, number, field, fields[field], allowed)
    entities = fields.get("entities")
    if entities is not None:
        if not isinstance(entities, dict):
            raise _bad(path, number, "entities must map names to sentiments")
        known["entities"] = {
            name: _label(path, number, f"the sentiment of {name[:40]}", value, SENTIMENTS)
            for name, value in entities.items()
        }
        if known["entities"] and not known["text"]:
            raise _bad(path, number, "entities need a text")
    if fields.get("score") is not None:
        score = fields["score"]
        if isinstance(score, bool) or not isinstance(score, int | float) or not -1.0 <= score <= 1.0:
            raise _bad(path, number, "score must be a number from -1 to 1")
        known["score"] = float(score)
        target = fields.get("target")
        known["target"] = target if isinstance(target, str) else ""
    if "trend" in known and "image" not in known:
        raise _bad(path, number, "trend needs a chart")
    if not known.keys() & {"sentiment", "topic", "entities", "trend", "score"}:
        raise _bad(path, number, "there is no label")
    return LabelledLine(**known)


def read_labelled_lines(path: Path, topics: Sequence[str]) -> Iterator[LabelledLine]:
    """Lines of a labelled file, with their charts (paths relative to the file) read.

    Raises `InputError` naming the line at the first one that is wrong, and when there are none.
    """
    number = found = 0
    try:
        with path.open("rb") as file:
            for number, content in enumerate(file, 1):
                content = content.removeprefix(b"\xef\xbb\xbf") if number == 1 else content
                if content.strip():
                    found += 1
                    yield _line(path, number, content, topics)
    except OSError as error:
        raise InputError(f"The file {path} cannot be read: {error.strerror}.") from error
    if not found:
        raise InputError(f"The file {path} holds no lines.", _HINT)


def class_figures(
    predicted: NDArray[np.integer], labels: NDArray[np.integer], classes: Sequence[str], ece: float
) -> dict[str, Any]:
    """`n`, `accuracy`, `macro_f1`, `ece`, `per_class` and `confusion` of class numbers (N,) against labels (N,).

    `macro_f1` is the mean over the classes that occur, as a label or as an answer. `confusion` maps each true class
    to the answers given and their numbers.
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
    return {
        "n": len(labels),
        "accuracy": round(float(right.sum() / max(1, len(labels))), 4),
        "macro_f1": round(float(f1[present].mean()) if present.any() else 0.0, 4),
        "ece": round(ece, 4),
        "per_class": {
            name: {
                "precision": round(float(precision[i]), 4),
                "recall": round(float(recall[i]), 4),
                "f1": round(float(f1[i]), 4),
                "n": int(true[i]),
            }
            for i, name in enumerate(classes)
            if present[i]
        },
        "confusion": {
            name: {answer: int(matrix[i, j]) for j, answer in enumerate(classes) if present[j]}
            for i, name in enumerate(classes)
            if present[i]
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


def _direction(probabilities: NDArray[np.float32], labels: NDArray[np.int64]) -> dict[str, Any]:
    """`n` charts that fall or rise, and `accuracy`: how often the likelier of the two is right."""
    down, up = _TRENDS.index(Trend.DOWN), _TRENDS.index(Trend.UP)
    moved = (labels == down) | (labels == up)
    right = (probabilities[moved, up] > probabilities[moved, down]) == (labels[moved] == up)
    return {"n": int(moved.sum()), "accuracy": round(float(right.mean()) if moved.any() else 0.0, 4)}


class _Gathered:
    """Probabilities and labels of each part, chunk after chunk."""

    def __init__(self, model: LoadedModel) -> None:
        self.model = model
        self.topics = {name: i for i, name in enumerate(model.taxonomy.labels)}
        self.probabilities: dict[str, list[NDArray[np.float32]]] = {}
        self.labels: dict[str, list[float]] = {}
        self.is_chart: list[bool] = []

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
            for name, label in line.entities.items():
                rows.append(Row(line.text, find_entity(line.text, name)))
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
            elif kind == "score":
                self._add("score", said.sentiment[i], line.score if line.score is not None else 0.0)
            else:
                if line.sentiment is not None:
                    self._add("sentiment", said.sentiment[i], SENTIMENTS.index(line.sentiment))
                if line.topic is not None:
                    self._add("topic", said.topic[i], self.topics[line.topic])
                if line.trend is not None:
                    self._add("chart", said.chart[i], _TRENDS.index(line.trend))
                    self.is_chart.append(bool(said.p_chart[i] >= threshold))

    def figures(self) -> dict[str, Any]:
        """All parts that the file labels."""
        found: dict[str, Any] = {}
        for part, classes in (
            ("sentiment", SENTIMENTS),
            ("topic", self.model.taxonomy.labels),
            ("entities", SENTIMENTS),
            ("chart", _TRENDS),
        ):
            if part not in self.labels:
                continue
            probabilities = np.stack(self.probabilities[part])
            labels = np.array(self.labels[part], dtype=np.int64)
            predicted = probabilities.argmax(axis=1)
            known = np.ones(len(labels), dtype=np.bool_)
            if part == "chart":
                # An abstention is an answer of its own: right for a picture that is no chart, wrong for a chart.
                predicted = np.where(np.array(self.is_chart), predicted, _TRENDS.index(Trend.NOT_A_CHART))
                known = labels != _TRENDS.index(Trend.NOT_A_CHART)
            error = expected_calibration_error(probabilities[known], labels[known])
            found[part] = class_figures(predicted, labels, classes, error)
            chance, bound = calibration_error_by_chance(probabilities[known])
            found[part] |= {"ece_by_chance": round(chance, 4), "ece_by_chance_95": round(bound, 4)}
            if part == "chart":
                found[part]["direction"] = _direction(probabilities, labels)
        if "score" in self.labels:
            sentiment = np.stack(self.probabilities["score"])
            found["score"] = score_figures(sentiment[:, 2] - sentiment[:, 0], np.array(self.labels["score"]))
        return found


def evaluate_lines(
    model: LoadedModel, lines: Iterable[LabelledLine], progress: Callable[[int], None] | None = None
) -> dict[str, Any]:
    """Figures of `model`, one part for each of `sentiment`, `topic`, `entities`, `chart`, `score` that is labelled.

    A text that comes with a chart is scored from both. An entity that does not stand in its text is answered with
    the sentiment of the whole. `progress` is told the number of lines done.
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


def evaluate_file(model: LoadedModel, path: Path, progress: Callable[[int], None] | None = None) -> dict[str, Any]:
    """Figures of `model` on the lines of a labelled file, see `evaluate_lines`. Raises `InputError`."""
    return evaluate_lines(model, read_labelled_lines(path, model.taxonomy.labels), progress)
