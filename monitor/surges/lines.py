"""Lines of scored items: what `score` prints, or the short form that other programs write.

The short form has `id, published_at, source, title, tickers, topic, sentiment, p_negative` with `topic` and
`sentiment` as plain labels; the long one is a whole `ScoredItem`. Both give a `ScoredItem` with what counting needs.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from functools import lru_cache
from itertools import chain, islice
from typing import Any, Final

import msgspec

from monitor.errors import InputError
from monitor.records import (
    EARLIEST,
    MAX_FUTURE,
    EntityScore,
    Modality,
    Rejected,
    ScoredItem,
    Sentiment,
    SentimentScore,
    TopicScore,
    derive_id,
    parse_time,
)

__all__ = ["decode_scored", "read_scored"]

_LABELS: Final = {label.value: label for label in Sentiment}
ABSURD_DATE: Final = "absurd_date"
# A stream most of whose first lines are still to come is simulated: its dates are not held against the clock.
HEAD: Final = 20


class _Short(msgspec.Struct):
    """The short form as nearly all lines have it; any other is looked at field by field."""

    published_at: str
    topic: str
    sentiment: Sentiment
    id: str = ""
    source: str = ""
    title: str = ""
    body: str = ""
    url: str = ""
    model_version: str = ""
    tickers: tuple[str, ...] = ()
    p_negative: float | None = None
    entities: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


_decoder: Final = msgspec.json.Decoder()
_short_decoder: Final = msgspec.json.Decoder(_Short)


def _refused(reason: str) -> Rejected:
    return Rejected(code="bad_scored_item", reason=reason)


def _probability(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if 0.0 <= value <= 1.0 else None


def _sentiment(value: Any, p_negative: Any) -> SentimentScore | Rejected:
    """From a label with p(negative), or from an object with the three probabilities."""
    label = value.get("label") if isinstance(value, dict) else value
    sentiment = _LABELS.get(label) if isinstance(label, str) else None
    if sentiment is None:
        return _refused("sentiment must be negative, neutral or positive, or an object with such a label.")
    if isinstance(value, dict):
        negative, neutral, positive = (_probability(value.get(name)) for name in ("negative", "neutral", "positive"))
        if negative is None or neutral is None or positive is None:
            return _refused("The object sentiment must hold the probabilities negative, neutral and positive.")
        return SentimentScore(label=sentiment, negative=negative, neutral=neutral, positive=positive)
    if p_negative is None:
        negative = 1.0 if sentiment is Sentiment.NEGATIVE else 0.0
    else:
        given = _probability(p_negative)
        if given is None:
            return _refused("p_negative must be a number between 0 and 1.")
        negative = given
    return _score(sentiment, negative)


def _score(label: Sentiment, negative: float) -> SentimentScore:
    # How the rest is divided is not told; the label says on which side it lies.
    positive = 1.0 - negative if label is Sentiment.POSITIVE else 0.0
    return SentimentScore(label=label, negative=negative, neutral=1.0 - negative - positive, positive=positive)


@lru_cache(maxsize=1024)
def _topic(label: str) -> TopicScore:
    return TopicScore(label=label, probabilities={})


def _entities(values: Any) -> tuple[EntityScore, ...] | Rejected:
    if values is None:
        return ()
    if not isinstance(values, list):
        return _refused("entities must be a list.")
    entities = []
    for value in values:
        if not isinstance(value, dict):
            return _refused("An entity must be an object.")
        sentiment = _sentiment(value.get("sentiment"), None)
        if isinstance(sentiment, Rejected):
            return sentiment
        name, ticker = value.get("name"), value.get("ticker") or ""
        if not isinstance(name, str) or not isinstance(ticker, str):
            return _refused("An entity's name and ticker must be strings.")
        entities.append(EntityScore(name=name, sentiment=sentiment, ticker=ticker))
    return tuple(entities)


def _published(value: Any) -> datetime | Rejected:
    if value is None:
        return _refused("The field published_at is missing.")
    try:
        at = parse_time(value)
    except OverflowError:
        return _absurd(value)
    if at is None:
        return _refused(f"published_at is not an RFC 3339 time: {str(value)[:64]!r}.")
    return at if at >= EARLIEST else _absurd(value)


def _absurd(value: object) -> Rejected:
    return Rejected(code=ABSURD_DATE, reason=f"published_at lies before 1990 or in the future: {str(value)[:64]!r}.")


def _short_form(line: bytes) -> ScoredItem | None:
    """The item of a line in the short form; None when it is none, or there is something wrong with it."""
    try:
        short = _short_decoder.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    negative = short.p_negative
    if negative is None:
        negative = 1.0 if short.sentiment is Sentiment.NEGATIVE else 0.0
    at = _published(short.published_at)
    wrong = not 0.0 <= negative <= 1.0 or not short.topic or isinstance(at, Rejected)
    if wrong or short.entities is not msgspec.UNSET or isinstance(at, Rejected):
        return None
    return ScoredItem(
        id=short.id or derive_id(short.source, short.url, short.title, short.body, at),
        published_at=at,
        sentiment=_score(short.sentiment, negative),
        topic=_topic(short.topic),
        modality=Modality.TEXT,
        model_version=short.model_version,
        scored_at=at,
        title=short.title,
        body=short.body,
        source=short.source,
        url=short.url,
        tickers=short.tickers,
    )


def decode_scored(line: bytes) -> ScoredItem | Rejected:
    """A scored item from one line of either form. Never raises."""
    short = _short_form(line)
    if short is not None:
        return short
    try:
        fields = _decoder.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        return Rejected(code="bad_json", reason=f"The line is not JSON: {error}.")
    if not isinstance(fields, dict):
        return Rejected(code="not_an_object", reason="The line is not a JSON object.")
    at = _published(fields.get("published_at"))
    if isinstance(at, Rejected):
        return at
    texts = {}
    for name in ("id", "source", "title", "body", "url"):
        text = fields.get(name)
        if text is not None and not isinstance(text, str):
            return _refused(f"The field {name} must be a string.")
        texts[name] = text or ""
    tickers = fields.get("tickers") or []
    if not isinstance(tickers, list) or not all(isinstance(ticker, str) for ticker in tickers):
        return _refused("The field tickers must be a list of strings.")
    topic = fields.get("topic")
    label = topic.get("label") if isinstance(topic, dict) else topic
    if not isinstance(label, str) or not label:
        return _refused("The field topic must be a label, or an object with a label.")
    sentiment = _sentiment(fields.get("sentiment"), fields.get("p_negative"))
    if isinstance(sentiment, Rejected):
        return sentiment
    entities = _entities(fields.get("entities"))
    if isinstance(entities, Rejected):
        return entities
    return ScoredItem(
        id=texts["id"] or derive_id(texts["source"], texts["url"], texts["title"], texts["body"], at),
        published_at=at,
        sentiment=sentiment,
        topic=_topic(label),
        modality=Modality.TEXT,
        model_version=str(fields.get("model_version") or ""),
        scored_at=at,
        title=texts["title"],
        body=texts["body"],
        source=texts["source"],
        url=texts["url"],
        tickers=tuple(tickers),
        entities=entities,
    )


def _decoded(lines: Iterable[bytes]) -> Iterator[tuple[int, ScoredItem | Rejected]]:
    for number, line in enumerate(lines, start=1):
        if line and not line.isspace():
            yield number, decode_scored(line)


def read_scored(
    lines: Iterable[bytes], name: str, skipped: list[str] | None = None, absurd: list[str] | None = None
) -> Iterator[ScoredItem]:
    """Scored items of all lines that are not blank.

    Raises `InputError` naming the file and line of the first wrong one; with a list `skipped`, that gets the sentence
    instead and reading goes on. A date before 1990, or more than a day after the clock's, is refused as it is live, and
    said in `absurd` if that is given; else the line is wrong.
    """
    decoded = _decoded(lines)
    head = list(islice(decoded, HEAD))
    latest = datetime.now(UTC) + MAX_FUTURE
    ahead = sum(isinstance(item, ScoredItem) and item.published_at > latest for _, item in head)
    if ahead > len(head) / 2:
        latest = datetime.max.replace(tzinfo=UTC)
    for number, item in chain(head, decoded):
        if isinstance(item, ScoredItem) and item.published_at > latest:
            item = _absurd(item.published_at.isoformat())
        if not isinstance(item, Rejected):
            yield item
            continue
        message = f"Line {number} of {name} cannot be used: {item.reason}"
        if item.code == ABSURD_DATE and absurd is not None:
            absurd.append(message)
        elif skipped is None:
            raise InputError(message, "Mend the line, or leave wrong lines out with --skip-bad.")
        else:
            skipped.append(message)
