"""HTTP ingest: who may send, what is refused, and that 202 means it is safe."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import httpx
import pytest
import uvicorn
from starlette.testclient import TestClient

from monitor.errors import BrokerError, ConfigurationError, RecordTooLargeError
from monitor.feeds import http
from monitor.feeds.http import Limits, check_exposure, create_app, server_config
from monitor.records import Chart, NewsItem

GOOD = {"id": "a", "title": "t", "published_at": "2024-01-08T09:00:00Z"}
PNG = b"\x89PNG\r\n\x1a\nrest"
KEY = {"Authorization": "Bearer s3cret"}


class Sink:
    """Keeps what it is given; fails when told to."""

    def __init__(self) -> None:
        self.taken: list[NewsItem | Chart] = []
        self.trouble: BrokerError | None = None

    def __call__(self, records: Sequence[NewsItem | Chart]) -> None:
        if self.trouble:
            raise self.trouble
        self.taken += records


@pytest.fixture
def sink() -> Sink:
    return Sink()


@pytest.fixture
def client(sink: Sink) -> TestClient:
    limits = Limits(max_items_bytes=5000, max_items=3, max_chart_bytes=100, max_item_bytes=1000)
    return TestClient(create_app(sink, token="s3cret", limits=limits))


def test_one_item_or_several(client: TestClient, sink: Sink) -> None:
    assert client.post("/items", json=GOOD, headers=KEY).status_code == 202
    answer = client.post("/items", json=[GOOD | {"id": "b"}, {k: v for k, v in GOOD.items() if k != "id"}], headers=KEY)
    assert answer.status_code == 202
    assert answer.json()["ids"] == [item.id for item in sink.taken[1:]]  # type: ignore[union-attr]
    assert [item.id for item in sink.taken][:2] == ["a", "b"]  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "headers", [{}, {"Authorization": "Bearer wrong"}, {"Authorization": "Basic s3cret"}, {"Authorization": "s3cret"}]
)
@pytest.mark.parametrize("path", ["/items", "/charts"])
def test_strangers_are_refused(client: TestClient, sink: Sink, headers: dict[str, str], path: str) -> None:
    answer = client.post(path, json=GOOD, headers=headers)
    assert answer.status_code == 401
    assert answer.headers["WWW-Authenticate"].startswith("Bearer")
    assert sink.taken == []


def test_a_list_with_bad_items_is_refused_as_a_whole_with_reasons(client: TestClient, sink: Sink) -> None:
    answer = client.post("/items", json=[GOOD, {"title": "no date"}, "text"], headers=KEY)
    assert answer.status_code == 422
    assert [(bad["index"], bad["code"]) for bad in answer.json()["items"]] == [
        (1, "missing_published_at"),
        (2, "not_an_object"),
    ]
    assert sink.taken == []


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"{", 400),
        (b"\xff", 400),
        (b"[" * 4000, 400),
        (b"[]", 400),
        (json.dumps([GOOD] * 4).encode(), 400),
        (b"x" * 6000, 413),
        (json.dumps(GOOD | {"body": "x" * 2000}).encode(), 422),
    ],
)
def test_bad_bodies(client: TestClient, sink: Sink, body: bytes, status: int) -> None:
    assert client.post("/items", content=body, headers=KEY).status_code == status
    assert sink.taken == []


def test_a_body_without_a_declared_length_is_bounded_too(client: TestClient) -> None:
    assert client.post("/items", content=iter([b"x" * 1000] * 10), headers=KEY).status_code == 413


@pytest.mark.parametrize("in_query", [False, True])
def test_charts(client: TestClient, sink: Sink, in_query: bool) -> None:
    fields = {"chart_id": "c", "item_id": "a", "published_at": "2024-01-08T09:00:00Z", "tickers": "aapl,MSFT"}
    extra: dict[str, Any] = (
        {"params": fields, "headers": KEY}
        if in_query
        else {"headers": KEY | {f"X-{name.replace('_', '-')}": value for name, value in fields.items()}}
    )
    answer = client.post("/charts", content=PNG, **extra)
    assert (answer.status_code, answer.json()) == (202, {"chart_id": "c"})
    (chart,) = sink.taken
    assert isinstance(chart, Chart)
    assert (chart.item_id, chart.tickers, chart.image) == ("a", ("AAPL", "MSFT"), PNG)


@pytest.mark.parametrize(
    ("body", "published", "status"),
    [
        (b"GIF89a", "2024-01-08", 415),
        (PNG + b"x" * 200, "2024-01-08", 413),
        (PNG, "", 422),
        (PNG, "then", 422),
        (b"", "2024-01-08", 422),
    ],
)
def test_bad_charts(client: TestClient, sink: Sink, body: bytes, published: str, status: int) -> None:
    assert client.post("/charts", content=body, headers=KEY | {"X-Published-At": published}).status_code == status
    assert sink.taken == []


def test_a_broker_that_is_away_is_said_so(client: TestClient, sink: Sink) -> None:
    sink.trouble = BrokerError("No Kafka broker answers.")
    answer = client.post("/items", json=GOOD, headers=KEY)
    assert answer.status_code == 503
    assert answer.headers["Retry-After"]


def test_what_the_cluster_finds_too_large_is_not_asked_for_again(client: TestClient, sink: Sink) -> None:
    sink.trouble = RecordTooLargeError("A record is larger than the cluster takes.")
    answer = client.post("/items", json=GOOD, headers=KEY)
    assert answer.status_code == 413
    assert answer.json()["error"]["code"] == "oversized"
    assert "Retry-After" not in answer.headers


@contextmanager
def served(sink: Sink, connections: int) -> Iterator[int]:
    """The server as `feed http` runs it, on a thread; its port."""
    limits = Limits(max_items_bytes=5000, max_items=3, max_chart_bytes=100, max_item_bytes=1000)
    application = create_app(sink, token="s3cret", limits=limits)
    server = uvicorn.Server(server_config(application, grace_s=1, connections=connections))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            server.should_exit = True
            thread.join(20)
            assert not thread.is_alive()


BEGUN = b"POST /items HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer s3cret\r\n"


@pytest.mark.parametrize(
    ("sent", "drip", "answer"),
    [
        (b"", b"", b""),
        (b"", b"P", b""),
        (BEGUN, b"", b""),
        (BEGUN, b"x", b""),
        (BEGUN + b"Content-Length: 900\r\n\r\n{", b"", b"HTTP/1.1 408 "),
        (BEGUN + b"Content-Length: 900\r\n\r\n{", b" ", b"HTTP/1.1 408 "),
        (b"POST /items HTTP/1.1\r\nHost: x\r\nContent-Length: 900\r\n\r\n{", b" ", b"HTTP/1.1 401 "),
        (b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n", b"", b"HTTP/1.1 200 "),
        (b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\nGET", b" ", b"HTTP/1.1 200 "),
    ],
)
def test_who_does_not_come_to_the_point_gives_its_place_up(
    sink: Sink, monkeypatch: pytest.MonkeyPatch, sent: bytes, drip: bytes, answer: bytes
) -> None:
    monkeypatch.setattr(http, "HEAD_S", 0.4)
    monkeypatch.setattr(http, "BODY_S", 0.4)
    with served(sink, connections=3) as port, ExitStack() as held:
        idle = [held.enter_context(socket.create_connection(("127.0.0.1", port), timeout=10)) for _ in range(2)]
        for connection in idle:
            connection.sendall(sent)
        for connection in idle:
            said = b""
            connection.settimeout(0.05)
            deadline = time.monotonic() + 15
            while True:
                with suppress(TimeoutError):
                    try:
                        part = connection.recv(4096)
                    except ConnectionError:
                        break
                    if not part:
                        break
                    said += part
                with suppress(OSError):
                    connection.sendall(drip)
                assert time.monotonic() < deadline, said
            assert said.startswith(answer)
        done = httpx.post(f"http://127.0.0.1:{port}/items", json=GOOD, headers=KEY, trust_env=False)
        assert done.status_code == 202


def test_a_sender_that_takes_its_time_between_requests_is_served(sink: Sink, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "HEAD_S", 1.0)
    with served(sink, connections=3) as port, httpx.Client(trust_env=False) as sender:
        for number in range(5):
            time.sleep(0.4)
            answer = sender.post(f"http://127.0.0.1:{port}/items", json=GOOD | {"id": f"i{number}"}, headers=KEY)
            assert answer.status_code == 202
    assert len(sink.taken) == 5


def test_health_needs_no_token(client: TestClient) -> None:
    assert client.get("/healthz").json() == {"status": "ok"}


@pytest.mark.parametrize(
    ("host", "token", "allow_open", "fine"),
    [
        ("0.0.0.0", "x", False, True),
        ("127.0.0.1", "", True, True),
        ("::1", "", True, True),
        ("localhost", "", True, True),
        ("127.0.0.1", "", False, False),
        ("0.0.0.0", "", True, False),
        ("example.org", "", True, False),
    ],
)
def test_an_open_door_only_on_this_machine_and_only_on_demand(
    host: str, token: str, allow_open: bool, fine: bool
) -> None:
    if fine:
        check_exposure(host, token, allow_open=allow_open)
    else:
        with pytest.raises(ConfigurationError, match="token"):
            check_exposure(host, token, allow_open=allow_open)
