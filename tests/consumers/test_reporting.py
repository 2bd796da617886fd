"""What is told of partitions, without a broker: what was seen just now, and nothing of what it loses."""

from __future__ import annotations

import time
from collections import namedtuple
from collections.abc import Callable
from typing import Any

import pytest
from kafka.structs import TopicPartition

from consumers import reporting
from consumers.intake import Intake
from consumers.publisher import Outgoing, Publisher
from consumers.reporting import Reporting
from consumers.topics import CHARTS, CONTRIBUTIONS, NEWS
from monitor.records import ContributionBatch, SourceWatermark, decode_strict
from monitor.settings import Settings

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
def looked(
    make_settings: Callable[..., Settings], sent: list[tuple[SourceWatermark, ...]], monkeypatch: pytest.MonkeyPatch
) -> tuple[Reporting, Intake, Any]:
    """What has just seen a partition at its end, where it is idle at once."""
    settings = make_settings(worker_idle_after_s=1e-9)
    intake, publisher = Intake(settings, 1000), Publisher(settings, 1.0)
    found = Reporting(intake, publisher)
    found.counts = {NEWS: 1, CHARTS: 1, CONTRIBUTIONS: 1}

    def send(records: list[Outgoing]) -> None:
        sent.extend(decode_strict(ContributionBatch, record.value or b"").sources for record in records)

    monkeypatch.setattr(publisher, "send", send)
    intake.sources.assign("news:0", 5, time.monotonic(), 7)
    client = Client(TopicPartition(settings.topic(NEWS), 0))
    found.look(client, time.monotonic(), fetching=True)
    return found, intake, client


def test_a_partition_at_its_end_is_told_to_be_idle_once(
    looked: tuple[Reporting, Intake, Any], sent: list[tuple[SourceWatermark, ...]]
) -> None:
    found, _, client = looked
    found.tell()
    assert [(one.source, one.at, one.idle) for (one,) in sent] == [("news:0", 5, True)]
    found.look(client, time.monotonic(), fetching=True)
    found.tell()
    assert len(sent) == 1


def test_while_the_polling_thread_is_held_up_nothing_is_told_to_be_quiet(
    looked: tuple[Reporting, Intake, Any], sent: list[tuple[SourceWatermark, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    found, _, client = looked
    with monkeypatch.context() as later:
        later.setattr(reporting, "SIGHT_S", 0.0)
        # A batch is stored meanwhile.
        found.send([], [])
    found.look(client, time.monotonic(), fetching=True)
    found.send([], [])
    assert [one.idle for (one,) in sent] == [False, True]


def test_nothing_is_told_of_partitions_that_are_being_taken_away(
    looked: tuple[Reporting, Intake, Any], sent: list[tuple[SourceWatermark, ...]]
) -> None:
    found, intake, _ = looked
    intake.disowned.set()
    found.tell()
    assert sent == []
    # A correction that is sent just then goes without.
    found.send([], [])
    assert sent == [()]
