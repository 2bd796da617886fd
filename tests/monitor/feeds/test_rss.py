"""RSS and Atom: what is taken from a document, and manners towards servers."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from threading import Event, Thread

import httpx
import pytest
import respx

from monitor.egress.policy import feed_policy
from monitor.errors import ConfigurationError
from monitor.feeds import rss
from monitor.feeds.rss import MAX_FEED_BYTES, RssFeed, check_url, open_client, parse_feed, plain_text

NOW = datetime(2024, 1, 9, tzinfo=UTC)
URL = "https://news.example/feed"
POLICY = feed_policy([URL], "")
RSS = b"""<?xml version="1.0"?><rss version="2.0"><channel><title>Wire &amp; Co</title><language>en</language>
<item><guid>g1</guid><link>https://news.example/1</link><title>Profit &lt;b&gt;falls&lt;/b&gt;</title>
<description>&lt;p&gt;One.&lt;/p&gt;&lt;p&gt;Two.&lt;script&gt;alert(1)&lt;/script&gt;&lt;/p&gt;</description>
<pubDate>Mon, 08 Jan 2024 10:00:00 +0100</pubDate></item>
<item><guid>g2</guid><title>No date</title></item>
<item><guid>g3</guid><title>Old</title><pubDate>Mon, 08 Jan 1924 10:00:00 GMT</pubDate></item>
<item><link>javascript:alert(1)</link><title>Only a link</title><pubDate>Mon, 08 Jan 2024 11:00:00 GMT</pubDate></item>
</channel></rss>"""
ATOM = b"""<feed xmlns="http://www.w3.org/2005/Atom"><title>A</title><entry><id>urn:1</id><title>T</title>
<updated>2024-01-08T09:00:00Z</updated><content type="html">long content here</content><summary>s</summary></entry>
</feed>"""


def test_entries_become_items_or_are_skipped_with_a_reason() -> None:
    polled = parse_feed(RSS, URL, NOW)
    assert [item.title for item in polled.items] == ["Profit falls", "Only a link"]
    first, second = polled.items
    assert first.body == "One. Two."
    assert (first.source, first.lang, first.url) == ("Wire & Co", "en", "https://news.example/1")
    assert first.published_at == datetime(2024, 1, 8, 9, tzinfo=UTC)
    assert second.url == ""
    assert len(polled.skipped) == 2
    assert "no date" in polled.skipped[0]
    assert "1990" in polled.skipped[1]


def test_an_entry_with_a_malformed_link_costs_no_other_one() -> None:
    links = ("http://[bad", "https://[::1", "//[", "http://a]b/")
    entries = "".join(
        f"<item><guid>{n}</guid><title>T{n}</title><link>{link}</link>"
        f"<pubDate>Mon, 08 Jan 2024 11:00:00 GMT</pubDate></item>"
        for n, link in enumerate((*links, "https://news.example/good"))
    )
    polled = parse_feed(f'<rss version="2.0"><channel><title>A</title>{entries}</channel></rss>'.encode(), URL, NOW)
    assert [item.url for item in polled.items][-1] == "https://news.example/good"
    assert len(polled.items) + len(polled.skipped) == len(links) + 1
    assert polled.skipped[0].startswith("'T0' cannot be read: ")


def test_an_entry_that_a_parser_stumbles_over_costs_no_other_one(monkeypatch: pytest.MonkeyPatch) -> None:
    def stumble(markup: str) -> str:
        if "falls" in markup:
            raise RecursionError("too deep")
        return markup

    monkeypatch.setattr(rss, "plain_text", stumble)
    polled = parse_feed(RSS, URL, NOW)
    assert [item.title for item in polled.items] == ["Only a link"]
    assert "cannot be read: too deep." in polled.skipped[0]


@respx.mock
def test_whatever_a_document_does_to_the_parsers_is_a_problem_of_its_feed(monkeypatch: pytest.MonkeyPatch) -> None:
    respx.get(URL).mock(return_value=httpx.Response(200, content=RSS))
    monkeypatch.setattr(rss, "parse_feed", lambda *_: 1 // 0)
    feed = RssFeed(URL, 60)
    with open_client(POLICY) as client:
        assert "division" in feed.poll(client, NOW, 0.0).problem
    assert feed.due_s == 120


@contextmanager
def dripping(first: bytes) -> Iterator[str]:
    """A server that sends a byte now and then behind what it sends first; its address."""
    over = Event()

    def serve() -> None:
        with suppress(OSError):
            while not over.is_set():
                connection, _ = listener.accept()
                Thread(target=drip, args=(connection,), daemon=True).start()

    def drip(connection: socket.socket) -> None:
        with suppress(OSError), connection:
            connection.sendall(first)
            while not over.wait(0.05):
                connection.sendall(b"x")

    with socket.create_server(("127.0.0.1", 0)) as listener:
        Thread(target=serve, daemon=True).start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/feed"
        over.set()


@pytest.mark.parametrize("first", [b"HTTP/1.1 200 OK\r\nX-Long: ", b"HTTP/1.1 200 OK\r\n\r\n", b""])
def test_a_server_that_never_finishes_is_left_alone_after_a_while(
    first: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rss, "TOTAL_S", 0.5)
    with dripping(first) as url, open_client(feed_policy([url], "")) as client:
        feed = RssFeed(url, 60)
        began = time.monotonic()
        problem = feed.poll(client, NOW, 0.0).problem
        assert "within" in problem or "slowly" in problem
        assert time.monotonic() - began < 5
        assert feed.due_s == 120
        # Told to stop, it does not wait for that long either.
        monkeypatch.setattr(rss, "TOTAL_S", 60.0)
        other = RssFeed(url, 60)
        began = time.monotonic()
        assert "stopped" in other.poll(client, NOW, 0.0, lambda: time.monotonic() - began > 0.3).problem
        assert time.monotonic() - began < 5
        # One that is still at its last answer is not asked for another one.
        assert "not finished" in other.poll(client, NOW, 0.0).problem


def test_ids_are_stable_and_the_feeds_own() -> None:
    ids = [item.id for item in parse_feed(RSS, URL, NOW).items]
    assert ids == [item.id for item in parse_feed(RSS, URL, NOW + timedelta(days=1)).items]
    other = [item.id for item in parse_feed(RSS, "https://other.example/feed", NOW).items]
    assert set(ids).isdisjoint(other)


def test_atom_takes_the_fullest_text() -> None:
    (item,) = parse_feed(ATOM, URL, NOW).items
    assert (item.body, item.published_at) == ("long content here", datetime(2024, 1, 8, 9, tzinfo=UTC))


@pytest.mark.parametrize("data", [b"", b"<html><p>hello", b"\x00\xff", b"{}"])
def test_what_is_no_feed_is_a_problem(data: bytes) -> None:
    assert parse_feed(data, URL, NOW).problem


@pytest.mark.parametrize(
    ("markup", "text"),
    [("a  b\n c", "a b c"), ("5 &lt; 6 &amp; more", "5 < 6 & more"), ("<p>x</p><p>y", "x y"), ("", ""), ("<p>", "")],
)
def test_plain_text(markup: str, text: str) -> None:
    assert plain_text(markup) == text


@pytest.mark.parametrize("url", ["file:///etc/passwd", "ftp://x/y", "news.example/feed", "https://", "/etc/passwd"])
def test_only_web_addresses(url: str) -> None:
    with pytest.raises(ConfigurationError):
        check_url(url)


@respx.mock
def test_conditional_requests_and_nothing_twice() -> None:
    route = respx.get(URL)
    route.side_effect = [
        httpx.Response(200, content=RSS, headers={"ETag": '"v1"', "Last-Modified": "Mon, 08 Jan 2024 10:00:00 GMT"}),
        httpx.Response(304),
        httpx.Response(200, content=RSS),
    ]
    feed = RssFeed(URL, 60)
    with open_client(POLICY) as client:
        assert len(feed.poll(client, NOW, 0.0).items) == 2
        assert feed.due_s == 60
        assert feed.poll(client, NOW, 60.0).items == []
        asked = route.calls[1].request.headers
        assert asked["If-None-Match"] == '"v1"'
        assert asked["If-Modified-Since"] == "Mon, 08 Jan 2024 10:00:00 GMT"
        third = feed.poll(client, NOW, 120.0)
        assert third.items == []
        feed.forget(parse_feed(RSS, URL, NOW).items)
        route.side_effect = [httpx.Response(200, content=RSS)]
        assert len(feed.poll(client, NOW, 180.0).items) == 2


@respx.mock
def test_a_failing_feed_is_left_alone_for_longer_and_longer() -> None:
    route = respx.get(URL)
    feed = RssFeed(URL, 60)
    with open_client(POLICY) as client:
        for status, pause in ((500, 120), (404, 240)):
            route.mock(return_value=httpx.Response(status))
            assert str(status) in feed.poll(client, NOW, 0.0).problem
            assert feed.due_s == pause
        route.mock(return_value=httpx.Response(429, headers={"Retry-After": "900"}))
        feed.poll(client, NOW, 0.0)
        assert feed.due_s == 900
        route.mock(side_effect=httpx.ConnectError("no route"))
        assert "no route" in feed.poll(client, NOW, 0.0).problem
        assert feed.due_s == 960
        for _ in range(10):
            feed.poll(client, NOW, 0.0)
        assert feed.due_s == 3600
        route.mock(return_value=httpx.Response(200, content=ATOM), side_effect=None)
        assert len(feed.poll(client, NOW, 0.0).items) == 1
        assert feed.due_s == 60


@respx.mock
def test_an_endless_feed_and_an_endless_redirect_are_refused() -> None:
    feed = RssFeed(URL, 60)
    with open_client(POLICY) as client:
        respx.get(URL).mock(return_value=httpx.Response(200, content=b"x" * (MAX_FEED_BYTES + 1)))
        assert "larger" in feed.poll(client, NOW, 0.0).problem
        respx.get(URL).mock(return_value=httpx.Response(302, headers={"Location": URL}))
        assert feed.poll(client, NOW, 0.0).problem
