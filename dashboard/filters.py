"""What the pages are about: a key, a stretch of event time, a resolution. They stand in the address, so a view can be
bookmarked and sent on. Ranges end at the newest news in the store: a replay of last year is as alive as today."""

from __future__ import annotations

from datetime import UTC, datetime
from functools import partial
from typing import Any, Final

import msgspec
import streamlit as st

from dashboard.markup import at_minute, clock
from dashboard.store import engine, settings, taxonomy
from monitor.alerts.records import key_title
from monitor.storage.engine import reading
from monitor.storage.trends import DAY, HOUR, MARKET, keys_by_volume, newest_minute, oldest_minute, topic_keys
from monitor.taxonomy import Taxonomy

__all__ = ["Span", "choose_key", "choose_span", "choose_step", "empty_store", "newest", "span_of", "title_of"]

# Minutes; 0 is everything.
RANGES: Final = {"1 h": 60, "6 h": 360, "24 h": DAY, "3 d": 3 * DAY, "7 d": 7 * DAY, "30 d": 30 * DAY, "all": 0}
STEPS: Final = {"minute": 1, "15 min": 15, "hour": HOUR, "day": DAY}
# More points than a screen has pixels slow the page down and show nothing more.
MOST_POINTS: Final = 1500
# So that a picture does not consist of three bars; used to choose, not to forbid.
FEWEST_POINTS: Final = 60
LISTED_TICKERS: Final = 2000


class Span(msgspec.Struct, frozen=True):
    """Epoch minutes of event time, [start, end)."""

    start: int
    end: int

    @property
    def minutes(self) -> int:
        """Length in minutes."""
        return self.end - self.start

    @property
    def begins(self) -> datetime:
        """Start as a time."""
        return at_minute(self.start)

    @property
    def ends(self) -> datetime:
        """End as a time."""
        return at_minute(self.end)

    def __str__(self) -> str:
        return f"{clock(self.begins)} to {clock(self.ends)} UTC"


def title_of(key: str, topics: Taxonomy | None = None) -> str:
    """A key as a person reads it: its kind, too, where it is not plain. `topics` are those of this installation, read
    anew if not given."""
    kind, _, name = key.partition(":")
    if kind == "topic":
        return f"Topic: {key_title(key, topics or taxonomy())}"
    return name if kind == "ticker" else key_title(key)


def empty_store() -> None:
    """What is shown before anything has been counted."""
    st.info(
        "Nothing has been counted yet. News appears here as soon as the worker has scored it and the aggregator has "
        "counted it: `sentiment-monitor demo` shows it with a bundled stream, `sentiment-monitor feed` sends your own.",
        icon=":material/hourglass_empty:",
    )


@st.cache_data(ttl=60, max_entries=8, show_spinner=False)
def _known_keys(database: str, _engine: Any, day: int) -> list[str]:  # noqa: ARG001 - the arguments are the cache's key
    with reading(_engine) as connection:
        tickers = keys_by_volume(connection, "ticker:", since=day - 30 * DAY, limit=LISTED_TICKERS)
        return [MARKET, *topic_keys(connection), *tickers]


def newest() -> int | None:
    """The newest epoch minute that anything was counted in; None while the store is empty."""
    with reading(engine()) as connection:
        return newest_minute(connection, not_after=int(datetime.now(UTC).timestamp()) // 60 + 1)


def choose_key(*, place: Any = st, name: str = "key") -> str:
    """A picker of window keys; a ticker that is not listed can be typed. `name` is that of the field in the address."""
    last = newest() or 0
    known = _known_keys(settings().database, engine(), last - last % DAY)
    chosen = place.selectbox(
        "Market, topic or ticker",
        known,
        key=name,
        bind="query-params",
        format_func=partial(title_of, topics=taxonomy()),
        accept_new_options=True,
        help="Type to search; a ticker that is not listed may be typed in full.",
    )
    if not chosen:
        return MARKET
    if chosen in known or ":" in chosen:
        return str(chosen)
    return f"ticker:{str(chosen).strip().lstrip('$').upper()}"


def _fair_range() -> str:
    """The shortest range that holds all there is, a day at the most."""
    everything = span_of("all")
    length = everything.minutes if everything else DAY
    return next(name for name, minutes in RANGES.items() if minutes >= min(length, DAY))


def choose_span(*, place: Any = st) -> Span | None:
    """A picker of ranges; None while the store is empty."""
    default = _fair_range()
    label = place.segmented_control("Range", list(RANGES), default=default, key="range", bind="query-params")
    return span_of(label or default)


def span_of(label: str) -> Span | None:
    """The stretch of that name, which ends with the newest minute that anything was counted in."""
    last = newest()
    if last is None:
        return None
    end = last + 1
    if RANGES[label]:
        return Span(end - RANGES[label], end)
    with reading(engine()) as connection:
        return Span(oldest_minute(connection) or last, end)


def choose_step(span: Span, *, place: Any = st) -> int:
    """A picker of resolutions, in minutes; only those that make a readable number of points."""
    fitting = [name for name, step in STEPS.items() if 4 <= span.minutes / step <= MOST_POINTS] or ["minute"]
    fair = next((name for name in reversed(fitting) if span.minutes / STEPS[name] >= FEWEST_POINTS), fitting[0])
    chosen = place.segmented_control("Resolution", fitting, default=fair, key=f"step-{span.minutes}")
    return STEPS[chosen or fair]
