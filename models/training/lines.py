"""The lines that a model is measured on: read from labelled files, checked, with their charts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec

from models.answers import SENTIMENTS
from models.charts.images import decode_image
from models.training.datasets import LabelledText, all_agree, find_entity
from monitor.errors import InputError
from monitor.records import Rejected, Trend

__all__ = ["TRENDS", "LabelledLine", "Notice", "line_of", "read_labelled_lines"]

TRENDS: Final = tuple(str(trend) for trend in Trend)
# Takes what a person should know about a line, in one sentence.
Notice = Callable[[str], None]
_HINT: Final = (
    "A line has text and any of sentiment, topic, entities (name to sentiment), score; or chart (an image file) and "
    "trend."
)


class LabelledLine(msgspec.Struct, frozen=True, kw_only=True):
    """One line of the file, checked.

    `image` is the chart's bytes; with a `trend` and none the picture could not be used. `target` is the entity that
    `score` is about; `all_agree` says that all annotators gave the sentiment.
    """

    number: int
    text: str = ""
    sentiment: str | None = None
    topic: str | None = None
    entities: dict[str, str] = {}
    score: float | None = None
    target: str = ""
    all_agree: bool = False
    image: bytes | None = None
    trend: str | None = None


def line_of(row: LabelledText, number: int) -> LabelledLine:
    """A labelled text as a line; one whose entities all fare alike is a text with their sentiment, as in training."""
    agreed = set(row.entities.values())
    sentiment = row.sentiment or (agreed.pop() if len(agreed) == 1 else None)
    return LabelledLine(
        number=number,
        text=row.text,
        sentiment=sentiment,
        topic=row.topic,
        entities=dict(row.entities),
        score=row.score,
        target=row.target or "",
        all_agree=row.all_agree,
    )


def _bad(path: Path, number: int, what: str) -> InputError:
    return InputError(f"{path}, line {number}: {what}.", _HINT)


def _image(path: Path, name: str) -> bytes | str:
    """The bytes of a chart, or why it cannot be used."""
    try:
        image = (path.parent / name).read_bytes()
    except (OSError, ValueError) as error:
        return f"cannot be read ({getattr(error, 'strerror', None) or error})"
    decoded = decode_image(image)
    return f"cannot be used: {decoded.reason.rstrip('.')}" if isinstance(decoded, Rejected) else image


def _label(path: Path, number: int, field: str, value: object, allowed: Sequence[str]) -> str:
    if not isinstance(value, str) or value not in allowed:
        listed = ", ".join(allowed) if len(allowed) < 6 else "a topic of the model's taxonomy"
        raise _bad(path, number, f"{field} must be {'one of ' if len(allowed) < 6 else ''}{listed}, not {value!r:.60}")
    return value


def _entities(path: Path, number: int, given: object, text: str) -> dict[str, str]:
    if not isinstance(given, dict):
        raise _bad(path, number, "entities must map names to sentiments")
    if given and not text:
        raise _bad(path, number, "entities need a text")
    return {
        name: _label(path, number, f"the sentiment of {name[:40]}", value, SENTIMENTS) for name, value in given.items()
    }


def _score(path: Path, number: int, given: object) -> float:
    if isinstance(given, bool) or not isinstance(given, int | float) or not -1.0 <= given <= 1.0:
        raise _bad(path, number, "score must be a number from -1 to 1")
    return float(given)


def _line(path: Path, number: int, content: bytes, topics: Sequence[str], notice: Notice) -> LabelledLine:
    try:
        fields = msgspec.json.decode(content.decode("utf-8"))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise _bad(path, number, f"this is not JSON ({error})") from error
    if not isinstance(fields, dict):
        raise _bad(path, number, "this is not a JSON object")
    given = {name: value for name, value in fields.items() if value is not None}
    known: dict[str, Any] = {"number": number}
    text, chart = given.get("text", ""), given.get("chart")
    if not isinstance(text, str):
        raise _bad(path, number, "text must be a string")
    known["text"] = text = text.strip()
    if not text and chart is None:
        raise _bad(path, number, "the text is missing or empty")
    for field, allowed in (("sentiment", SENTIMENTS), ("topic", topics), ("trend", TRENDS)):
        if field in given:
            known[field] = _label(path, number, field, given[field], allowed)
    if "entities" in given:
        known["entities"] = _entities(path, number, given["entities"], text)
    if "score" in given:
        known["score"] = _score(path, number, given["score"])
        known["target"] = str(given.get("target", ""))
    if "trend" in known and chart is None:
        raise _bad(path, number, "trend needs a chart")
    if not known.keys() & {"sentiment", "topic", "entities", "trend", "score"}:
        raise _bad(path, number, "there is no label")
    known["all_agree"] = all_agree(given.get("agreement"))
    if chart is not None:
        if not isinstance(chart, str) or not chart:
            raise _bad(path, number, "chart must be the name of an image file")
        image = _image(path, chart)
        if isinstance(image, str):
            counted = "its reading counts as wrong" if "trend" in known else "it is left out"
            notice(f"{path}, line {number}: the chart {chart[:200]} {image}; {counted}.")
        else:
            known["image"] = image
    for name in known.get("entities", {}):
        if find_entity(text, name) is None:
            notice(
                f"{path}, line {number}: `{name[:80]}` does not stand in the text; the answer to the whole text counts."
            )
    return LabelledLine(**known)


def read_labelled_lines(path: Path, topics: Sequence[str], notice: Notice = lambda _: None) -> Iterator[LabelledLine]:
    """Lines of a labelled file, with their charts (paths relative to the file) read.

    `notice` is told, with file and line, of a chart that cannot be used, which the line then lacks, and of an entity
    that does not stand in its text. Raises `InputError` naming the line at the first one that is wrong, and when
    there are none.
    """
    number = found = 0
    try:
        with path.open("rb") as file:
            for number, content in enumerate(file, 1):
                content = content.removeprefix(b"\xef\xbb\xbf") if number == 1 else content
                if content.strip():
                    found += 1
                    yield _line(path, number, content, topics, notice)
    except OSError as error:
        raise InputError(f"The file {path} cannot be read: {error.strerror}.") from error
    if not found:
        raise InputError(f"The file {path} holds no lines.", _HINT)
