"""The public record of an alert: the value on the Kafka topic `alerts` and the `data` of every webhook.

The figures are those of the moment it fired or, once it got worse, of its worst minute so far. Titles, sources and
addresses come from strangers' feeds: they are cleaned here (no control characters, web addresses only) and still have
to be escaped by whoever shows them.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable
from datetime import datetime
from enum import StrEnum
from typing import Any, Final
from urllib.parse import quote, urlsplit

import msgspec

from monitor.records import SCHEMA_VERSION
from monitor.surges.sorts import NEGATIVE
from monitor.taxonomy import Taxonomy, bundled_taxonomy

__all__ = [
    "MAX_PAYLOAD_BYTES",
    "MAX_STORIES",
    "SEVERITIES",
    "Alert",
    "AlertState",
    "AlertStory",
    "AlertWindow",
    "Digest",
    "DigestContent",
    "DigestEntry",
    "Notice",
    "alert_from_builtins",
    "bounded",
    "clean_text",
    "clean_url",
    "expectation",
    "key_title",
    "view_link",
]

SEVERITIES: Final = ("warning", "high", "critical")
MAX_STORIES: Final = 20
# The Standard Webhooks specification asks for payloads under 20 kB; the envelope needs some of it.
MAX_PAYLOAD_BYTES: Final = 19_500
MAX_TITLE_CHARS: Final = 300
MAX_URL_CHARS: Final = 1_000


class AlertState(StrEnum):
    """Where an episode stands. `PENDING` is never published: it is the time before the evidence sufficed."""

    PENDING = "pending"
    FIRING = "firing"
    ACKNOWLEDGED = "acknowledged"
    RESOLVED = "resolved"


class AlertWindow(msgspec.Struct, frozen=True, kw_only=True):
    """The stretch of event time that the figures count: `start` (included) to `end` (not included)."""

    minutes: int
    start: datetime
    end: datetime


class AlertStory(msgspec.Struct, frozen=True, kw_only=True):
    """One story of the sort that surges: the first item that told it and how many copies of it were published.

    `p_negative` and `p_positive` are the model's probabilities, in [0, 1], that the first item is negative, positive
    towards the alert's key.
    """

    item_id: str
    title: str
    url: str
    source: str
    published_at: datetime
    copies: int
    p_negative: float
    p_positive: float = 0.0


class Alert(msgspec.Struct, frozen=True, kw_only=True):
    """One episode of surprisingly many stories of one sort under one key.

    `surge` says which: `negative` stories, `positive` ones, or `volume`: all, whatever they say. `observed` stories of
    that sort out of `total` stories were counted in `window`, where `expected` of them were to be expected; `share` =
    observed / total against `expected_share` (both 1 for volume). `p_value` is the chance of a count at least as
    surprising in quiet times. `sources` is the number of distinct publishers of the stories of that sort.
    """

    id: str
    state: AlertState
    rule: str
    surge: str = NEGATIVE
    key: str
    title: str
    severity: str
    window: AlertWindow
    observed: int
    expected: float
    total: int
    share: float
    expected_share: float
    p_value: float
    sources: int
    stories: tuple[AlertStory, ...]
    model_version: str
    started_at: datetime
    fired_at: datetime
    link: str
    acknowledged_at: datetime | None = None
    acknowledged_by: str | None = None
    resolved_at: datetime | None = None
    schema_version: int = SCHEMA_VERSION


class Notice(msgspec.Struct, frozen=True, kw_only=True):
    """The body of a webhook as Standard Webhooks has it. `type` is `alert.firing`, `alert.acknowledged`,
    `alert.resolved`; `timestamp` is when that happened in event time."""

    type: str
    timestamp: datetime
    data: Alert


class DigestEntry(msgspec.Struct, frozen=True, kw_only=True):
    """One notice of a digest, in short; `webhook_id` is the id that it would have had by itself."""

    webhook_id: str
    type: str
    timestamp: datetime
    id: str
    state: AlertState
    surge: str = NEGATIVE
    key: str
    title: str
    severity: str
    observed: int
    expected: float
    fired_at: datetime
    resolved_at: datetime | None
    link: str

    @classmethod
    def of(cls, webhook_id: str, notice: Notice) -> DigestEntry:
        """The short form of a notice."""
        alert = notice.data
        return cls(
            webhook_id=webhook_id,
            type=notice.type,
            timestamp=notice.timestamp,
            id=alert.id,
            state=alert.state,
            surge=alert.surge,
            key=alert.key,
            title=alert.title,
            severity=alert.severity,
            observed=alert.observed,
            expected=alert.expected,
            fired_at=alert.fired_at,
            resolved_at=alert.resolved_at,
            link=alert.link,
        )


class DigestContent(msgspec.Struct, frozen=True, kw_only=True):
    """The `data` of a digest: notices in order."""

    notices: tuple[DigestEntry, ...]
    schema_version: int = SCHEMA_VERSION


class Digest(msgspec.Struct, frozen=True, kw_only=True):
    """The body of a webhook of type `alert.digest`: several notices in one, because they belong to one group or there
    were more than the receiver's rate allows."""

    timestamp: datetime
    data: DigestContent
    type: str = "alert.digest"


def alert_from_builtins(value: Any) -> Alert:
    """An alert from the JSON that the store holds. Raises `msgspec.ValidationError` on anything else."""
    return msgspec.convert(value, Alert)


def clean_text(text: str, limit: int = MAX_TITLE_CHARS) -> str:
    """`text` on one line, without control and direction-changing characters, at most `limit` characters."""
    visible = "".join(" " if c.isspace() else c for c in text if c.isspace() or unicodedata.category(c)[0] != "C")
    line = " ".join(visible.split())
    return line if len(line) <= limit else f"{line[: limit - 1].rstrip()}…"


def clean_url(url: str) -> str:
    """`url` if it is a web address that can be put behind a link, else the empty string."""
    url = url.strip()
    if len(url) > MAX_URL_CHARS or any(c.isspace() or unicodedata.category(c)[0] == "C" for c in url):
        return ""
    try:
        parts = urlsplit(url)
    except ValueError:
        return ""
    return url if parts.scheme.lower() in ("http", "https") and parts.hostname else ""


def key_title(key: str, taxonomy: Taxonomy | None = None) -> str:
    """What a person reads for a window key: `ticker:AAPL` is AAPL, `topic:earnings` the topic's title in `taxonomy`
    (None: the bundled one)."""
    kind, _, name = key.partition(":")
    if key == "market":
        return "Whole market"
    return (taxonomy or bundled_taxonomy()).title(name) if kind == "topic" else name or key


def expectation(stories: float) -> str:
    """What a person reads for an expected number of stories; a rare event is not called impossible."""
    return f"{stories:.1f}" if stories >= 0.05 else "under 0.1"


def view_link(dashboard_url: str, alert_id: str) -> str:
    """Address of the alert's page in the dashboard."""
    return f"{dashboard_url.rstrip('/')}/?alert={quote(alert_id, safe='')}"


def bounded(alert: Alert, stories: Iterable[AlertStory]) -> Alert:
    """`alert` with as many of `stories` (most telling first) as its size and number allow."""
    kept = tuple(stories)[:MAX_STORIES]
    while True:
        full = msgspec.structs.replace(alert, stories=kept)
        if not kept or len(msgspec.json.encode(full)) <= MAX_PAYLOAD_BYTES:
            return full
        kept = kept[:-1]
