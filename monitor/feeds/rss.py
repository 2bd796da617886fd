"""News items from RSS and Atom feeds.

Conditional requests (ETag, Last-Modified) keep polling cheap; a feed that fails is left alone for longer and longer,
or as long as it asks for (`Retry-After`).
"""

from __future__ import annotations

import io
import time
from calendar import timegm
from collections import OrderedDict
from collections.abc import Callable, Mapping
from concurrent.futures import Future, wait
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from threading import Thread
from typing import Any, Final
from urllib.parse import urlsplit

import feedparser
import httpx
import trafilatura

from monitor.egress.policy import EgressPolicy
from monitor.egress.transport import guarded_transport
from monitor.errors import ConfigurationError
from monitor.records import NewsItem, Rejected, derive_id, news_item

__all__ = ["Polled", "RssFeed", "check_url", "open_client", "parse_feed", "plain_text"]

MAX_FEED_BYTES: Final = 8 << 20
MAX_ENTRIES: Final = 1000
REMEMBERED: Final = 5000
LONGEST_PAUSE_S: Final = 3600.0
# For one step, connecting or reading once; and for all of a look, however a server spins it out.
TIMEOUT_S: Final = 20.0
TOTAL_S: Final = 60.0
LOOK_EVERY_S: Final = 0.2
_AGENT: Final = "sentiment-monitor (+https://pypi.org/project/sentiment-monitor/)"


def check_url(url: str) -> str:
    """The URL, if it is an http or https address. Raises `ConfigurationError`."""
    try:
        parts = httpx.URL(url)
        usable = parts.scheme in ("http", "https") and bool(parts.host)
    except httpx.InvalidURL:
        usable = False
    if not usable:
        raise ConfigurationError(f"{url!r} is no address of a feed.", "It has to begin with http:// or https://.")
    return url


def open_client(policy: EgressPolicy) -> httpx.Client:
    """An HTTP client for feeds: short time-outs, few redirects, http and https only, nowhere that `policy` forbids."""
    return httpx.Client(
        transport=guarded_transport(policy),
        timeout=TIMEOUT_S,
        follow_redirects=True,
        max_redirects=5,
        headers={"User-Agent": _AGENT, "Accept": "application/rss+xml, application/atom+xml, application/xml;q=0.9"},
    )


def plain_text(markup: str) -> str:
    """The text of an HTML fragment, without scripts, on one line."""
    if "<" not in markup and "&" not in markup:
        return " ".join(markup.split())
    # The extractor wants a document.
    return " ".join(trafilatura.html2txt(f"<html><body><div>{markup}</div></body></html>").split())


@dataclass(slots=True)
class Polled:
    """Outcome of one look at a feed: new items, why entries were left out, and what went wrong with the request."""

    items: list[NewsItem] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    problem: str = ""


def _when(entry: Mapping[str, Any]) -> str:
    parsed = entry.get("published_parsed") or entry.get("updated_parsed")
    try:
        return datetime.fromtimestamp(timegm(parsed), UTC).isoformat() if parsed else ""
    except (ValueError, OverflowError, OSError):
        return ""


def _body(entry: Mapping[str, Any]) -> str:
    contents = [str(part.get("value", "")) for part in entry.get("content") or ()]
    return max([*contents, str(entry.get("summary", ""))], key=len)


def parse_feed(data: bytes, url: str, now: datetime) -> Polled:
    """Items of a feed's document. An entry without a date, a title or with an absurd date is skipped with a reason, and
    so is one whose link is no address or that no sense can be made of."""
    # Bytes in a stream: the parser would take a plain string for an address or a file name.
    document = feedparser.parse(io.BytesIO(data))
    host = urlsplit(url).hostname or ""
    if not document.entries:
        return Polled(problem="" if document.get("version") else f"{url} is no feed.")
    source = plain_text(str(document.feed.get("title", "")))[:256] or host
    given = {"source": source, "lang": str(document.feed.get("language", ""))[:35]}
    out = Polled()
    for entry in document.entries[:MAX_ENTRIES]:
        try:
            item = _item(entry, host, given, now)
        except Exception as error:  # noqa: BLE001 - what strangers write may make any of the parsers stumble
            item = f"{_label(entry)!r} cannot be read: {error or type(error).__name__}."
        if isinstance(item, NewsItem):
            out.items.append(item)
        else:
            out.skipped.append(item)
    return out


def _label(entry: Mapping[str, Any]) -> str:
    return str(entry.get("title") or entry.get("id") or entry.get("link") or "an entry")[:80]


def _item(entry: Mapping[str, Any], host: str, given: Mapping[str, str], now: datetime) -> NewsItem | str:
    """The item of an entry, or why it is none. Raises `ValueError` for a link that is no address."""
    link = str(entry.get("link", ""))
    name = str(entry.get("id", "")) or link
    title = plain_text(str(entry.get("title", "")))
    label = (title or name or "an entry")[:80]
    when = _when(entry)
    if not when:
        return f"{label!r} has no date."
    if not name:
        name = f"{title} {when}"
    fields = {
        **given,
        "id": derive_id(host, name, "", "", now),
        "url": link if urlsplit(link).scheme in ("http", "https") else "",
        "title": title,
        "body": plain_text(_body(entry)),
        "published_at": when,
    }
    item = news_item(fields, now)
    return f"{label!r}: {item.reason}" if isinstance(item, Rejected) else item


@dataclass(slots=True)
class _Answer:
    """What a look at a feed has found. `wait_s` is how long its server asks to be left alone, `validators` the ETag and
    Last-Modified of a new document; None: there is none."""

    polled: Polled
    wait_s: float | None = None
    validators: tuple[str, str] | None = None


class RssFeed:
    """One feed that is polled again and again.

    Parameters
    ----------
    url : http or https address; anything else raises `ConfigurationError`.
    interval_s : seconds between two looks while all goes well.
    """

    def __init__(self, url: str, interval_s: float) -> None:
        self.url = check_url(url)
        self.due_s = 0.0
        self._interval_s = interval_s
        self._failures = 0
        self._validators = ("", "")
        self._seen: OrderedDict[str, None] = OrderedDict()
        self._hanging: Future[_Answer] | None = None

    def poll(
        self, client: httpx.Client, now: datetime, clock_s: float, stopping: Callable[[], bool] = lambda: False
    ) -> Polled:
        """Look at the feed; `due_s` says afterwards when (on the clock of `clock_s`) to look again. Never raises.

        Takes `TOTAL_S` at the most, less when `stopping` turns true, which is asked all the time.
        """
        answer = self._look(client, now, stopping)
        if answer.polled.problem:
            self._failures += 1
            pause = min(LONGEST_PAUSE_S, self._interval_s * 2**self._failures)
            self.due_s = clock_s + max(pause, min(LONGEST_PAUSE_S, answer.wait_s or 0.0))
        else:
            self._failures = 0
            self.due_s = clock_s + self._interval_s
            self._validators = answer.validators or self._validators
        return self._only_new(answer.polled)

    def _look(self, client: httpx.Client, now: datetime, stopping: Callable[[], bool]) -> _Answer:
        """On a thread of its own, which is left behind when it takes too long: neither a name server nor a server that
        sends a byte now and then may hold up the other feeds."""
        if self._hanging is not None and not self._hanging.done():
            return _Answer(Polled(problem=f"{self.url} has not finished its last answer yet."))
        headers = dict(zip(("If-None-Match", "If-Modified-Since"), self._validators, strict=True))
        asked = {name: value for name, value in headers.items() if value}
        future: Future[_Answer] = Future()
        self._hanging = future
        until = time.monotonic() + TOTAL_S
        Thread(target=_answer, args=(future, client, self.url, asked, now, until), daemon=True).start()
        while not future.done():
            if stopping():
                return _Answer(Polled(problem=f"{self.url}: stopped while it was read."))
            if time.monotonic() > until:
                return _Answer(Polled(problem=f"{self.url} has not finished its answer within {TOTAL_S:.0f} s."))
            wait([future], timeout=LOOK_EVERY_S)
        return future.result()

    def _only_new(self, polled: Polled) -> Polled:
        polled.items = [item for item in polled.items if item.id not in self._seen]
        for item in polled.items:
            self._seen[item.id] = None
        while len(self._seen) > REMEMBERED:
            self._seen.popitem(last=False)
        return polled

    def forget(self, items: list[NewsItem]) -> None:
        """These could not be handed on: the next look yields them again, whatever the server says has changed."""
        for item in items:
            self._seen.pop(item.id, None)
        self._validators = ("", "")


def _answer(
    future: Future[_Answer], client: httpx.Client, url: str, headers: Mapping[str, str], now: datetime, until: float
) -> None:
    """Put what is found at `url` into `future`; a problem whatever goes wrong."""
    try:
        found = _get(client, url, headers, now, until)
    except Exception as error:  # noqa: BLE001 - a strange document may make any of the parsers stumble
        found = _Answer(Polled(problem=f"{url}: {error or type(error).__name__}"))
    future.set_result(found)


def _get(client: httpx.Client, url: str, headers: Mapping[str, str], now: datetime, until: float) -> _Answer:
    with client.stream("GET", url, headers=headers) as response:
        if response.status_code == httpx.codes.NOT_MODIFIED:
            return _Answer(Polled())
        if response.is_error or not response.is_success:
            wait_s = _retry_after(response.headers.get("Retry-After", ""), now)
            return _Answer(Polled(problem=f"{url} answers {response.status_code}."), wait_s)
        data = bytearray()
        for chunk in response.iter_bytes():
            data += chunk
            if len(data) > MAX_FEED_BYTES:
                return _Answer(Polled(problem=f"{url} is larger than {MAX_FEED_BYTES} bytes."))
            if time.monotonic() > until:
                return _Answer(Polled(problem=f"{url} sends too slowly."))
    polled = parse_feed(bytes(data), str(response.url), now)
    validators = (response.headers.get("ETag", ""), response.headers.get("Last-Modified", ""))
    return _Answer(polled, validators=validators)


def _retry_after(value: str, now: datetime) -> float | None:
    """Seconds that a server asks to be left alone (RFC 9110, 10.2.3: seconds or a date)."""
    if value.isascii() and value.isdigit():
        return float(value)
    try:
        return (parsedate_to_datetime(value) - now).total_seconds()
    except (ValueError, TypeError):
        return None
