"""The dispatcher against real HTTP receivers, on a clock that the test moves."""

from __future__ import annotations

import asyncio
import json
import socket
import sqlite3
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine

from monitor.alerts.config import NotificationConfig
from monitor.alerts.delivery import Dispatcher
from monitor.alerts.demo_receiver import DemoReceiver, new_secret
from monitor.alerts.egress import EgressPolicy
from monitor.alerts.lifecycle import route_outbox
from monitor.alerts.receivers import Receiver, ReceiverKind
from monitor.alerts.routing import Route
from monitor.alerts.schedule import DELAYS_S
from monitor.alerts.senders import Outcome, WebhookSender, open_senders
from monitor.storage import deliveries
from monitor.storage.alerts import audit_trail, record_decisions
from monitor.storage.engine import reading, writing
from monitor.storage.receivers import list_receivers
from tests.monitor.alerts.builders import AT, DASHBOARD, decision, new_store, put_story

SECRET = new_secret()
POLICY = EgressPolicy.parse("127.0.0.1/32")


class Clock:
    """A clock that stands until it is moved."""

    def __init__(self) -> None:
        self.now = datetime(2026, 3, 2, 15, 0, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.now

    def move(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)


class ScriptedReceiver:
    """A real HTTP server whose answers the test decides; keeps headers and bodies of what it got."""

    def __init__(self, answer: Callable[[int], tuple[int, dict[str, str]] | None]) -> None:
        self.requests: list[tuple[dict[str, str], dict[str, Any]]] = []
        self.released = threading.Event()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                outer.requests.append(({name.lower(): value for name, value in self.headers.items()}, json.loads(body)))
                reply = answer(len(outer.requests))
                if reply is None:
                    outer.released.wait(10)
                    return
                self.send_response(reply[0])
                for name, value in reply[1].items():
                    self.send_header(name, value)
                self.end_headers()

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_address[1]}/hook"

    @property
    def types(self) -> list[str]:
        return [body["type"] for _, body in self.requests]

    def close(self) -> None:
        self.released.set()
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def scripted() -> Iterator[Callable[..., ScriptedReceiver]]:
    made: list[ScriptedReceiver] = []

    def make(answer: Callable[[int], tuple[int, dict[str, str]] | None]) -> ScriptedReceiver:
        made.append(ScriptedReceiver(answer))
        return made[-1]

    yield make
    for receiver in made:
        receiver.close()


def config_of(*receivers: Receiver, **route: Any) -> NotificationConfig:
    names = tuple(receiver.name for receiver in receivers)
    return NotificationConfig({r.name: r for r in receivers}, (Route(receivers=names, **route),), POLICY)


def webhook(url: str, name: str = "desk", rate: float = 120.0) -> Receiver:
    return Receiver(name, ReceiverKind.WEBHOOK, url, (SECRET,), rate)


def dispatcher(store: Engine, config: NotificationConfig, clock: Clock, **options: Any) -> Dispatcher:
    return Dispatcher(store, config, open_senders(config), clock=clock, **options)


def record(store: Engine, *decisions: Any) -> None:
    with writing(store) as conn:
        record_decisions(conn, decisions, dashboard_url=DASHBOARD)


async def settle(runner: Dispatcher) -> None:
    """Steps until there is nothing left to do at this moment of the clock."""
    while await runner.step():
        await runner.drain()


def states(store: Engine) -> dict[tuple[str, str], str]:
    with reading(store) as conn:
        rows = deliveries.of_episode(conn, decision().episode_id)
    return {(row.receiver, row.event): row.state for row in rows}


def test_firing_and_resolved_arrive_signed_once_and_in_order(store: Engine) -> None:
    async def scenario(receiver: DemoReceiver) -> None:
        runner = dispatcher(store, config_of(webhook(receiver.url)), Clock())
        await runner.start()
        with writing(store) as conn:
            put_story(conn, "ticker:AAPL", 1)
        record(store, decision(), decision("resolve", at=AT + timedelta(hours=1)))
        await settle(runner)
        await runner.close()

    with DemoReceiver(secret=SECRET) as receiver:
        asyncio.run(scenario(receiver))
        assert [r.type for r in receiver.received] == ["alert.firing", "alert.resolved"]
        assert not any(r.repeated for r in receiver.received)
        assert receiver.refused == 0
        firing, resolved = (r.payload["data"] for r in receiver.received)
    assert firing["id"] == resolved["id"] == decision().episode_id
    assert firing["stories"][0]["url"] == "https://news.example/1"
    assert (firing["state"], resolved["state"]) == ("firing", "resolved")
    assert resolved["resolved_at"] == "2026-03-02T15:30:00Z"
    with reading(store) as conn:
        trail = [entry["event"] for entry in audit_trail(conn, decision().episode_id)]
    assert trail == ["pending", "firing", "resolved", "taken", "delivered", "delivered"]


def test_a_receiver_with_another_secret_refuses(store: Engine) -> None:
    async def scenario(receiver: DemoReceiver) -> None:
        runner = dispatcher(store, config_of(webhook(receiver.url)), Clock())
        record(store, decision())
        await settle(runner)
        await runner.close()

    with DemoReceiver() as receiver:
        asyncio.run(scenario(receiver))
        assert (len(receiver.received), receiver.refused) == (0, 1)
    with reading(store) as conn:
        (row,) = deliveries.undelivered(conn)
    assert (row.last_status, row.attempts) == (401, 1)


def test_one_id_over_the_whole_schedule_then_listed_and_replayed(store: Engine, scripted: Any) -> None:
    receiver = scripted(lambda n: (500, {}) if n <= len(DELAYS_S) else (204, {}))
    clock = Clock()
    waits: list[float] = []

    async def scenario() -> None:
        runner = dispatcher(store, config_of(webhook(receiver.url)), clock)
        record(store, decision(), decision("resolve"))
        await settle(runner)
        while True:
            with reading(store) as conn:
                (row,) = [r for r in deliveries.of_episode(conn, decision().episode_id) if r.event == "firing"]
            if row.next_attempt_at is None:
                break
            waits.append((row.next_attempt_at - clock.now).total_seconds())
            clock.move(waits[-1] - 0.01)
            assert await runner.step() == 0
            clock.move(0.01)
            await runner.step()
            await runner.drain()
        assert states(store) == {("desk", "firing"): "failed", ("desk", "resolved"): "pending"}
        await settle(runner)
        with writing(store) as conn:
            assert deliveries.replay(conn, clock.now) == 1
        await settle(runner)
        await runner.close()

    asyncio.run(scenario())
    assert len(waits) == len(DELAYS_S) - 1
    assert all(0.9 * nominal <= wait <= 1.1 * nominal for wait, nominal in zip(waits, DELAYS_S[1:], strict=True))
    assert len({headers["webhook-id"] for headers, body in receiver.requests if body["type"] == "alert.firing"}) == 1
    assert states(store) == {("desk", "firing"): "delivered", ("desk", "resolved"): "delivered"}


def test_down_for_an_hour_loses_nothing_and_keeps_order(store: Engine) -> None:
    clock = Clock()

    async def scenario() -> list[str]:
        probe = DemoReceiver(secret=SECRET)
        port = probe.port
        probe.close()
        runner = dispatcher(store, config_of(webhook(f"http://127.0.0.1:{port}/alerts")), clock)
        record(store, decision())
        for minute in range(60):
            if minute == 10:
                record(store, decision("resolve"))
            await settle(runner)
            clock.move(60)
        assert states(store) == {("desk", "firing"): "pending", ("desk", "resolved"): "pending"}
        with DemoReceiver(port, SECRET) as receiver:
            for _ in range(180):
                await settle(runner)
                clock.move(60)
            await runner.close()
            return [r.type for r in receiver.received]

    assert asyncio.run(scenario()) == ["alert.firing", "alert.resolved"]


def test_retry_after_is_honoured_for_the_whole_receiver(store: Engine, scripted: Any) -> None:
    receiver = scripted(lambda n: (429, {"retry-after": "600"}) if n == 1 else (200, {}))
    clock = Clock()

    async def scenario() -> None:
        runner = dispatcher(store, config_of(webhook(receiver.url)), clock)
        record(store, decision())
        await settle(runner)
        record(store, decision(key="ticker:MSFT", episode_id="other"))
        clock.move(599)
        await settle(runner)
        assert len(receiver.requests) == 1
        clock.move(1)
        await settle(runner)
        assert {body["data"]["id"] for _, body in receiver.requests[1:]} == {decision().episode_id, "other"}
        await runner.close()

    asyncio.run(scenario())


def test_gone_switches_the_receiver_off_and_lists_what_waited(store: Engine, scripted: Any) -> None:
    receiver = scripted(lambda n: (410, {}))

    async def scenario() -> None:
        runner = dispatcher(store, config_of(webhook(receiver.url)), Clock())
        await runner.start()
        record(store, decision(), decision("resolve"))
        await settle(runner)
        record(store, decision(key="ticker:MSFT", episode_id="other"))
        await settle(runner)
        await runner.close()

    asyncio.run(scenario())
    assert len(receiver.requests) == 1
    with reading(store) as conn:
        (status,) = list_receivers(conn)
        assert [row.state for row in deliveries.undelivered(conn)] == ["failed"] * 3
    assert not status.enabled
    assert "410" in str(status.disabled_reason)


def test_a_redirect_is_a_failure(store: Engine, scripted: Any) -> None:
    target = scripted(lambda n: (200, {}))
    receiver = scripted(lambda n: (302, {"location": target.url}))

    async def scenario() -> None:
        runner = dispatcher(store, config_of(webhook(receiver.url)), Clock())
        record(store, decision())
        await settle(runner)
        await runner.close()

    asyncio.run(scenario())
    assert target.requests == []
    with reading(store) as conn:
        (row,) = deliveries.undelivered(conn)
    assert row.last_error == "The receiver answered 302 (redirects are not followed)."


def test_a_slow_receiver_holds_nobody_else_up(store: Engine, scripted: Any) -> None:
    slow = scripted(lambda n: None)

    async def scenario(quick: DemoReceiver) -> None:
        both = config_of(webhook(slow.url, "slow"), webhook(quick.url, "quick"))
        runner = dispatcher(store, both, Clock())
        for number in range(20):
            record(store, decision(episode_id=f"e{number}"))
        await runner.step()
        while len(quick.received) < 20:
            await runner.step()
            await asyncio.sleep(0.01)
        assert 1 <= len(slow.requests) <= 4
        slow.released.set()
        await runner.drain()
        await runner.close()

    with DemoReceiver(secret=SECRET) as quick:
        asyncio.run(scenario(quick))


def test_what_exceeds_the_rate_comes_as_a_digest(store: Engine, scripted: Any) -> None:
    receiver = scripted(lambda n: (200, {}))
    clock = Clock()

    async def scenario() -> None:
        runner = dispatcher(store, config_of(webhook(receiver.url, rate=6.0)), clock)
        record(store, *(decision(episode_id=f"e{number:03}") for number in range(150)))
        await settle(runner)
        for _ in range(10):
            clock.move(10)
            await settle(runner)
        await runner.close()

    asyncio.run(scenario())
    told = [
        entry["id"]
        for _, body in receiver.requests
        for entry in (body["data"]["notices"] if body["type"] == "alert.digest" else [body["data"]])
    ]
    assert sorted(told) == [f"e{number:03}" for number in range(150)]
    assert receiver.types.count("alert.firing") == 5
    assert all(len(json.dumps(body)) < 24_000 for _, body in receiver.requests)
    with reading(store) as conn:
        assert deliveries.undelivered(conn) == []
        assert [r.state for r in deliveries.of_episode(conn, "e149")] == ["delivered"]


def test_a_group_is_sent_together_after_its_wait(store: Engine, scripted: Any) -> None:
    receiver = scripted(lambda n: (200, {}))
    clock = Clock()

    async def scenario() -> None:
        grouped = config_of(webhook(receiver.url), group_by=("kind",), group_wait=timedelta(seconds=30))
        runner = dispatcher(store, grouped, clock)
        record(store, decision(episode_id="a"), decision(episode_id="b", key="ticker:B"), decision(key="topic:macro"))
        await settle(runner)
        clock.move(20)
        record(store, decision(episode_id="c", key="ticker:C"))
        await settle(runner)
        assert receiver.requests == []
        clock.move(10)
        await settle(runner)
        await runner.close()

    asyncio.run(scenario())
    assert sorted(receiver.types) == ["alert.digest", "alert.firing"]
    (digest,) = [body for _, body in receiver.requests if body["type"] == "alert.digest"]
    assert [entry["id"] for entry in digest["data"]["notices"]] == ["a", "b", "c"]


def test_an_expired_lease_is_taken_over_with_the_same_id(store: Engine, scripted: Any) -> None:
    receiver = scripted(lambda n: (200, {}))
    clock = Clock()

    async def scenario() -> None:
        config = config_of(webhook(receiver.url))
        record(store, decision())
        killed = dispatcher(store, config, clock)
        with writing(store) as conn:
            route_outbox(conn, config, clock.now)
            (claimed,) = killed._claim(conn, clock.now)
        other = dispatcher(store, config, clock)
        clock.move(14)
        assert await other.step() == 0
        clock.move(2)
        assert await other.step() == 1
        await other.drain()
        assert receiver.requests[0][0]["webhook-id"] == claimed.id
        await other.close()
        await killed.close()

    asyncio.run(scenario())
    assert len(receiver.requests) == 1


class DyingServer:
    """Says 200, promises a body, and is gone."""

    def __init__(self) -> None:
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.requests = 0
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self.socket.accept()
            except OSError:
                return
            connection.recv(65536)
            self.requests += 1
            connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\nhal")
            connection.close()


def test_a_receiver_that_says_yes_and_dies_has_said_yes(store: Engine) -> None:
    server = DyingServer()

    async def scenario() -> None:
        runner = dispatcher(store, config_of(webhook(f"http://127.0.0.1:{server.socket.getsockname()[1]}/")), Clock())
        record(store, decision())
        await settle(runner)
        await settle(runner)
        await runner.close()

    try:
        asyncio.run(scenario())
    finally:
        server.socket.close()
    assert server.requests == 1
    assert states(store) == {("desk", "firing"): "delivered"}


def test_a_locked_store_is_waited_for_and_the_outcome_is_not_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scripted: Any
) -> None:
    monkeypatch.setattr("monitor.storage.engine.BUSY_TIMEOUT_S", 0)
    monkeypatch.setattr("monitor.alerts.delivery.STORE_PAUSE_S", 0.02)
    store = new_store(tmp_path)
    other = sqlite3.connect(tmp_path / "monitor.db", isolation_level=None, check_same_thread=False)

    def answer(_: int) -> tuple[int, dict[str, str]]:
        other.execute("begin immediate")
        return 200, {}

    receiver = scripted(answer)

    async def scenario() -> None:
        runner = dispatcher(store, config_of(webhook(receiver.url)), Clock(), interval_s=0.02)
        record(store, decision())
        other.execute("begin immediate")
        stop = asyncio.Event()
        running = asyncio.create_task(runner.run(stop))
        await asyncio.sleep(0.2)
        assert receiver.requests == []
        other.execute("rollback")
        while not receiver.requests:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.2)
        assert not running.done()
        assert states(store) == {("desk", "firing"): "pending"}
        other.execute("rollback")
        while states(store) != {("desk", "firing"): "delivered"}:
            await asyncio.sleep(0.01)
        stop.set()
        await running

    asyncio.run(scenario())
    other.close()
    assert len(receiver.requests) == 1


def test_stopping_lets_attempts_end_and_gives_leases_back(store: Engine, scripted: Any) -> None:
    quick, slow = scripted(lambda n: (200, {})), scripted(lambda n: None)
    clock = Clock()

    async def scenario() -> None:
        config = config_of(webhook(quick.url, "quick"), webhook(slow.url, "slow"))
        runner = dispatcher(store, config, clock, interval_s=0.02)
        record(store, decision())
        stop = asyncio.Event()
        running = asyncio.create_task(runner.run(stop, grace_s=0.1))
        while not (quick.requests and slow.requests):
            await asyncio.sleep(0.01)
        stop.set()
        await running

    asyncio.run(scenario())
    assert states(store) == {("quick", "firing"): "delivered", ("slow", "firing"): "pending"}
    with writing(store) as conn:
        assert [row.receiver for row in deliveries.due(conn, "slow", clock.now, 10)] == ["slow"]


def test_leases_are_kept_while_an_attempt_takes_long(store: Engine, scripted: Any) -> None:
    slow = scripted(lambda n: None)
    clock = Clock()

    async def scenario() -> None:
        config = config_of(webhook(slow.url))
        runner, other = dispatcher(store, config, clock), dispatcher(store, config, clock)
        record(store, decision())
        assert await runner.step() == 1
        for _ in range(10):
            clock.move(6)
            assert await runner.step() == 0
            assert await other.step() == 0
        slow.released.set()
        await runner.drain()
        await runner.close()
        await other.close()

    asyncio.run(scenario())
    assert len(slow.requests) == 1


def test_two_dispatchers_side_by_side_send_everything_once(any_store: Engine) -> None:
    store = any_store

    async def scenario(receiver: DemoReceiver) -> None:
        config = config_of(webhook(receiver.url, rate=100_000))
        pair = [dispatcher(store, config, Clock()) for _ in range(2)]
        for number in range(30):
            record(store, decision(episode_id=f"e{number}"), decision("resolve", episode_id=f"e{number}"))
        while len(receiver.received) < 60:
            await asyncio.gather(*(runner.step() for runner in pair))
            await asyncio.gather(*(runner.drain() for runner in pair))
        for runner in pair:
            await runner.close()

    with DemoReceiver(secret=SECRET) as receiver:
        asyncio.run(scenario(receiver))
        got = receiver.received
    assert not any(one.repeated for one in got)
    for number in range(30):
        mine = [one.type for one in got if one.payload["data"]["id"] == f"e{number}"]
        assert mine == ["alert.firing", "alert.resolved"]


def test_old_secret_and_new_one_both_verify_while_rotating(store: Engine) -> None:
    old, new = new_secret(), new_secret()

    async def scenario(receiver: DemoReceiver) -> None:
        both = Receiver("desk", ReceiverKind.WEBHOOK, receiver.url, (new, old))
        runner = dispatcher(store, config_of(both), Clock())
        record(store, decision())
        await settle(runner)
        await runner.close()

    with DemoReceiver(secret=old) as receiver:
        asyncio.run(scenario(receiver))
        assert (len(receiver.received), receiver.refused) == (1, 0)


class BrokenSender:
    """A sender with a mistake in it."""

    async def send(self, webhook_id: str, body: str) -> Outcome:
        raise RuntimeError(f"https://hooks.example/{SECRET}")

    async def aclose(self) -> None:
        """Nothing to close."""


def test_an_unexpected_error_is_a_failed_attempt_that_keeps_the_schedule(store: Engine) -> None:
    clock = Clock()

    async def scenario() -> None:
        runner = Dispatcher(store, config_of(webhook("https://hooks.example/")), {"desk": BrokenSender()}, clock=clock)
        record(store, decision())
        await settle(runner)
        clock.move(4)
        assert await runner.step() == 0
        await runner.close()

    asyncio.run(scenario())
    with reading(store) as conn:
        (row,) = deliveries.undelivered(conn)
    assert (row.attempts, row.last_error) == (1, "Unexpected RuntimeError while sending.")


class PickySender:
    """Takes every notice but those of one episode."""

    def __init__(self, refused: str, outcome: Outcome) -> None:
        self._refused = refused
        self._outcome = outcome
        self.refusals = 0

    async def send(self, webhook_id: str, body: str) -> Outcome:
        if json.loads(body)["data"]["id"] == self._refused:
            self.refusals += 1
            return self._outcome
        return Outcome(delivered=True, status=200)

    async def aclose(self) -> None:
        """Nothing to close."""


@pytest.mark.parametrize(
    ("outcome", "refusals"),
    [
        (Outcome(delivered=False, status=500, error="The receiver answered 500."), 2),
        (Outcome(delivered=False, error="No answer within 20 s."), 2),
        # Here it is the line that is broken: a notice that gets through says that it is worth trying again.
        (Outcome(delivered=False, error="The receiver cannot be reached.", unreached=True), 21),
    ],
)
def test_one_notice_that_never_arrives_keeps_its_schedule_while_others_do(
    store: Engine, outcome: Outcome, refusals: int
) -> None:
    clock = Clock()
    sender = PickySender("bad", outcome)

    async def scenario() -> None:
        runner = Dispatcher(store, config_of(webhook("https://hooks.example/")), {"desk": sender}, clock=clock)
        record(store, decision(episode_id="bad"))
        await settle(runner)
        for number in range(20):
            record(store, decision(episode_id=f"good{number}"))
            await settle(runner)
            clock.move(1)
        await runner.close()

    asyncio.run(scenario())
    with reading(store) as conn:
        (row,) = deliveries.undelivered(conn)
    assert (row.episode_id, row.state, row.attempts) == ("bad", "pending", 2)
    assert sender.refusals == refusals


def test_a_refused_connection_is_told_from_an_answer_that_does_not_come(store: Engine, scripted: Any) -> None:
    async def outcomes() -> list[Outcome]:
        found = []
        for receiver in (webhook("http://127.0.0.1:1/"), webhook(slow.url)):
            sender = WebhookSender(receiver, POLICY, timeout_s=0.5)
            found.append(await sender.send("msg_1", "{}"))
            await sender.aclose()
        return found

    slow = scripted(lambda n: None)
    refused, silent = asyncio.run(outcomes())
    assert (refused.delivered, refused.unreached) == (False, True)
    assert (silent.delivered, silent.unreached) == (False, False)


def test_what_waits_for_a_receiver_that_is_gone_is_listed(store: Engine) -> None:
    async def scenario() -> None:
        clock = Clock()
        first = dispatcher(store, config_of(webhook("http://127.0.0.1:1/", "old")), clock)
        await first.start()
        record(store, decision())
        with writing(store) as conn:
            route_outbox(conn, config_of(webhook("http://127.0.0.1:1/", "old")), clock.now)
        second = dispatcher(store, config_of(webhook("http://127.0.0.1:1/", "new")), clock)
        await second.start()
        await first.close()
        await second.close()

    asyncio.run(scenario())
    with reading(store) as conn:
        (row,) = deliveries.undelivered(conn)
    assert (row.receiver, row.state, row.last_error) == ("old", "failed", "The receiver is no longer configured.")
