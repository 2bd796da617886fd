"""Helpers of the worker's tests: a worker in a thread, records to send, what is in the store and on the topics."""

from __future__ import annotations

import io
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

from kafka import KafkaProducer
from kafka.structs import TopicPartition
from PIL import Image
from sqlalchemy import Engine, select

from consumers.clients import consumer, producer
from consumers.scoring import Scoring
from consumers.topics import ensure_topics
from consumers.worker import Worker
from monitor.health import Health
from monitor.records import NewsItem, encode
from monitor.settings import Settings
from monitor.storage.engine import reading
from monitor.storage.tables import dead_letters, item_keys, items
from tests.consumers.word_scorer import WordScorer

T0 = datetime(2024, 1, 8, 9, 0, tzinfo=UTC)


def png(shade: int = 200, size: tuple[int, int] = (32, 24)) -> bytes:
    """A small picture of one shade."""
    out = io.BytesIO()
    Image.new("RGB", size, (shade, shade, shade)).save(out, "PNG")
    return out.getvalue()


def news(number: int, **fields: Any) -> NewsItem:
    """An item with an id and a time of its own."""
    given: dict[str, Any] = {
        "id": f"i{number}",
        "published_at": T0 + timedelta(seconds=number),
        "title": f"Company {number} reports a loss" if number % 3 == 0 else f"Company {number} grows",
        "source": "wire",
        "tickers": ("AAPL",) if number % 2 else ("MSFT", "AAPL"),
    }
    return NewsItem(**{**given, **fields})


class Sender:
    """Produces to the topics of one test."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._producer: KafkaProducer = producer(settings)

    def item(self, item: NewsItem) -> None:
        """An item, keyed by its id."""
        self.raw("news", encode(item), item.id.encode())

    def chart(self, chart_id: str, image: bytes, item_id: str = "", at: datetime = T0, key: str = "") -> None:
        """A chart, keyed by its item id if it has one."""
        headers = {"chart_id": chart_id, "item_id": item_id, "published_at": at.isoformat(), "tickers": "AAPL"}
        self.raw("charts", image, (key or item_id or chart_id).encode(), headers)

    def raw(
        self,
        topic: str,
        value: bytes | None,
        key: bytes | None = None,
        headers: Mapping[str, str | bytes] | None = None,
    ) -> None:
        """Anything at all."""
        packed = [(name, v if isinstance(v, bytes) else v.encode()) for name, v in (headers or {}).items()]
        self._producer.send(self._settings.topic(topic), value, key, packed)

    def to(self, topic: str, partition: int, value: bytes) -> None:
        """A record of this partition."""
        self._producer.send(self._settings.topic(topic), value, partition=partition)

    def mark(self, topic: str, partition: int, at: datetime) -> None:
        """A feed's marker."""
        headers = [("watermark", at.isoformat().encode())]
        self._producer.send(self._settings.topic(topic), None, b"watermark", headers, partition)

    def flush(self) -> None:
        """Until all is with the broker."""
        self._producer.flush(timeout=30)

    def close(self) -> None:
        """Flush and leave."""
        self.flush()
        self._producer.close(timeout=5)


@contextmanager
def sending(settings: Settings) -> Iterator[Sender]:
    """A sender on topics that exist."""
    ensure_topics(settings)
    sender = Sender(settings)
    try:
        yield sender
    finally:
        sender.close()


class Running:
    """A worker in a thread; `error` is what it ended with."""

    def __init__(self, settings: Settings, scorer: Scoring, store: Engine, health: Health | None = None) -> None:
        self.stop = threading.Event()
        self.error: Exception | None = None
        self.worker = Worker(settings, scorer, store, self.stop.is_set, health)
        self.thread = threading.Thread(target=self._run)
        self.thread.start()

    def _run(self) -> None:
        try:
            self.worker.run()
        except Exception as error:  # noqa: BLE001 - handed to the test
            self.error = error

    def end(self) -> None:
        """Stop gracefully and wait."""
        self.stop.set()
        self.thread.join(60)
        assert not self.thread.is_alive()


@contextmanager
def working(settings: Settings, scorer: WordScorer, store: Engine) -> Iterator[Running]:
    """A worker while the block lasts; raises what it ended with."""
    running = Running(settings, scorer, store)
    try:
        yield running
    finally:
        running.end()
    if running.error is not None:
        raise running.error


def until(condition: Callable[[], bool], seconds: float = 40.0) -> None:
    """Wait for a condition; fails with a time-out."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "this did not come to pass"
        time.sleep(0.05)


def stored(store: Engine) -> dict[str, Any]:
    """Stored items by id."""
    with reading(store) as connection:
        return {row.id: row for row in connection.execute(select(items))}


def stored_keys(store: Engine) -> set[tuple[str, str]]:
    """Pairs of window key and item."""
    with reading(store) as connection:
        return {(row.key, row.item_id) for row in connection.execute(select(item_keys))}


def letters(store: Engine) -> dict[tuple[str, int, int], str]:
    """Codes of dead letters by origin."""
    with reading(store) as connection:
        return {(r.topic, r.partition, r.offset): r.code for r in connection.execute(select(dead_letters))}


def records(settings: Settings, topic: str) -> list[Any]:
    """Everything that lies on a topic now, per partition in order."""
    client = consumer(settings, None)
    try:
        name = settings.topic(topic)
        partitions = [TopicPartition(name, number) for number in sorted(client.partitions_for_topic(name))]
        client.assign(partitions)
        client.seek_to_beginning(*partitions)
        ends = client.end_offsets(partitions)
        found = []
        while any(client.position(partition) < ends[partition] for partition in partitions):
            for polled in client.poll(timeout_ms=500).values():
                found += polled
        return found
    finally:
        client.close()


def committed(settings: Settings) -> dict[str, int]:
    """Committed offsets of the scoring group, by `news:0`."""
    client = consumer(settings, settings.worker_group)
    try:
        out = {}
        for topic in ("news", "charts"):
            for number in sorted(client.partitions_for_topic(settings.topic(topic))):
                offset = client.committed(TopicPartition(settings.topic(topic), number))
                if offset:
                    out[f"{topic}:{number}"] = offset
        return out
    finally:
        client.close()
