"""Aggregators are killed, frozen, joined and left in mid-stream; the counts must not show it."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from sqlalchemy import Engine

from consumers.topics import CONTRIBUTIONS, ensure_topics
from monitor.settings import Settings
from monitor.storage.engine import open_engine
from monitor.storage.migrate import upgrade
from tests.conftest import BOOTSTRAP_SERVERS
from tests.end_to_end.faults import (
    Aggregators,
    Record,
    aggregators,
    counted_records,
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


def progress(engine: Engine, records: int) -> None:
    assert wait_until_counted(engine, records, 30.0)


def test_kills_in_a_row_and_redelivery(settings: Settings, engine: Engine, running: Aggregators) -> None:
    stream = make_stream(BATCHES, items=10)
    resent = stream[10:40:3]
    with ThreadPoolExecutor(1) as pool:
        running.start("a")
        sending = pool.submit(send, settings, [*stream[:60], *resent, *stream[60:]], PAUSE_S)
        for part in (1, 2, 3):
            progress(engine, 100 * part)
            running.kill("a")
            running.start("a")
        sending.result()
    check(settings, engine, running, stream, resent)
    assert running.terminate("a") == 0, running.log()


def test_another_process_joins_and_leaves(settings: Settings, engine: Engine, running: Aggregators) -> None:
    stream = make_stream(BATCHES, items=10, seed=2)
    with ThreadPoolExecutor(1) as pool:
        running.start("a")
        sending = pool.submit(send, settings, stream, PAUSE_S)
        progress(engine, 50)
        running.start("b")
        time.sleep(4)
        assert running.terminate("b") == 0, running.log()
        running.start("c")
        time.sleep(3)
        running.kill("a")
        sending.result()
    check(settings, engine, running, stream, [])


def test_a_frozen_process_that_wakes_up_late_changes_nothing(
    settings: Settings, engine: Engine, running: Aggregators
) -> None:
    stream = make_stream(BATCHES, items=10, seed=3)
    running.start("a")
    with ThreadPoolExecutor(1) as pool:
        sending = pool.submit(send, settings, stream, PAUSE_S)
        progress(engine, 80)
        running.start("b")
        frozen = threading.Thread(target=running.freeze, args=("a", settings.kafka_session_timeout_s + 2))
        frozen.start()
        frozen.join()
        before = counted_records(engine)
        sending.result()
    assert before < 4 * BATCHES or wait_until_counted(engine, 4 * BATCHES)
    check(settings, engine, running, stream, [])
