"""How many records behind the worker and the aggregator are."""

from __future__ import annotations

from typing import Final

import msgspec
from kafka import TopicPartition
from sqlalchemy import Engine, select

from consumers.clients import admin, broker_errors, consumer, group_id
from monitor.settings import Settings
from monitor.storage import tables as t
from monitor.storage.engine import reading

__all__ = ["Lag", "lag"]

# Somebody waits for the answer, and asks just when something is down.
PATIENCE_MS: Final = 3_000


class Lag(msgspec.Struct, frozen=True):
    """Records on the input topics that have not been worked off yet, summed over partitions."""

    worker: int
    aggregator: int


def lag(settings: Settings, engine: Engine) -> Lag:
    """Ask the cluster how far the topics go, and the group and the store how far the processes are.

    The aggregator's place is the one in the store, which is its checkpoint; its consumer group only follows.
    Raises `BrokerError` when no broker answers, `StorageError` when the store cannot be read.
    """
    worker_topics = {settings.topic("news"), settings.topic("charts")}
    contributions = settings.topic("contributions")
    client = consumer(settings, None, bootstrap_timeout_ms=PATIENCE_MS)
    manager = admin(settings)
    try:
        with broker_errors(settings):
            known = client.topics()
            parts = [
                TopicPartition(topic, partition)
                for topic in sorted((worker_topics | {contributions}) & set(known))
                for partition in client.partitions_for_topic(topic) or ()
            ]
            ends, starts = client.end_offsets(parts), client.beginning_offsets(parts)
            group = group_id(settings, settings.worker_group)
            committed = manager.list_group_offsets([group]).get(group, {})
    finally:
        client.close()
        manager.close()
    with reading(engine) as connection:
        counted = dict(connection.execute(select(t.partitions.c.partition, t.partitions.c.next_offset)).all())

    def behind(part: TopicPartition) -> int:
        if part.topic == contributions:
            place = counted.get(part.partition, -1)
        else:
            entry = committed.get(part)
            place = entry.offset if entry is not None else -1
        return max(0, int(ends[part]) - max(int(place), int(starts[part])))

    return Lag(
        worker=sum(behind(part) for part in parts if part.topic in worker_topics),
        aggregator=sum(behind(part) for part in parts if part.topic == contributions),
    )
