"""Notices arrive: signed, in order, under one id, over the whole schedule."""

from __future__ import annotations

import asyncio
import json
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import Engine

from monitor.alerts.delivery import Dispatcher
from monitor.alerts.demo_receiver import DemoReceiver, new_secret
from monitor.alerts.receivers import Receiver, ReceiverKind
from monitor.alerts.schedule import DELAYS_S
from monitor.alerts.senders import Outcome, WebhookSender
from monitor.storage import deliveries, undelivered
from monitor.storage.alerts import audit_trail
from monitor.storage.engine import reading, writing
from tests.monitor.alerts.builders import AT, decision, put_story
from tests.monitor.alerts.delivering import (
    POLICY,
    SECRET,
    Clock,
    config_of,
    dispatcher,
    record,
    settle,
    states,
    webhook,
)


def test_firing_and_resolved_arrive_signed_once_and_in_order(store: Engine) -> None:
    async def scenario(receiver: DemoReceiver) -> None:
        runner = dispatcher(store, config_of(webhook(receiver.url)), Clock())
        await runner.start()
        with writing(store) as conn:
            put_story(conn, "ticker:AAPL", 1, sources=("wire", "post"))
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
        (row,) = undelivered.undelivered(conn)
    assert (row.last_status, row.attempts) == (401, 1)


def test_one_id_over_the_whole_schedule_then_listed_and_replayed(store: Engine, scripted: Any) -> None:
    receiver = scripted(lambda n: (500, {}) if n <= len(DELAYS_S) else (204, {}))
    clock = Clock()
    waits: list[float] = []

    async def scenario() -> None:
        runner = dispatcher(store, config_of(webhook(receiver.url)), clock)
        await runner.start()
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
            assert undelivered.replay(conn, clock.now) == 1
        await settle(runner)
        await runner.close()

    asyncio.run(scenario())
    assert len(waits) == len(DELAYS_S) - 1
    assert all(0.9 * nominal <= wait <= 1.1 * nominal for wait, nominal in zip(waits, DELAYS_S[1:], strict=True))
    assert len({headers["webhook-id"] for headers, body in receiver.requests if body["type"] == "alert.firing"}) == 1
    assert states(store) == {("desk", "firing"): "delivered", ("desk", "resolved"): "delivered"}


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
        (Outcome(delivered=False, error="The receiver cannot be reached.", unreached=True), 9),
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
        for number in range(8):
            record(store, decision(episode_id=f"good{number}"))
            await settle(runner)
            clock.move(1)
        await runner.close()

    asyncio.run(scenario())
    with reading(store) as conn:
        (row,) = undelivered.undelivered(conn)
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
