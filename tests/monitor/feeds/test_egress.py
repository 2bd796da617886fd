"""Where a feed's server may lead the poller: redirects to the inside are refused, on the connection itself."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx
import pytest

from monitor.egress.policy import feed_policy
from monitor.egress.transport import guarded_transport
from monitor.errors import ConfigurationError
from monitor.feeds.rss import Polled, RssFeed, open_client

NOW = datetime(2024, 1, 9, tzinfo=UTC)
RSS = b"""<rss version="2.0"><channel><title>Wire</title><item><guid>g1</guid><title>T</title>
<pubDate>Mon, 08 Jan 2024 10:00:00 GMT</pubDate></item></channel></rss>"""


class Server:
    """A real server that answers with a feed, or redirects to `location`."""

    def __init__(self, location: str = "") -> None:
        self.hosts: list[str] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.hosts.append(self.headers["host"])
                self.send_response(302 if location else 200)
                if location:
                    self.send_header("location", location)
                self.send_header("content-length", "0" if location else str(len(RSS)))
                self.end_headers()
                self.wfile.write(b"" if location else RSS)

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = self.server.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}/feed"
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Server]]:
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    made: list[Server] = []

    def start(location: str = "") -> Server:
        made.append(Server(location))
        return made[-1]

    yield start
    for one in made:
        one.server.shutdown()
        one.server.server_close()


def poll(url: str, egress_allow: str = "") -> Polled:
    with open_client(feed_policy([url], egress_allow)) as client:
        return RssFeed(url, 60).poll(client, NOW, 0.0)


def test_a_feed_of_this_machine_may_be_named(serve: Callable[..., Server]) -> None:
    assert [item.title for item in poll(serve().url).items] == ["T"]


def test_a_redirect_to_the_inside_is_refused_before_anything_is_sent(serve: Callable[..., Server]) -> None:
    inside = serve()
    outside = serve(inside.url)
    polled = poll(outside.url)
    assert polled.items == []
    assert f"127.0.0.1:{inside.port}, which is no public address" in polled.problem
    assert inside.hosts == []
    assert len(poll(outside.url, f"127.0.0.1:{inside.port}").items) == 1
    assert len(poll(outside.url, "127.0.0.0/8").items) == 1


@pytest.mark.parametrize("disguise", ["2130706433", "localhost", "[::ffff:127.0.0.1]"])
def test_other_spellings_of_the_inside_are_refused(serve: Callable[..., Server], disguise: str) -> None:
    inside = serve()
    polled = poll(serve(inside.url.replace("127.0.0.1", disguise)).url)
    assert polled.items == []
    assert inside.hosts == []


def test_metadata_services_are_refused_even_when_allowed() -> None:
    polled = poll("http://169.254.169.254/latest", "169.254.0.0/16")
    assert "no public address" in polled.problem


def test_the_connection_goes_to_the_address_that_was_checked(serve: Callable[..., Server]) -> None:
    server = serve()
    answers = iter([["127.0.0.1"], ["127.0.0.1"], ["93.184.216.34", "10.0.0.1"]])
    named = guarded_transport(
        feed_policy([f"http://feeds.example:{server.port}/"], ""), resolver=lambda host, port: next(answers)
    )
    assert named is not None
    with httpx.Client(transport=named) as client:
        assert client.get(f"http://feeds.example:{server.port}/").content == RSS
        # Neither another name for the same address, nor a name of which one address is private.
        for name in ("other.example", "third.example"):
            with pytest.raises(httpx.ConnectError, match="no public address"):
                client.get(f"http://{name}:{server.port}/")
    assert server.hosts == [f"feeds.example:{server.port}"]


def test_behind_a_proxy_the_proxy_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("https_proxy", "http://proxy.example:3128")
    assert guarded_transport(feed_policy([], "")) is None


@pytest.mark.parametrize("url", ["http://a:b:c/", "http://[::1/"])
def test_an_address_that_is_none_is_said_in_one_sentence(url: str) -> None:
    with pytest.raises(ConfigurationError):
        RssFeed(url, 60)
