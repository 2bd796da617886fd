"""What kafka-python does not do by itself: our clients on a real broker."""

from __future__ import annotations

import time
from collections.abc import Iterable

import pytest
from kafka import ConsumerRebalanceListener, KafkaConsumer, TopicPartition
from kafka.admin import NewTopic

from consumers.clients import admin, consumer, poll, subscribe
from consumers.topics import ensure_topics
from monitor.settings import Settings

pytestmark = pytest.mark.kafka


def test_a_rebalance_longer_than_a_poll_is_not_forgotten(kafka_settings: Settings) -> None:
    early, late = kafka_settings.topic("early"), kafka_settings.topic("late")
    with admin(kafka_settings) as manager:
        manager.create_topics([NewTopic(early, 2, 1)])
        client = consumer(kafka_settings, "impatient")
        try:
            client.subscribe([early])
            _poll_until_assigned(client, {early})
            manager.create_topics([NewTopic(late, 2, 1)])
            client.subscribe([early, late])
            _poll_until_assigned(client, {early, late})
            assert {partition.topic for partition in client.assignment()} == {early, late}
        finally:
            client.close(autocommit=False)


def test_who_joins_alone_is_handed_its_partitions_once(kafka_settings: Settings) -> None:
    ensure_topics(kafka_settings)
    topics = {kafka_settings.topic(name) for name in ("news", "charts")}
    handed_out = _Assignments()
    client = consumer(kafka_settings, "alone", metadata_max_age_ms=200)
    try:
        subscribe(client, sorted(topics), handed_out)
        _poll_until_assigned(client, topics)
        # Metadata comes several times in this time; the first one used to bring about another rebalance.
        deadline = time.monotonic() + 1
        while time.monotonic() < deadline:
            poll(client, 10)
        assert len(handed_out.seen) == 1
        assert {partition.topic for partition in handed_out.seen[0]} == topics
    finally:
        client.close(autocommit=False)


class _Assignments(ConsumerRebalanceListener):  # type: ignore[misc]
    """Every assignment that the group has made."""

    def __init__(self) -> None:
        self.seen: list[set[TopicPartition]] = []

    def on_partitions_revoked(self, revoked: Iterable[TopicPartition]) -> None:
        """Nothing to do."""

    def on_partitions_assigned(self, assigned: Iterable[TopicPartition]) -> None:
        """Note them."""
        self.seen.append(set(assigned))


def _poll_until_assigned(client: KafkaConsumer, topics: set[str]) -> None:
    deadline = time.monotonic() + 20
    while {partition.topic for partition in client.assignment()} != topics or not client._coordinator.stable():
        assert time.monotonic() < deadline, f"{topics} were not handed out: {client.assignment()}"
        poll(client, 1)
