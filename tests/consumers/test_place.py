"""Where reading goes on when store, group and log do not agree."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime

import pytest
from kafka import OffsetAndMetadata, TopicPartition
from sqlalchemy import Engine, insert, select

from consumers.clients import admin, group_id, producer
from consumers.place import align
from consumers.topics import ensure_topics
from monitor.records import Contribution, encode
from monitor.settings import Settings
from monitor.storage import tables as t
from monitor.storage.engine import reading, writing
from monitor.storage.places import places

RECORDS = 5


@pytest.fixture
def filled(kafka_settings: Settings) -> Settings:
    """Five records in partition 0 of contributions; an acknowledged offset of 4."""
    ensure_topics(kafka_settings)
    client = producer(kafka_settings)
    for _ in range(RECORDS):
        client.send(kafka_settings.topic("contributions"), b"{}", partition=0)
    client.flush()
    client.close()
    acknowledge(kafka_settings, 4)
    return kafka_settings


def acknowledge(settings: Settings, offset: int) -> None:
    manager = admin(settings)
    part = TopicPartition(settings.topic("contributions"), 0)
    manager.alter_group_offsets(
        group_id(settings, settings.aggregator_group), {part: OffsetAndMetadata(offset, "", -1)}
    )
    manager.close()


def acknowledged(settings: Settings) -> int:
    manager = admin(settings)
    group = group_id(settings, settings.aggregator_group)
    found = manager.list_group_offsets([group])[group]
    manager.close()
    return int(found[TopicPartition(settings.topic("contributions"), 0)].offset)


def count_to(store: Engine, offset: int, log: str) -> None:
    """The store has counted partition 0 of that log up to there, and a contribution waits."""
    values = {
        "partition": 0,
        "log": log,
        "next_offset": offset,
        "watermark": 60_000,
        "sources": [],
        "source_count": 0,
        "counted": 0,
        "late": 0,
        "stale": 0,
        "updated_at": datetime.now(UTC),
    }
    waits = Contribution(key="k", item_id="i", at=0, p_negative=0.0, score=0.0, negative=False, signature=b"")
    with writing(store) as connection:
        connection.execute(insert(t.partitions).values(**values))
        for at in range(2):
            row = {"partition": 0, "minute": 1, "offset": at, "contributions": encode([waits])}
            connection.execute(insert(t.waiting).values(**row))


@pytest.mark.kafka
@pytest.mark.parametrize("offset", [0, 2, 5])
def test_the_group_follows_the_store(filled: Settings, store: Engine, offset: int) -> None:
    identity = align(filled, store).identity
    count_to(store, offset, identity)
    align(filled, store)
    assert acknowledged(filled) == offset
    with reading(store) as connection:
        assert places(connection)[0].next_offset == offset


@pytest.mark.kafka
def test_an_empty_store_reads_from_the_beginning(filled: Settings, store: Engine) -> None:
    assert align(filled, store).begins[0] == 0
    assert acknowledged(filled) == 0


@pytest.mark.kafka
@pytest.mark.parametrize(("offset", "log"), [(3, "another/topic"), (1000, None)])
def test_a_store_of_another_log_reads_this_one_from_its_beginning(
    filled: Settings, store: Engine, offset: int, log: str | None
) -> None:
    identity = align(filled, store).identity
    count_to(store, offset, log or identity)
    align(filled, store)
    assert acknowledged(filled) == 0
    with reading(store) as connection:
        assert places(connection)[0] == (places(connection)[0].__class__)(identity, 0)
        assert all(place < 0 for place in connection.scalars(select(t.waiting.c.offset)))


@pytest.mark.kafka
def test_offsets_of_a_group_with_members_are_left_alone(
    filled: Settings, store: Engine, make_settings: Callable[..., Settings]
) -> None:
    from consumers.clients import consumer

    count_to(store, 2, align(filled, store).identity)
    acknowledge(filled, 4)
    member = consumer(filled, filled.aggregator_group)
    member.subscribe([filled.topic("contributions")])
    member.poll(5000, max_records=1)
    try:
        align(filled, store)
        assert acknowledged(filled) == 4
    finally:
        member.close(autocommit=False)
