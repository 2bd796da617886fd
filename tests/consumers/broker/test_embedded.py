"""What only the embedded broker can be asked: kills, restarts, limits, addresses."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from kafka import KafkaConsumer, KafkaProducer, TopicPartition
from kafka.errors import KafkaError, ProducerFencedError

from consumers.broker.process import BrokerThread, running_broker
from consumers.topics import partition_counts
from monitor.datadir import announced
from monitor.errors import BrokerError
from monitor.settings import Settings


@contextlib.contextmanager
def broker_process(settings: Settings) -> Iterator[subprocess.Popen[bytes]]:
    """`sentiment-monitor broker` as a process of its own, listening."""
    environment = {
        **os.environ,
        "SENTIMENT_MONITOR_DATA_DIR": str(settings.data_dir),
        "SENTIMENT_MONITOR_BROKER_PORT": str(settings.broker_port),
        "SENTIMENT_MONITOR_KAFKA_PARTITIONS": str(settings.kafka_partitions),
    }
    process = subprocess.Popen([sys.executable, "-m", "monitor.cli.app", "broker"], env=environment)
    try:
        deadline = time.monotonic() + 60
        while announced(settings.broker_address_file) is None:
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)
        yield process
    finally:
        process.kill()
        process.wait()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def values(address: str, topic: str) -> list[bytes]:
    """All values of a topic with one partition."""
    consumer = KafkaConsumer(bootstrap_servers=address, enable_auto_commit=False)
    place = TopicPartition(topic, 0)
    consumer.assign([place])
    consumer.seek_to_beginning(place)
    end, found = consumer.end_offsets([place])[place], list[bytes]()
    while consumer.position(place) < end:
        found += [record.value for batch in consumer.poll(timeout_ms=500).values() for record in batch]
    consumer.close()
    return found


def test_killed_in_mid_append_it_keeps_everything_acknowledged(make_settings: Callable[..., Settings]) -> None:
    settings = make_settings(broker_port=free_port(), kafka_partitions=1)
    with broker_process(settings) as process:
        producer = KafkaProducer(bootstrap_servers=settings.bootstrap_servers, linger_ms=2)
        sent = [(value, producer.send("t", value)) for value in (b"%06d" % n for n in range(4000))]
        while sum(future.succeeded() for _, future in sent) < 500:
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)
        process.wait()
        acknowledged = [value for value, future in sent if future.succeeded()]
        assert len(acknowledged) >= 500
        assert settings.broker_address_file.exists()
        with pytest.raises(BrokerError, match="No embedded broker runs"):
            partition_counts(settings)
        with broker_process(settings):
            # The producer goes on by itself: what was in flight comes again and is in the log once.
            producer.flush(timeout=60)
            producer.close()
            kept = values(settings.bootstrap_servers, "t")
            assert kept == [value for value, _ in sent]
            assert set(acknowledged) <= set(kept)


def test_committed_offsets_topics_and_transactions_survive_a_restart(tmp_path: Path) -> None:
    place = TopicPartition("t", 0)
    with running_broker(tmp_path, default_partitions=1) as address:
        producer = KafkaProducer(bootstrap_servers=address, transactional_id="tx")
        producer.init_transactions()
        producer.begin_transaction()
        producer.send("t", b"one").get(10)
        producer.commit_transaction()
        producer.begin_transaction()
        producer.send("t", b"open").get(10)
        consumer = KafkaConsumer("t", bootstrap_servers=address, group_id="g", auto_offset_reset="earliest")
        while not consumer.poll(timeout_ms=500):
            pass
        consumer.commit()
        committed = consumer.committed(place)
        consumer.close(autocommit=False)
    with running_broker(tmp_path, default_partitions=3) as address:
        second = KafkaProducer(bootstrap_servers=address, transactional_id="tx")
        second.init_transactions()  # aborts what the first one left open
        second.close()
        consumer = KafkaConsumer(bootstrap_servers=address, group_id="g", isolation_level="read_committed")
        assert consumer.partitions_for_topic("t") == {0}
        assert consumer.committed(place) == committed
        consumer.assign([place])
        consumer.seek_to_beginning(place)
        records = [record.value for batch in consumer.poll(timeout_ms=3000).values() for record in batch]
        assert records == [b"one"]
        consumer.close()
    producer.close(timeout=0)


def test_a_transaction_that_takes_too_long_is_aborted_and_its_producer_fenced(tmp_path: Path) -> None:
    with running_broker(tmp_path, default_partitions=1) as address:
        slow = KafkaProducer(bootstrap_servers=address, transactional_id="slow", transaction_timeout_ms=300)
        slow.init_transactions()
        slow.begin_transaction()
        slow.send("t", b"too late").get(10)
        reader = KafkaConsumer(
            "t", bootstrap_servers=address, isolation_level="read_committed", auto_offset_reset="earliest"
        )
        time.sleep(1.0)
        KafkaProducer(bootstrap_servers=address).send("t", b"behind it").get(10)
        deadline, found = time.monotonic() + 10, list[bytes]()
        while not found and time.monotonic() < deadline:
            found = [record.value for batch in reader.poll(timeout_ms=500).values() for record in batch]
        assert found == [b"behind it"]
        with pytest.raises((ProducerFencedError, KafkaError)):
            slow.commit_transaction()
        reader.close()
        slow.close(timeout=0)


def test_two_brokers_never_share_a_folder_or_a_port(tmp_path: Path) -> None:
    with running_broker(tmp_path / "one") as address:
        with pytest.raises(BrokerError, match="Another embedded broker uses the folder"):
            BrokerThread(tmp_path / "one").start()
        port = int(address.rpartition(":")[2])
        with pytest.raises(BrokerError, match=f"The port {port} .* is in use"):
            BrokerThread(tmp_path / "two", port=port).start()


@pytest.mark.parametrize("host", ["0.0.0.0", "192.0.2.1", "example.org"])
def test_it_only_listens_on_loopback(tmp_path: Path, host: str) -> None:
    with pytest.raises(BrokerError, match="only listens on this machine's loopback address"):
        BrokerThread(tmp_path, host=host).start()


@pytest.mark.parametrize(
    "sent",
    [struct.pack(">i", 1 << 30), b"GET / HTTP/1.1\r\n\r\n", struct.pack(">ihhi", 8, 999, 0, 1), b"\0\0\0\x08" * 3],
)
def test_what_is_no_request_costs_its_sender_the_connection_and_nobody_else(tmp_path: Path, sent: bytes) -> None:
    with running_broker(tmp_path) as address:
        host, _, port = address.partition(":")
        with socket.create_connection((host, int(port)), timeout=10) as stranger:
            stranger.sendall(sent)
            with contextlib.suppress(ConnectionResetError):
                assert stranger.recv(1) == b""
        producer = KafkaProducer(bootstrap_servers=address)
        assert producer.send("t", b"still there").get(10).offset == 0
        producer.close()


def test_a_clean_stop_removes_the_address(make_settings: Callable[..., Settings]) -> None:
    settings = make_settings(broker_port=0)
    with broker_process(settings) as process:
        assert settings.bootstrap_servers == announced(settings.broker_address_file)
        process.terminate()
        assert process.wait(20) == 0
    assert not settings.broker_address_file.exists()
