"""Aggregators are killed, frozen, joined and left in mid-stream; the counts must not show it."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from sqlalchemy import Engine

from consumers.clients import admin, group_id
from consumers.topics import CONTRIBUTIONS, ensure_topics
from monitor.settings import Settings
from monitor.storage.engine import open_engine
from monitor.storage.migrate import upgrade
from tests.conftest import BOOTSTRAP_SERVERS
from tests.end_to_end.faults import (
    Aggregators,
    Record,
    aggregators,
    expected,
    make_stream,
    send,
    stored,
    wait_until_counted,
)

pytestmark = [pytest.mark.kafka, pytest.mark.slow]

BATCHES = 150
PAUSE_S = 0.05


@pytest.fixture
def settings(broker: str, make_settings: Callable[..., Settings]) -> Settings:
    # Apache Kafka takes no session below 6 s unless it is configured to.
    session_s = 6.0 if os.environ.get(BOOTSTRAP_SERVERS) else 2.0
    return make_settings(kafka_bootstrap_servers=broker, kafka_session_timeout_s=session_s, judge_lease_s=2.0)


@pytest.fixture
def engine(settings: Settings) -> Iterator[Engine]:
    made = open_engine(settings.database)
    upgrade(made)
    yield made
    made.dispose()


@pytest.fixture
def running(settings: Settings, tmp_path: Path) -> Iterator[Aggregators]:
    assert ensure_topics(settings)[CONTRIBUTIONS] == 4
    with aggregators(settings, tmp_path) as made:
        yield made


def check(
    settings: Settings, engine: Engine, running: Aggregators, stream: list[list[Record]], resent: list[list[Record]]
) -> None:
    """Everything was counted, once: also what was sent twice."""
    records = sum(map(len, stream)) + sum(map(len, resent))
    assert wait_until_counted(engine, records), running.log()
    assert stored(engine) == expected(settings, stream), running.log()


def wait_for_members(settings: Settings, count: int) -> None:
    """Until the group has that many members and has shared out the partitions."""
    group, client = group_id(settings, settings.aggregator_group), admin(settings)
    deadline = time.monotonic() + 60
    try:
        while True:
            found = client.describe_groups([group])[group]
            if found["group_state"] == "Stable" and len(found["members"]) == count:
                return
            assert time.monotonic() < deadline
            time.sleep(0.1)
    finally:
        client.close()


def progress(engine: Engine, records: int) -> None:
    assert wait_until_counted(engine, records, 60.0)


def test_kills_in_a_row_and_redelivery(settings: Settings, engine: Engine, running: Aggregators) -> None:
    stream = make_stream(BATCHES, items=10)
    resent = stream[10:40:3]
    with ThreadPoolExecutor(1) as pool:
        running.start("a")
        sending = pool.submit(send, settings, [*stream[:60], *resent, *stream[60:]], PAUSE_S)
        for part in (1, 2):
            progress(engine, 120 * part)
            running.kill("a")
            running.start("a")
        sending.result()
    check(settings, engine, running, stream, resent)
    assert running.terminate("a") == 0, running.log()


def test_a_process_joins_another_freezes_and_wakes_up_late(
    settings: Settings, engine: Engine, running: Aggregators
) -> None:
    stream = make_stream(BATCHES, items=10, seed=2)
    running.start("a")
    running.start("b")
    wait_for_members(settings, 2)
    with ThreadPoolExecutor(1) as pool:
        sending = pool.submit(send, settings, stream, PAUSE_S)
        progress(engine, 100)
        running.freeze("a", settings.kafka_session_timeout_s + 2)
        wait_for_members(settings, 2)
        assert running.terminate("b") == 0, running.log()
        sending.result()
    check(settings, engine, running, stream, [])
