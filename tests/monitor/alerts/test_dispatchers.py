"""Dispatchers that are killed, stopped, locked out of the store, or work side by side."""

from __future__ import annotations

import asyncio
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine

from monitor.alerts.demo_receiver import DemoReceiver
from monitor.alerts.lifecycle import route_outbox
from monitor.storage import deliveries
from monitor.storage.engine import writing
from tests.monitor.alerts.builders import decision, new_store
from tests.monitor.alerts.delivering import (
    SECRET,
    Clock,
    config_of,
    dispatcher,
    record,
    states,
    webhook,
)


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
