"""What is sent again arrives in the order in which it happened: an alert ends as over, never as firing."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import Engine

from monitor.alerts.lifecycle import request_trial
from monitor.alerts.schedule import DELAYS_S
from monitor.storage import deliveries, undelivered
from monitor.storage.alerts import acknowledge
from monitor.storage.audit import changes
from monitor.storage.engine import reading, writing
from tests.monitor.alerts.builders import AT, DASHBOARD, decision
from tests.monitor.alerts.delivering import Clock, ScriptedReceiver, config_of, dispatcher, record, settle, webhook

ID = decision().episode_id


def ids_by_type(receiver: ScriptedReceiver) -> list[tuple[str, str]]:
    return [(body["type"], headers["webhook-id"]) for headers, body in receiver.requests]


@pytest.mark.parametrize("chosen", ["all", "one"])
def test_a_firing_notice_that_is_replayed_is_followed_by_what_came_after_it(
    store: Engine, scripted: Any, chosen: str
) -> None:
    receiver = scripted(lambda n: (500, {}) if n <= len(DELAYS_S) else (204, {}))
    clock = Clock()

    async def scenario() -> None:
        runner = dispatcher(store, config_of(webhook(receiver.url)), clock)
        await runner.start()
        record(store, decision())
        for _ in DELAYS_S:
            await settle(runner)
            clock.move(100_000)
        record(store, decision(key="ticker:MSFT", episode_id="other"))
        with writing(store) as conn:
            acknowledge(conn, ID, by="ada", at=AT)
        record(store, decision("resolve", at=AT + timedelta(hours=1)))
        await settle(runner)
        before = len(receiver.requests)
        first = deliveries.delivery_id(ID, "firing", "desk")
        with writing(store) as conn:
            assert [row.id for row in undelivered.undelivered(conn)] == [first]
            assert undelivered.replay(conn, clock.now, None if chosen == "all" else [first], by="ada") == 1
        await settle(runner)
        await runner.close()
        again = ids_by_type(receiver)[before:]
        assert [kind for kind, _ in again] == ["alert.firing", "alert.acknowledged", "alert.resolved"]
        # Under the ids that they had before, so that whoever has seen one knows it.
        assert set(again) <= set(ids_by_type(receiver)[:before])

    asyncio.run(scenario())
    with reading(store) as conn:
        assert {row.state for row in deliveries.of_episode(conn, ID)} == {"delivered"}
        assert sorted(change.event for change in changes(conn) if change.actor == "ada") == [
            "replayed",
            "sent again behind an earlier one",
            "sent again behind an earlier one",
        ]


def test_a_digest_that_is_replayed_is_followed_by_the_end_of_what_it_holds(store: Engine, scripted: Any) -> None:
    receiver = scripted(lambda n: (500, {}) if n <= len(DELAYS_S) else (204, {}))
    clock = Clock()

    async def scenario() -> None:
        runner = dispatcher(store, config_of(webhook(receiver.url, rate=1.0)), clock)
        await runner.start()
        record(store, decision(), decision(key="ticker:MSFT", episode_id="other"))
        for _ in DELAYS_S:
            await settle(runner)
            clock.move(100_000)
        record(store, decision("resolve", at=AT + timedelta(hours=1)))
        await settle(runner)
        assert receiver.types == ["alert.digest"] * len(DELAYS_S) + ["alert.resolved"]
        with writing(store) as conn:
            assert undelivered.replay(conn, clock.now) == 1
        for _ in range(2):
            clock.move(60)
            await settle(runner)
        await runner.close()

    asyncio.run(scenario())
    assert receiver.types[-2:] == ["alert.digest", "alert.resolved"]
    assert len({headers["webhook-id"] for headers, _ in receiver.requests}) == 2


def test_what_is_replayed_in_a_crowd_keeps_its_ids(store: Engine, scripted: Any) -> None:
    receiver = scripted(lambda n: (500, {}) if n <= 3 * len(DELAYS_S) else (204, {}))
    clock = Clock()

    async def scenario() -> None:
        runner = dispatcher(store, config_of(webhook(receiver.url, rate=3.0)), clock)
        await runner.start()
        record(store, *(decision(key=f"ticker:T{n}", episode_id=f"t{n}") for n in range(3)))
        for _ in DELAYS_S:
            await settle(runner)
            clock.move(100_000)
        record(store, *(decision(key=f"ticker:N{n}", episode_id=f"n{n}") for n in range(3)))
        with writing(store) as conn:
            assert undelivered.replay(conn, clock.now) == 3
        for _ in range(3):
            await settle(runner)
            clock.move(60)
        await runner.close()

    asyncio.run(scenario())
    tried = {headers["webhook-id"] for headers, _ in receiver.requests[: 3 * len(DELAYS_S)]}
    after = [headers["webhook-id"] for headers, _ in receiver.requests[3 * len(DELAYS_S) :]]
    assert len(tried) == 3
    assert tried <= set(after)
    assert len(after) == len(set(after))


def test_a_test_opens_nothing_that_stays_open(store: Engine, scripted: Any) -> None:
    receiver = scripted(lambda n: (500, {}) if n == 1 else (204, {}))
    clock = Clock()

    async def scenario() -> None:
        runner = dispatcher(store, config_of(webhook(receiver.url)), clock)
        await runner.start()
        for _ in range(2):
            with writing(store) as conn:
                request_trial(conn, "desk", clock.now, DASHBOARD, by="ada")
            await settle(runner)
            clock.move(60)
        await runner.close()

    asyncio.run(scenario())
    # Also where the first notice failed: it may have arrived all the same.
    assert receiver.types == ["alert.firing", "alert.resolved"] * 2
    ids = [body["data"]["id"] for _, body in receiver.requests]
    assert ids[0] == ids[1] != ids[2] == ids[3]
