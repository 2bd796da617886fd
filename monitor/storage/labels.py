"""Analysts' corrections: what a text's sentiment, topic and entity sentiments should have been.

One correction is one row and none is ever overwritten; for training the newest one of each item speaks.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final

import msgspec
from sqlalchemy import Connection, func, select

from monitor.errors import InputError
from monitor.records import MAX_ID_CHARS, Sentiment, parse_time
from monitor.storage.tables import labels
from monitor.storage.upsert import insert_missing
from monitor.taxonomy import Taxonomy

__all__ = [
    "Label",
    "TrainingRow",
    "add_labels",
    "count_labels",
    "decode_label",
    "encode_label",
    "label_history",
    "list_labels",
    "read_labels",
    "training_rows",
    "write_labels",
]

MAX_AUTHOR_CHARS: Final = 128
MAX_COMMENT_CHARS: Final = 2_000


class Label(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One correction. What is None or empty was not judged by its author.

    `entities` maps an entity's name, as it stands in `text`, to the sentiment towards it. `item_id` is empty for a
    text that did not come from the stream.
    """

    id: str
    text: str
    created_at: datetime
    author: str
    item_id: str = ""
    sentiment: Sentiment | None = None
    topic: str | None = None
    entities: dict[str, Sentiment] = {}
    comment: str = ""


class TrainingRow(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One text with what is known to be right about it."""

    text: str
    sentiment: Sentiment | None = None
    topic: str | None = None
    entities: dict[str, Sentiment] = {}


def _content_id(label: Mapping[str, Any], created_at: datetime | None) -> str:
    """An id by content: the same correction read twice is one. `created_at` takes part where it is known."""
    parts = (
        str(label.get("item_id") or ""),
        str(label.get("text") or ""),
        str(label.get("sentiment") or ""),
        str(label.get("topic") or ""),
        *(f"{name}={value}" for name, value in sorted((label.get("entities") or {}).items())),
        str(label.get("author") or ""),
        created_at.isoformat() if created_at else "",
    )
    return hashlib.sha256("\x1f".join(parts).encode("utf-8", "surrogatepass")).hexdigest()[:32]


def _bad(where: str, what: str) -> InputError:
    return InputError(f"{where}: {what}.", "`sentiment-monitor labels import --help` shows the format.")


def _sentiment(value: object, where: str, field: str) -> Sentiment | None:
    if value is None or value == "":
        return None
    try:
        return Sentiment(str(value))
    except ValueError:
        raise _bad(where, f"{field} must be negative, neutral or positive, not {str(value)[:40]!r}") from None


def _string(fields: Mapping[str, Any], name: str, where: str, longest: int) -> str:
    value = fields.get(name)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise _bad(where, f"{name} must be a string")
    value = value.replace("\x00", "").strip()
    if len(value) > longest:
        raise _bad(where, f"{name} has {len(value)} characters; the limit is {longest}")
    return value


def decode_label(
    fields: object,
    *,
    where: str,
    taxonomy: Taxonomy,
    author: str = "",
    now: datetime | None = None,
    max_text_chars: int = 50_000,
) -> Label:
    """A correction from decoded JSON: `text` and at least one of `sentiment`, `topic`, `entities`.

    `where` ("line 7") opens the message of the `InputError` that says what is wrong. `author` and `now` stand in for
    fields that are missing; without an `id` one is derived from the content. Unknown fields are ignored.
    """
    if not isinstance(fields, dict):
        raise _bad(where, "this is not a JSON object")
    text = _string(fields, "text", where, max_text_chars)
    if not text:
        raise _bad(where, "the text is missing")
    topic = _string(fields, "topic", where, 128) or None
    if topic is not None and topic not in taxonomy.labels:
        raise _bad(where, f"the topic {topic[:40]!r} is not one of the taxonomy {taxonomy.name}")
    given = fields.get("entities") or {}
    if not isinstance(given, dict):
        raise _bad(where, "entities must map names to sentiments")
    entities: dict[str, Sentiment] = {}
    for name, value in given.items():
        sentiment = _sentiment(value, where, f"the sentiment of {name[:40]!r}")
        if sentiment is not None and name.strip():
            entities[name.strip()] = sentiment
    created_at = None
    if fields.get("created_at") is not None:
        created_at = parse_time(fields["created_at"])
        if created_at is None:
            raise _bad(where, "created_at is not an RFC 3339 time")
    named = {
        "text": text,
        "item_id": _string(fields, "item_id", where, MAX_ID_CHARS),
        "sentiment": _sentiment(fields.get("sentiment"), where, "sentiment"),
        "topic": topic,
        "entities": entities,
        "author": _string(fields, "author", where, MAX_AUTHOR_CHARS) or author,
        "comment": _string(fields, "comment", where, MAX_COMMENT_CHARS),
    }
    if named["sentiment"] is None and topic is None and not entities:
        raise _bad(where, "at least one of sentiment, topic and entities is needed")
    return Label(
        id=_string(fields, "id", where, 64) or _content_id(named, created_at),
        created_at=created_at or now or datetime.now(UTC),
        **named,  # type: ignore[arg-type]
    )


def encode_label(label: Label) -> bytes:
    """The JSON line of a label, which `decode_label` takes back and `evaluate` reads."""
    return msgspec.json.encode(label)


def write_labels(written: Iterable[Label]) -> bytes:
    """JSON Lines of labels."""
    return b"".join(encode_label(label) + b"\n" for label in written)


def read_labels(data: bytes, *, taxonomy: Taxonomy, author: str, max_text_chars: int) -> list[Label]:
    """Labels from JSON Lines. Raises `InputError`, naming the line, when any of them is wrong."""
    now = datetime.now(UTC)
    found = []
    for number, line in enumerate(data.removeprefix(b"\xef\xbb\xbf").split(b"\n"), start=1):
        if not line.strip():
            continue
        where = f"line {number}"
        try:
            fields = msgspec.json.decode(line)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise _bad(where, f"this is not JSON ({error})") from error
        found.append(
            decode_label(fields, where=where, taxonomy=taxonomy, author=author, now=now, max_text_chars=max_text_chars)
        )
    return found


def add_labels(connection: Connection, added: Iterable[Label]) -> int:
    """Store corrections; those whose id is there already are left as they are. Returns how many were new."""
    rows = {
        label.id: {
            "id": label.id,
            "item_id": label.item_id or None,
            "text": label.text,
            "sentiment": label.sentiment,
            "topic": label.topic,
            "entities": {name: str(value) for name, value in label.entities.items()},
            "author": label.author,
            "comment": label.comment,
            "created_at": label.created_at,
        }
        for label in added
    }
    return len(insert_missing(connection, labels, rows.values())) if rows else 0


def _label(row: Any) -> Label:
    return Label(
        id=row.id,
        text=row.text,
        created_at=row.created_at,
        author=row.author,
        item_id=row.item_id or "",
        sentiment=Sentiment(row.sentiment) if row.sentiment else None,
        topic=row.topic,
        entities={name: Sentiment(value) for name, value in row.entities.items()},
        comment=row.comment,
    )


def list_labels(
    connection: Connection, *, since: datetime | None = None, author: str = "", limit: int | None = None
) -> list[Label]:
    """Corrections made after `since`, newest first."""
    query = select(labels).order_by(labels.c.created_at.desc(), labels.c.id)
    if since is not None:
        query = query.where(labels.c.created_at > since)
    if author:
        query = query.where(labels.c.author == author)
    return [_label(row) for row in connection.execute(query.limit(limit))]


def label_history(connection: Connection, item_id: str) -> list[Label]:
    """All corrections of one item, newest first."""
    query = select(labels).where(labels.c.item_id == item_id).order_by(labels.c.created_at.desc(), labels.c.id)
    return [_label(row) for row in connection.execute(query)]


def count_labels(connection: Connection, *, since: datetime | None = None) -> int:
    """How many corrections were made after `since`."""
    query = select(func.count()).select_from(labels)
    if since is not None:
        query = query.where(labels.c.created_at > since)
    return int(connection.execute(query).scalar_one())


def training_rows(connection: Connection, *, since: datetime | None = None) -> Sequence[TrainingRow]:
    """What training learns from: one row for each corrected text, oldest first.

    Where several corrections speak of the same item (or the same text), the newest one that judged a field counts
    for that field.
    """
    merged: dict[str, TrainingRow] = {}
    for label in reversed(list_labels(connection, since=since)):
        place = label.item_id or label.text
        known = merged.get(place, TrainingRow(text=label.text))
        merged[place] = TrainingRow(
            text=label.text,
            sentiment=label.sentiment or known.sentiment,
            topic=label.topic or known.topic,
            entities=known.entities | label.entities,
        )
    return list(merged.values())
