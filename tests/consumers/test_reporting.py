"""What a worker tells of its partitions, without a broker: what was seen just now, and nothing of what it loses."""

from __future__ import annotations

import time
from collections import namedtuple
from collections.abc import Callable
from typing import Any

import pytest
from kafka.structs import TopicPartition
from sqlalchemy import Engine

from consumers import worker as module
from consumers.publisher import Outgoing
from consumers.topics import CHARTS, CONTRIBUTIONS, NEWS
from consumers.worker import Worker
from monitor.records import ContributionBatch, SourceWatermark, decode_strict
from monitor.settings import Settings
from tests.consumers.word_scorer import WordScorer

Name = namedtuple("Name", "group name")


class Connections:
    """A metric."""

    def value(self) -> float:
        """One broker."""
        return 1.0


class Client:
    """As much of a consumer as matters, on one partition that is read to its end."""

    def __init__(self, partition: TopicPartition) -> None:
        self._partition = partition

    def assignment(self) -> set[TopicPartition]:
        return {self._partition}

    def paused(self) -> set[TopicPartition]:
        return set()

    def highwater(self, _partition: TopicPartition) -> int:
        return 7

    def position(self, _partition: TopicPartition, timeout_ms: int) -> int:
        return 7

    def metrics(self, raw: bool) -> dict[Name, Connections]:
        return {Name("consumer-metrics", "connection-count"): Connections()}


@pytest.fixture
def sent() -> list[tuple[SourceWatermark, ...]]:
    return []


@pytest.fixture
def worker(
    make_settings: Callable[..., Settings], store: Engine, sent: list[tuple[SourceWatermark, ...]]
) -> tuple[Worker, Any]:
    """A worker that has just seen its partition at its end, where it is idle at once."""
    settings = make_settings(worker_idle_after_s=1e-9)
    found = Worker(settings, WordScorer(), store, lambda: False)
    found._counts = {NEWS: 1, CHARTS: 1, CONTRIBUTIONS: 1}

    def send(records: list[Outgoing]) -> None:
        sent.extend(decode_strict(ContributionBatch, record.value or b"").sources for record in records)

    found._publisher.send = send  # type: ignore[assignment, method-assign]
    found._intake.sources.assign("news:0", 5, time.monotonic(), 7)
    client = Client(TopicPartition(settings.topic(NEWS), 0))
    found._report(client, time.monotonic(), fetching=True)
    return found, client


def test_a_partition_at_its_end_is_told_to_be_idle_once(
    worker: tuple[Worker, Any], sent: list[tuple[SourceWatermark, ...]]
) -> None:
    at_work, client = worker
    at_work._store_and_send(False)
    assert [(one.source, one.at, one.idle) for (one,) in sent] == [("news:0", 5, True)]
    at_work._report(client, time.monotonic(), fetching=True)
    at_work._store_and_send(False)
    assert len(sent) == 1


def test_while_the_polling_thread_is_held_up_nothing_is_told_to_be_quiet(
    worker: tuple[Worker, Any], sent: list[tuple[SourceWatermark, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    at_work, client = worker
    with monkeypatch.context() as later:
        later.setattr(module, "SIGHT_S", 0.0)
        # A batch is stored meanwhile.
        at_work._send([], [])
    at_work._report(client, time.monotonic(), fetching=True)
    at_work._send([], [])
    assert [one.idle for (one,) in sent] == [False, True]


def test_nothing_is_told_of_partitions_that_are_being_taken_away(
    worker: tuple[Worker, Any], sent: list[tuple[SourceWatermark, ...]]
) -> None:
    at_work, _ = worker
    at_work._disown()
    at_work._store_and_send(False)
    assert sent == []
    # A correction that is sent just then goes without.
    at_work._send([], [])
    assert sent == [()]
