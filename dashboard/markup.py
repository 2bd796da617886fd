"""How things are written on a page. Headlines, tickers and addresses come from strangers: whatever is not fixed text
of ours goes through `plain` into Markdown and through `escape` into HTML, and only `web_link` makes links."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta
from html import escape
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

import streamlit as st

from monitor.alerts.records import Alert, clean_text, clean_url
from monitor.records import Sentiment

__all__ = [
    "SENTIMENT_MARKS",
    "STATE_MARKS",
    "Html",
    "alert_link",
    "at_minute",
    "cells",
    "chip",
    "clock",
    "details",
    "escape",
    "item_link",
    "markup",
    "plain",
    "sentiment_chip",
    "settled",
    "signed",
    "style",
    "table",
    "web_link",
]

# A sign of its own for each class: colour alone tells nothing to one man in twelve.
SENTIMENT_MARKS: Final = {Sentiment.NEGATIVE: "▼", Sentiment.NEUTRAL: "■", Sentiment.POSITIVE: "▲"}
STATE_MARKS: Final = {
    "pending": "◌ pending",
    "firing": "● firing",
    "acknowledged": "◐ acknowledged",
    "resolved": "○ resolved",
}

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_PUNCTUATION = re.compile(r"([!-/:-@\[-`{-~])")


class Html(str):
    """HTML that was put together from fixed parts and escaped values."""

    __slots__ = ()


def plain(text: str, limit: int = 500) -> str:
    """`text` for a place that reads Markdown: shown letter by letter, on one line, nothing in it is obeyed.

    Colons and addresses are broken by an invisible word joiner: emoji names and bare addresses are recognised
    even in text without Markdown.
    """
    line = clean_text(text, limit)
    line = re.sub(r"(?i)\b(https?|mailto|xmpp|www)(?=[:.])", "\\1\u2060", line.replace("@", "@\u2060"))
    return _PUNCTUATION.sub(r"\\\1", line).replace(r"\:", "\\:\u2060")


def markup(html: str) -> None:
    """Write HTML that was put together from fixed parts and escaped values."""
    st.html(html)


def style() -> None:
    """The style sheet; once per page."""
    st.html(Path(__file__).with_name("style.css"))


def details(values: Mapping[str, Any]) -> str:
    """What else is noted of an event, in one line of text."""

    def shown(value: Any) -> str:
        return ", ".join(map(str, value)) if isinstance(value, list) else str(value)

    told = "; ".join(f"{name.replace('_', ' ')}: {shown(value)}" for name, value in values.items())
    return clean_text(told)


def clock(at: datetime | None) -> str:
    """A time as it stands everywhere: UTC to the minute."""
    return f"{at.astimezone(UTC):%Y-%m-%d %H:%M}" if at else "–"


def at_minute(minute: int) -> datetime:
    """The moment at which an epoch minute begins."""
    return _EPOCH + timedelta(minutes=minute)


def settled(value: float | None) -> float | None:
    """`value` to two decimals, as a column of numbers shows it; what rounds to nothing loses its minus."""
    return None if value is None else round(value, 2) + 0.0


def signed(value: float) -> str:
    """`value` with its sign and two decimals; 0.00 for what rounds to nothing."""
    return f"{rounded:+.2f}" if (rounded := round(value, 2)) else "0.00"


def web_link(url: str, text: str) -> str:
    """HTML: `text` as a link to a web address; without the link when `url` is anything else."""
    address = clean_url(url)
    if not address:
        return escape(clean_text(text))
    return f'<a href="{escape(address)}" target="_blank" rel="noopener noreferrer">{escape(clean_text(text))}</a>'


def item_link(item_id: str, text: str) -> str:
    """HTML: `text` as a link to an item's page."""
    return f'<a href="articles?item={quote(item_id, safe="")}">{escape(clean_text(text) or item_id)}</a>'


def alert_link(alert: Alert) -> Html:
    """The alert's key as a link to its page."""
    return Html(f'<a href="alerts?alert={quote(alert.id, safe="")}">{escape(clean_text(alert.title))}</a>')


def chip(text: str, kind: str) -> Html:
    """A small label; `kind` names its colour in the style sheet."""
    return Html(f'<span class="chip {escape(kind)}">{escape(text)}</span>')


def sentiment_chip(label: Sentiment) -> Html:
    """A sentiment with its sign and colour."""
    return chip(f"{SENTIMENT_MARKS[label]} {label.value}", label.value)


def cells(*values: object) -> tuple[str, ...]:
    """The cells of a row: times and text as they are shown, escaped; `Html` as it is; nothing as a dash."""

    def cell(value: object) -> str:
        if isinstance(value, Html):
            return value
        if isinstance(value, datetime):
            return f"<time>{clock(value)}</time>"
        return escape(str(value)) if value not in (None, "") else "–"

    return tuple(map(cell, values))


def table(head: Iterable[str], rows: Iterable[Iterable[str]], caption: str) -> None:
    """Write a table of HTML cells; it scrolls sideways where it is too wide. `caption` is read out, not shown."""
    heading = "".join(f'<th scope="col">{escape(name)}</th>' for name in head)
    body = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
    markup(
        f'<div class="wide"><table class="rows"><caption>{escape(caption)}</caption>'
        f"<thead><tr>{heading}</tr></thead><tbody>{body}</tbody></table></div>"
    )
