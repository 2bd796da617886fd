"""The notifier process with a real broker and a real receiver, killed at every step."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import msgspec
import pytest
from sqlalchemy import Engine, func, select

from consumers.clients import consumer
from consumers.notifier import AlertPublisher
from consumers.topics import ALERTS, ensure_topics
from monitor.alerts.config import load_notifications
from monitor.alerts.delivery import Dispatcher
from monitor.alerts.demo_receiver import DemoReceiver
from monitor.alerts.records import Alert
from monitor.alerts.senders import open_senders
from monitor.errors import BrokerError
from monitor.settings import ENV_PREFIX, Settings
from monitor.storage.alerts import record_decisions
from monitor.storage.engine import open_engine, reading, writing
from monitor.storage.migrate import upgrade
from monitor.storage.tables import outbox
from tests.monitor.alerts.builders import AT, DASHBOARD, decision

ID = decision().episode_id
WAIT_S = 60.0

# What the killed process runs: the notifier, with one function that kills the process before or after its work.
CRASHING = """
import os, signal, sys
from importlib import import_module
import msgspec
from monitor.settings import load_settings
module, name, when, call = sys.argv[1:]
owner = import_module(module)
*path, last = name.split(".")
for part in path:
    owner = getattr(owner, part)
original, calls = getattr(owner, last), 0

def die():
    os.kill(os.getpid(), signal.SIGKILL)

def dying(*args, **kwargs):
    global calls
    calls += 1
    if calls == int(call) and when == "before":
        die()
    result = original(*args, **kwargs)
    if calls == int(call) and when == "after":
        die()
    return result

async def dying_later(*args, **kwargs):
    global calls
    calls += 1
    result = await original(*args, **kwargs)
    if calls == int(call):
        die()
    return result

setattr(owner, last, dying_later if when == "after_await" else dying)
from consumers.notifier import run_notifier
run_notifier(load_settings())
"""

STEPS = [
    ("monitor.alerts.delivery", "route_outbox", "after", "1"),
    ("monitor.alerts.delivery", "Dispatcher._claim", "after", "1"),
    ("monitor.alerts.senders", "WebhookSender.send", "after_await", "1"),
    ("monitor.alerts.delivery", "Dispatcher._write", "after", "1"),
    ("monitor.alerts.senders", "WebhookSender.send", "after_await", "2"),
    ("consumers.notifier", "AlertPublisher._send", "after", "1"),
]


@pytest.fixture
def receiver() -> Iterator[DemoReceiver]:
    with DemoReceiver() as running:
        yield running


@pytest.fixture
def settings(make_settings: Callable[..., Settings], broker: str, receiver: DemoReceiver) -> Settings:
    return make_settings(
        kafka_bootstrap_servers=broker,
        webhook_urls=receiver.url,
        webhook_secret=receiver.secret,
        egress_allow=f"127.0.0.1:{receiver.port}",
        notifier_lease_s=1.5,
        notifier_interval_s=0.05,
    )


@pytest.fixture
def filled(settings: Settings) -> Iterator[Engine]:
    """A store whose outbox holds one alert that fired and was resolved."""
    engine = open_engine(settings.database)
    upgrade(engine)
    with writing(engine) as conn:
        over = decision("resolve", at=AT + timedelta(minutes=40))
        record_decisions(conn, [decision(), over], dashboard_url=DASHBOARD)
    yield engine
    engine.dispose()


def environment(settings: Settings) -> dict[str, str]:
    names = (
        "data_dir",
        "topic_prefix",
        "kafka_bootstrap_servers",
        "webhook_urls",
        "egress_allow",
        "notifier_lease_s",
        "notifier_interval_s",
    )
    values = {f"{ENV_PREFIX}{name.upper()}": str(getattr(settings, name)) for name in names}
    values[f"{ENV_PREFIX}WEBHOOK_SECRET"] = settings.webhook_secret.get_secret_value()
    return os.environ | values


def start(settings: Settings, *arguments: str, code: str = CRASHING) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.Popen(command, env=environment(settings), stderr=subprocess.PIPE, text=True)


def published(settings: Settings, expected: int) -> list[tuple[str, str, Alert]]:
    """(key, event, alert) of what lies on the topic `alerts`, read until `expected` records have come."""
    records: list[tuple[str, str, Alert]] = []
    reader = consumer(settings, "reader", [ALERTS])
    deadline = time.monotonic() + WAIT_S
    try:
        while len(records) < expected and time.monotonic() < deadline:
            for batch in reader.poll(timeout_ms=200).values():
                for record in batch:
                    headers = {name: value.decode() for name, value in record.headers}
                    assert headers["alert-id"] == record.key.decode()
                    alert = msgspec.json.decode(record.value, type=Alert)
                    records.append((record.key.decode(), headers["event"], alert))
    finally:
        reader.close()
    return records


def finish(settings: Settings, engine: Engine, until: Callable[[], bool], join_s: float = WAIT_S) -> None:
    """A second notifier, in this process, works on until `until` holds."""

    async def work() -> None:
        config = load_notifications(settings)
        dispatcher = Dispatcher(engine, config, open_senders(config), lease_s=settings.notifier_lease_s)
        stop = asyncio.Event()
        running = asyncio.create_task(dispatcher.run(stop))
        deadline = time.monotonic() + WAIT_S
        while not until() and time.monotonic() < deadline:
            await asyncio.sleep(0.05)
        stop.set()
        await running

    publisher = AlertPublisher(settings, engine)
    publisher.start()
    try:
        asyncio.run(work())
    finally:
        publisher.stop()
        publisher.join(join_s)


def all_published(engine: Engine) -> bool:
    with reading(engine) as conn:
        return conn.scalar(select(func.count()).where(outbox.c.published_at.is_(None))) == 0


@pytest.mark.kafka
@pytest.mark.slow
@pytest.mark.parametrize(("module", "name", "when", "call"), STEPS, ids=lambda value: str(value).rpartition(".")[2])
def test_killed_at_any_step_nothing_is_lost_and_ids_stay(
    settings: Settings, filled: Engine, receiver: DemoReceiver, module: str, name: str, when: str, call: str
) -> None:
    process = start(settings, module, name, when, call)
    _, errors = process.communicate(timeout=150)
    assert process.returncode == -signal.SIGKILL, errors

    finish(
        settings,
        filled,
        lambda: {r.type for r in receiver.received} == {"alert.firing", "alert.resolved"} and all_published(filled),
    )
    first = [r for r in receiver.received if not r.repeated]
    assert [r.type for r in first] == ["alert.firing", "alert.resolved"]
    assert len(receiver.received) <= 3
    assert {r.payload["data"]["id"] for r in first} == {ID}
    events = [event for _, event, _ in published(settings, 2)]
    assert list(dict.fromkeys(events)) == ["firing", "resolved"]


@pytest.mark.kafka
def test_a_whole_life_on_kafka_and_at_the_receiver(settings: Settings, filled: Engine, receiver: DemoReceiver) -> None:
    code = "from monitor.settings import load_settings; from consumers.notifier import run_notifier; "
    process = start(settings, code=f"{code}run_notifier(load_settings())")
    try:
        assert receiver.wait_for(lambda got: len(got) == 2, WAIT_S)
        records = published(settings, 2)
    finally:
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=WAIT_S)
    assert process.returncode == 0, errors
    assert "Traceback" not in errors
    assert receiver.secret not in errors
    assert [(key, event, alert.state) for key, event, alert in records] == [
        (ID, "firing", "firing"),
        (ID, "resolved", "resolved"),
    ]
    assert [r.type for r in receiver.received] == ["alert.firing", "alert.resolved"]
    assert msgspec.convert(receiver.received[1].payload["data"], Alert) == records[1][2]


def test_a_publisher_that_cannot_go_on_ends_the_process(settings: Settings, filled: Engine) -> None:
    code = """
import sys
from consumers import notifier
from monitor.cli import app

def odd(*_):
    raise RuntimeError("nobody thought of this")

notifier.claim_unpublished = odd
sys.argv = ["sentiment-monitor", "notifier"]
app.main()
"""
    process = start(settings, code=code)
    _, errors = process.communicate(timeout=WAIT_S)
    assert process.returncode == 5, errors
    assert "error: Sending alerts to Kafka failed: RuntimeError('nobody thought of this')." in errors
    assert not all_published(filled)


def test_webhooks_do_not_wait_for_kafka(settings: Settings, filled: Engine, receiver: DemoReceiver) -> None:
    away: dict[str, Any] = settings.model_dump() | {"kafka_bootstrap_servers": "127.0.0.1:1"}
    finish(Settings(**away), filled, lambda: len(receiver.received) == 2, join_s=0)
    assert [r.type for r in receiver.received] == ["alert.firing", "alert.resolved"]
    assert not all_published(filled)


@pytest.mark.kafka
def test_kafka_does_not_wait_for_webhooks(settings: Settings, filled: Engine, receiver: DemoReceiver) -> None:
    ensure_topics(settings)
    receiver.close()
    finish(settings, filled, lambda: all_published(filled))
    assert [event for _, event, _ in published(settings, 2)] == ["firing", "resolved"]


@pytest.mark.kafka
def test_a_broker_that_is_away_and_comes_back_gets_every_event_in_order(settings: Settings, filled: Engine) -> None:
    with writing(filled) as conn:
        record_decisions(conn, [decision(episode_id="later")], dashboard_url=DASHBOARD)
    away: dict[str, Any] = settings.model_dump() | {"kafka_bootstrap_servers": "127.0.0.1:1"}
    with pytest.raises(BrokerError):
        AlertPublisher(Settings(**away), filled).publish()
    assert not all_published(filled)
    publisher = AlertPublisher(settings, filled)
    publisher.start()
    deadline = time.monotonic() + WAIT_S
    while not all_published(filled) and time.monotonic() < deadline:
        time.sleep(0.05)
    publisher.stop()
    publisher.join(WAIT_S)
    told: dict[str, list[str]] = {}
    for key, event, _ in published(settings, 3):
        told.setdefault(key, []).append(event)
    assert told == {ID: ["firing", "resolved"], "later": ["firing"]}
