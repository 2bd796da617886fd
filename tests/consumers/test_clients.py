"""What kafka-python does not do by itself: our clients on a real broker."""

from __future__ import annotations

import time

import pytest
from kafka import KafkaConsumer
from kafka.admin import NewTopic

from consumers.clients import admin, consumer, poll
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


def _poll_until_assigned(client: KafkaConsumer, topics: set[str]) -> None:
    deadline = time.monotonic() + 20
    while {partition.topic for partition in client.assignment()} != topics or not client._coordinator.stable():
        assert time.monotonic() < deadline, f"{topics} were not handed out: {client.assignment()}"
        poll(client, 1)
