"""What clients may rely on, checked alike on the embedded broker and on Apache Kafka.

With SENTIMENT_MONITOR_TEST_BOOTSTRAP_SERVERS set, these tests run on that cluster.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer, TopicPartition
from kafka.admin import ConfigResource, ConfigResourceType, NewPartitions
from kafka.errors import (
    MessageSizeTooLargeError,
    ProducerFencedError,
    TopicAlreadyExistsError,
    UnknownTopicOrPartitionError,
)
from kafka.structs import OffsetAndMetadata

pytestmark = pytest.mark.kafka


@pytest.fixture
def admin(broker: str) -> Iterator[KafkaAdminClient]:
    client = KafkaAdminClient(bootstrap_servers=broker)
    yield client
    client.close()


@pytest.fixture
def make_topic(admin: KafkaAdminClient) -> Callable[..., str]:
    def make(partitions: int = 1, **configs: str) -> str:
        name = f"contract-{uuid.uuid4().hex}"
        options = {"num_partitions": partitions, "replication_factor": 1}
        options["configs"] = {key.replace("_", "."): value for key, value in configs.items()}
        admin.create_topics({name: options}, wait_for_metadata=True)
        return name

    return make


@pytest.fixture
def make_producer(broker: str) -> Iterator[Callable[..., KafkaProducer]]:
    made: list[KafkaProducer] = []

    def make(**options: Any) -> KafkaProducer:
        made.append(KafkaProducer(bootstrap_servers=broker, **options))
        return made[-1]

    yield make
    for producer in made:
        producer.close(timeout=5)


@pytest.fixture
def make_consumer(broker: str) -> Iterator[Callable[..., KafkaConsumer]]:
    made: list[KafkaConsumer] = []

    def make(*topics: str, **options: Any) -> KafkaConsumer:
        options = {"auto_offset_reset": "earliest", "enable_auto_commit": False, **options}
        made.append(KafkaConsumer(*topics, bootstrap_servers=broker, **options))
        return made[-1]

    yield make
    for consumer in made:
        consumer.close()


def read(consumer: KafkaConsumer, count: int, seconds: float = 20.0) -> list[Any]:
    """`count` records, in the order in which they come; fewer when `seconds` are over."""
    records: list[Any] = []
    deadline = time.monotonic() + seconds
    while len(records) < count and time.monotonic() < deadline:
        for batch in consumer.poll(timeout_ms=200).values():
            records += batch
    return records


def test_default_producer_is_idempotent_and_keeps_order(
    make_topic: Any, make_producer: Any, make_consumer: Any
) -> None:
    topic, producer = make_topic(), make_producer()
    assert producer.config["enable_idempotence"]
    futures = [producer.send(topic, str(n).encode(), key=b"k") for n in range(500)]
    assert [future.get(10).offset for future in futures] == list(range(500))
    assert [int(record.value) for record in read(make_consumer(topic), 500)] == list(range(500))


@pytest.mark.parametrize("codec", [None, "gzip", "snappy", "lz4", "zstd"])
def test_values_keys_headers_and_times_come_back_whatever_the_compression(
    codec: str | None, make_topic: Any, make_producer: Any, make_consumer: Any
) -> None:
    topic, value = make_topic(), b"a long value " * 500
    producer = make_producer(compression_type=codec)
    headers = [("watermark", b"2024-01-01T00:00:00Z"), ("empty", b"")]
    producer.send(topic, value, key=b"key", headers=headers, timestamp_ms=1_700_000_000_123)
    producer.send(topic, None, key=b"tombstone")
    producer.flush()
    first, second = read(make_consumer(topic), 2)
    assert (first.value, first.key, first.headers, first.timestamp) == (value, b"key", headers, 1_700_000_000_123)
    assert (second.value, second.key) == (None, b"tombstone")


def test_a_group_resumes_behind_its_commit(make_topic: Any, make_producer: Any, make_consumer: Any) -> None:
    topic, producer = make_topic(), make_producer()
    for n in range(10):
        producer.send(topic, bytes([n]))
    producer.flush()
    place = TopicPartition(topic, 0)
    first = make_consumer(topic, group_id=topic)
    assert len(read(first, 10)) == 10
    first.commit({place: OffsetAndMetadata(4, "note", -1)})
    assert first.committed(place) == 4
    first.close()
    second = make_consumer(topic, group_id=topic)
    assert [record.offset for record in read(second, 6)] == [4, 5, 6, 7, 8, 9]


def test_two_consumers_share_the_partitions_and_one_takes_over(make_topic: Any, make_consumer: Any) -> None:
    topic = make_topic(partitions=4)
    options = {"group_id": topic, "session_timeout_ms": 6000, "heartbeat_interval_ms": 300}
    first, second = make_consumer(topic, **options), make_consumer(topic, **options)
    assigned: dict[str, set[int]] = {}
    leave = {name: threading.Event() for name in ("first", "second")}

    def consume(name: str, consumer: KafkaConsumer) -> None:
        while not leave[name].is_set():
            consumer.poll(timeout_ms=500)
            assigned[name] = {place.partition for place in consumer.assignment()}
        consumer.close()

    def wait_for(*sizes: int) -> bool:
        deadline = time.monotonic() + 25
        while [len(partitions) for _, partitions in sorted(assigned.items())] != list(sizes):
            if time.monotonic() > deadline:
                return False
            time.sleep(0.05)
        return True

    with ThreadPoolExecutor() as pool:
        threads = [pool.submit(consume, "first", first), pool.submit(consume, "second", second)]
        try:
            assert wait_for(2, 2)
            assert assigned["first"] | assigned["second"] == {0, 1, 2, 3}
            leave["second"].set()
            threads[1].result(10)
            del assigned["second"]
            assert wait_for(4)
        finally:
            for event in leave.values():
                event.set()


def test_seek_and_bounds(make_topic: Any, make_producer: Any, make_consumer: Any) -> None:
    topic, producer = make_topic(), make_producer()
    for n in range(20):
        producer.send(topic, bytes([n]))
    producer.flush()
    place, consumer = TopicPartition(topic, 0), make_consumer()
    consumer.assign([place])
    assert (consumer.beginning_offsets([place])[place], consumer.end_offsets([place])[place]) == (0, 20)
    consumer.seek(place, 15)
    assert [record.value[0] for record in read(consumer, 5)] == [15, 16, 17, 18, 19]
    consumer.seek_to_beginning(place)
    assert read(consumer, 20)[0].offset == 0


def test_offsets_for_times_find_the_first_record_of_that_time(
    make_topic: Any, make_producer: Any, make_consumer: Any
) -> None:
    topic, producer = make_topic(), make_producer(linger_ms=50, compression_type="gzip")
    for n in range(100):
        producer.send(topic, b"x", timestamp_ms=1_700_000_000_000 + 1000 * n)
    producer.flush()
    place, consumer = TopicPartition(topic, 0), make_consumer()
    at = 1_700_000_000_000 + 1000 * 41 + 500
    found = consumer.offsets_for_times({place: at})[place]
    assert (found.offset, found.timestamp) == (42, 1_700_000_000_000 + 42_000)
    assert consumer.offsets_for_times({place: 1_800_000_000_000})[place] is None


def test_read_committed_sees_committed_transactions_only(
    make_topic: Any, make_producer: Any, make_consumer: Any
) -> None:
    topic, producer = make_topic(), make_producer(transactional_id=f"tx-{uuid.uuid4()}")
    producer.init_transactions()
    for value, commit in ((b"kept", True), (b"dropped", False), (b"kept too", True)):
        producer.begin_transaction()
        producer.send(topic, value)
        producer.flush()
        producer.commit_transaction() if commit else producer.abort_transaction()
    committed = make_consumer(topic, isolation_level="read_committed")
    assert [record.value for record in read(committed, 2)] == [b"kept", b"kept too"]
    everything = make_consumer(topic)
    assert [record.value for record in read(everything, 3)] == [b"kept", b"dropped", b"kept too"]


def test_an_open_transaction_holds_committed_readers_back(
    make_topic: Any, make_producer: Any, make_consumer: Any
) -> None:
    topic = make_topic()
    writer = make_producer(transactional_id=f"tx-{uuid.uuid4()}")
    writer.init_transactions()
    writer.begin_transaction()
    writer.send(topic, b"in doubt").get(10)
    make_producer().send(topic, b"plain").get(10)
    reader = make_consumer(topic, isolation_level="read_committed")
    assert read(reader, 1, seconds=1.0) == []
    writer.commit_transaction()
    assert [record.value for record in read(reader, 2)] == [b"in doubt", b"plain"]


def test_offsets_are_committed_with_the_transaction(make_topic: Any, make_producer: Any, make_consumer: Any) -> None:
    topic, group = make_topic(), f"group-{uuid.uuid4()}"
    place = TopicPartition(topic, 0)
    producer = make_producer(transactional_id=f"tx-{uuid.uuid4()}")
    producer.init_transactions()
    for offset, commit in ((3, False), (5, True)):
        producer.begin_transaction()
        producer.send(topic, b"x")
        producer.send_offsets_to_transaction({place: OffsetAndMetadata(offset, "", -1)}, group)
        producer.commit_transaction() if commit else producer.abort_transaction()
        consumer, deadline = make_consumer(group_id=group), time.monotonic() + 5
        # A cluster makes the committed offset visible a little after the transaction has ended.
        while commit and consumer.committed(place) is None and time.monotonic() < deadline:
            time.sleep(0.05)
        assert consumer.committed(place) == (offset if commit else None)


def test_a_second_producer_of_the_same_id_fences_the_first(make_topic: Any, make_producer: Any) -> None:
    topic, name = make_topic(), f"tx-{uuid.uuid4()}"
    first, second = make_producer(transactional_id=name), make_producer(transactional_id=name)
    first.init_transactions()
    first.begin_transaction()
    first.send(topic, b"zombie").get(10)
    second.init_transactions()
    with pytest.raises(ProducerFencedError):
        first.commit_transaction()


def test_topics_are_made_listed_grown_and_deleted(admin: KafkaAdminClient, make_topic: Any) -> None:
    topic = make_topic(partitions=3)
    assert topic in admin.list_topics()
    with pytest.raises(TopicAlreadyExistsError):
        admin.create_topics({topic: {"num_partitions": 1, "replication_factor": 1}})
    admin.create_partitions({topic: NewPartitions(5)})
    deadline = time.monotonic() + 10
    while len(admin.describe_topics([topic])[0]["partitions"]) != 5:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    admin.delete_topics([topic])
    while topic in admin.list_topics():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    with pytest.raises(UnknownTopicOrPartitionError):
        admin.delete_topics([topic])


def test_topic_settings_are_kept_and_changed(admin: KafkaAdminClient, make_topic: Any) -> None:
    topic = make_topic(max_message_bytes="2000000")

    def setting(name: str) -> str:
        resource = ConfigResource(ConfigResourceType.TOPIC, topic)
        value = admin.describe_configs([resource], config_filter="all")["topic"][topic][name]["value"]
        return str(value)

    assert setting("max.message.bytes") == "2000000"
    admin.alter_configs([ConfigResource(ConfigResourceType.TOPIC, topic, {"max.message.bytes": "3000000"})])
    deadline = time.monotonic() + 10
    while setting("max.message.bytes") != "3000000":
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_record_over_the_topics_limit_is_refused(make_topic: Any, make_producer: Any, make_consumer: Any) -> None:
    small, large = make_topic(max_message_bytes="10000"), make_topic(max_message_bytes=str(4 << 20))
    with pytest.raises(MessageSizeTooLargeError):
        make_producer().send(small, b"x" * 20_000).get(10)
    make_producer(max_request_size=1 << 22).send(large, b"y" * (3 << 20)).get(10)
    assert len(read(make_consumer(large), 1)[0].value) == 3 << 20


def test_deleted_records_are_gone(
    admin: KafkaAdminClient, make_topic: Any, make_producer: Any, make_consumer: Any
) -> None:
    topic, producer = make_topic(), make_producer()
    for n in range(10):
        producer.send(topic, bytes([n])).get(10)
    place = TopicPartition(topic, 0)
    admin.delete_records({place: 7})
    consumer = make_consumer(topic)
    assert [record.offset for record in read(consumer, 3)] == [7, 8, 9]
    assert consumer.beginning_offsets([place])[place] == 7


def test_groups_are_listed_described_and_deleted(
    admin: KafkaAdminClient, make_topic: Any, make_producer: Any, make_consumer: Any
) -> None:
    topic, group = make_topic(), f"group-{uuid.uuid4()}"
    make_producer().send(topic, b"x").get(10)
    consumer = make_consumer(topic, group_id=group)
    read(consumer, 1)
    consumer.commit()
    described = admin.describe_groups([group])[group]
    assert (described["group_state"], len(described["members"])) == ("Stable", 1)
    assert group in {one["group_id"] for one in admin.list_groups()}
    assert admin.list_group_offsets(group)[group][TopicPartition(topic, 0)].offset == 1
    consumer.close()
    deadline = time.monotonic() + 10
    while admin.describe_groups([group])[group]["group_state"] != "Empty":
        assert time.monotonic() < deadline
        time.sleep(0.05)
    admin.delete_groups([group])
    assert group not in {one["group_id"] for one in admin.list_groups()}


_FAUST = """
import faust, os
servers, name = os.environ["SERVERS"], os.environ["TOPIC"]
app = faust.App(name, broker="kafka://" + servers.replace(",", ";kafka://"), store="memory://")
topic = app.topic(name, value_type=bytes, value_serializer="raw")
seen = 0

@app.agent(topic)
async def count(stream):
    global seen
    async for value in stream:
        seen += 1
        if seen == 20:
            open(os.environ["DONE"], "w").close()

@app.timer(0.2)
async def produce():
    if produce.sent < 20:
        for n in range(20):
            await topic.send(value=b"%d" % n)
        produce.sent = 20

produce.sent = 0
app.main()
"""


def test_faust_with_default_settings_sends_and_receives(broker: str, make_topic: Any, tmp_path: Path) -> None:
    script = tmp_path / "app.py"
    script.write_text(_FAUST)
    done = tmp_path / "done"
    environment = {**os.environ, "SERVERS": broker, "TOPIC": make_topic(partitions=2), "DONE": str(done)}
    process = subprocess.Popen(
        [sys.executable, str(script), "--datadir", str(tmp_path), "worker", "--without-web", "-l", "error"],
        env=environment,
    )
    try:
        deadline = time.monotonic() + 60
        while not done.exists() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.1)
        assert done.exists()
    finally:
        process.terminate()
        process.wait(20)
