"""Several notices in one: digests of what exceeds the rate, and groups."""

from __future__ import annotations

import asyncio
import json
from datetime import timedelta
from typing import Any

from sqlalchemy import Engine

from monitor.storage import deliveries, undelivered
from monitor.storage.engine import reading
from tests.monitor.alerts.builders import decision
from tests.monitor.alerts.delivering import (
    Clock,
    config_of,
    dispatcher,
    record,
    settle,
    webhook,
)


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
        assert undelivered.undelivered(conn) == []
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
