"""News items from RSS and Atom feeds.

Conditional requests (ETag, Last-Modified) keep polling cheap; a feed that fails is left alone for longer and longer,
or as long as it asks for (`Retry-After`).
"""

from __future__ import annotations

import io
from calendar import timegm
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
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
TIMEOUT_S: Final = 20.0
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
    """Items of a feed's document. An entry without a date, a title or with an absurd date is skipped with a reason."""
    # Bytes in a stream: the parser would take a plain string for an address or a file name.
    document = feedparser.parse(io.BytesIO(data))
    host = urlsplit(url).hostname or ""
    if not document.entries:
        return Polled(problem="" if document.get("version") else f"{url} is no feed.")
    source = plain_text(str(document.feed.get("title", "")))[:256] or host
    lang = str(document.feed.get("language", ""))[:35]
    out = Polled()
    for entry in document.entries[:MAX_ENTRIES]:
        link = str(entry.get("link", ""))
        name = str(entry.get("id", "")) or link
        title = plain_text(str(entry.get("title", "")))
        label = (title or name or "an entry")[:80]
        when = _when(entry)
        if not when:
            out.skipped.append(f"{label!r} has no date.")
            continue
        if not name:
            name = f"{title} {when}"
        fields = {
            "id": derive_id(host, name, "", "", now),
            "source": source,
            "url": link if urlsplit(link).scheme in ("http", "https") else "",
            "title": title,
            "body": plain_text(_body(entry)),
            "lang": lang,
            "published_at": when,
        }
        item = news_item(fields, now)
        if isinstance(item, Rejected):
            out.skipped.append(f"{label!r}: {item.reason}")
        else:
            out.items.append(item)
    return out


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
        self._etag = ""
        self._modified = ""
        self._seen: OrderedDict[str, None] = OrderedDict()

    def poll(self, client: httpx.Client, now: datetime, clock_s: float) -> Polled:
        """Look at the feed; `due_s` says afterwards when (on the clock of `clock_s`) to look again. Never raises."""
        try:
            polled, wait_s = self._get(client, now)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            polled, wait_s = Polled(problem=f"{self.url}: {error or type(error).__name__}"), None
        if polled.problem:
            self._failures += 1
            pause = min(LONGEST_PAUSE_S, self._interval_s * 2**self._failures)
            self.due_s = clock_s + max(pause, min(LONGEST_PAUSE_S, wait_s or 0.0))
        else:
            self._failures = 0
            self.due_s = clock_s + self._interval_s
        return polled

    def _get(self, client: httpx.Client, now: datetime) -> tuple[Polled, float | None]:
        headers = {"If-None-Match": self._etag, "If-Modified-Since": self._modified}
        with client.stream("GET", self.url, headers={k: v for k, v in headers.items() if v}) as response:
            if response.status_code == httpx.codes.NOT_MODIFIED:
                return Polled(), None
            if response.is_error or not response.is_success:
                wait_s = _retry_after(response.headers.get("Retry-After", ""), now)
                return Polled(problem=f"{self.url} answers {response.status_code}."), wait_s
            data = bytearray()
            for chunk in response.iter_bytes():
                data += chunk
                if len(data) > MAX_FEED_BYTES:
                    return Polled(problem=f"{self.url} is larger than {MAX_FEED_BYTES} bytes."), None
        polled = parse_feed(bytes(data), str(response.url), now)
        if not polled.problem:
            self._etag = response.headers.get("ETag", "")
            self._modified = response.headers.get("Last-Modified", "")
        return self._only_new(polled), None

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
        self._etag = self._modified = ""


def _retry_after(value: str, now: datetime) -> float | None:
    """Seconds that a server asks to be left alone (RFC 9110, 10.2.3: seconds or a date)."""
    if value.isascii() and value.isdigit():
        return float(value)
    try:
        return (parsedate_to_datetime(value) - now).total_seconds()
    except (ValueError, TypeError):
        return None
