"""Receivers that are down, slow, gone, broken or lying: nothing is lost, ids stay, nobody else waits."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import struct
import threading
import time
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from sqlalchemy import Engine

from monitor.alerts.delivery import Dispatcher
from monitor.alerts.demo_receiver import DemoReceiver
from monitor.alerts.lifecycle import route_outbox
from monitor.alerts.senders import Outcome, WebhookSender
from monitor.storage import deliveries, undelivered
from monitor.storage.engine import reading, writing
from monitor.storage.receivers import list_receivers
from tests.monitor.alerts.builders import decision
from tests.monitor.alerts.delivering import (
    SECRET,
    Clock,
    config_of,
    dispatcher,
    record,
    settle,
    states,
    webhook,
)


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
        await runner.start()
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


def test_retry_after_is_honoured_by_whoever_delivers_next(store: Engine, scripted: Any) -> None:
    receiver = scripted(lambda n: (429, {"retry-after": "600"}) if n == 1 else (200, {}))
    clock = Clock()
    config = config_of(webhook(receiver.url))

    async def scenario() -> None:
        first, beside = dispatcher(store, config, clock), dispatcher(store, config, clock)
        for runner in (first, beside):
            await runner.start()
        record(store, decision())
        await settle(first)
        await first.close()
        record(store, decision(key="ticker:MSFT", episode_id="other"))
        after_restart = dispatcher(store, config, clock)
        await after_restart.start()
        for seconds, told in ((599, 1), (1, 3)):
            clock.move(seconds)
            for runner in (beside, after_restart):
                await settle(runner)
            assert len(receiver.requests) == told
        for runner in (beside, after_restart):
            await runner.close()

    asyncio.run(scenario())
    with reading(store) as conn:
        (status,) = list_receivers(conn)
    assert status.enabled
    assert not status.quiet(clock.now)


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
        assert [row.state for row in undelivered.undelivered(conn)] == ["failed"] * 3
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
        (row,) = undelivered.undelivered(conn)
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
        (row,) = undelivered.undelivered(conn)
    assert (row.attempts, row.last_error) == (1, "Unexpected RuntimeError while sending.")


def test_what_waits_for_a_receiver_that_is_gone_is_listed(store: Engine) -> None:
    async def scenario() -> None:
        clock = Clock()
        first = dispatcher(store, config_of(webhook("http://127.0.0.1:1/", "old")), clock)
        await first.start()
        record(store, decision())
        with writing(store) as conn:
            route_outbox(conn, config_of(webhook("http://127.0.0.1:1/", "old")), clock.now)
            (waiting,) = deliveries.of_episode(conn, decision().episode_id)
        second = dispatcher(store, config_of(webhook("http://127.0.0.1:1/", "new")), clock)
        await second.start()
        with writing(store) as conn:
            assert undelivered.replay(conn, clock.now) == 0
            # As a notifier that still knew the receiver would have left it after that.
            deliveries.add(conn, [msgspec.structs.replace(waiting, id="msg_later", event="resolved")])
        await second.start()
        with reading(store) as conn:
            assert not deliveries.any_due(conn, clock.now)
        await first.close()
        await second.close()

    asyncio.run(scenario())
    with reading(store) as conn:
        found = undelivered.undelivered(conn)
    assert {(row.receiver, row.state, row.last_error) for row in found} == {
        ("old", "failed", "The receiver is no longer configured.")
    }
    assert len(found) == 2


class RawServer:
    """A TCP server that does to its first `faulty` connections what it is told to, and answers 204 to the others."""

    def __init__(self, faulty: int, misbehave: Callable[[socket.socket], None]) -> None:
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.got: list[tuple[str, str]] = []
        self._faulty = faulty
        self._misbehave = misbehave
        threading.Thread(target=self._serve, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.socket.getsockname()[1]}/hook"

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self.socket.accept()
            except OSError:
                return
            threading.Thread(target=self._answer, args=(connection,), daemon=True).start()

    def _answer(self, connection: socket.socket) -> None:
        with connection:
            data = b""
            while b"\r\n\r\n" not in data:
                data += connection.recv(65536)
            head, _, body = data.partition(b"\r\n\r\n")
            fields = dict(line.lower().split(": ", 1) for line in head.decode().splitlines()[1:])
            while len(body) < int(fields["content-length"]):
                body += connection.recv(65536)
            self.got.append((fields["webhook-id"], str(json.loads(body)["type"])))
            if len(self.got) <= self._faulty:
                self._misbehave(connection)
            else:
                connection.sendall(b"HTTP/1.1 204 No Content\r\nconnection: close\r\n\r\n")


def reset(connection: socket.socket) -> None:
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def drip(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):
        for _ in range(100):
            connection.sendall(b"H")
            time.sleep(0.02)


def says(answer: bytes) -> Callable[[socket.socket], None]:
    return lambda connection: connection.sendall(answer)


FAULTS = {
    "hangs up without an answer": lambda connection: None,
    "resets the connection": reset,
    "never comes to an end": drip,
    "speaks something else": says(b"220 smtp.example ESMTP\r\n"),
    "answers with endless headers": says(b"HTTP/1.1 200 OK\r\n" + b"x: y\r\n" * 50_000),
    "is overloaded": says(b"HTTP/1.1 503 Busy\r\nretry-after: 120\r\ncontent-length: 0\r\n\r\n"),
    "asks for a password": says(b"HTTP/1.1 401 No\r\nwww-authenticate: Basic\r\ncontent-length: 0\r\n\r\n"),
    "sends elsewhere": says(b"HTTP/1.1 307 No\r\nlocation: http://169.254.169.254/\r\ncontent-length: 0\r\n\r\n"),
    "has impossible wishes": says(b"HTTP/1.1 500 No\r\nretry-after: 1e999, soon\r\ncontent-length: 0\r\n\r\n"),
    "dies between head and body of a failure": says(b"HTTP/1.1 500 No\r\ncontent-length: 9999\r\n\r\nhal"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_whatever_a_receiver_does_for_an_hour_everything_arrives_afterwards(store: Engine, fault: str) -> None:
    clock = Clock()
    server = RawServer(3, FAULTS[fault])

    async def scenario() -> None:
        config = config_of(webhook(server.url))
        senders = {"desk": WebhookSender(config.receivers["desk"], config.policy, timeout_s=0.3)}
        runner = Dispatcher(store, config, senders, clock=clock)
        record(store, decision())
        await settle(runner)
        record(store, decision("resolve"))
        for _ in range(30):
            clock.move(120)
            await settle(runner)
        await runner.close()

    try:
        asyncio.run(scenario())
    finally:
        server.socket.close()
    assert states(store) == {("desk", "firing"): "delivered", ("desk", "resolved"): "delivered"}
    assert [kind for _, kind in server.got] == ["alert.firing"] * 4 + ["alert.resolved"]
    assert len({webhook_id for webhook_id, kind in server.got if kind == "alert.firing"}) == 1
