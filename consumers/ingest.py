"""From feeds to Kafka: items and charts keyed so that they meet, and markers that say how far a feed has got."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from threading import Event, Lock
from typing import Any, Final

from kafka import KafkaProducer
from kafka.errors import KafkaError

from consumers.clients import broker_errors, producer
from consumers.intake import WATERMARK_HEADER, clip
from consumers.topics import CHARTS, NEWS, ensure_topics
from monitor.egress.policy import feed_policy
from monitor.errors import BrokerError, RecordTooLargeError
from monitor.feeds.jsonl import BadLine, Line
from monitor.feeds.rss import RssFeed, open_client
from monitor.records import SCHEMA_VERSION, Chart, NewsItem, encode
from monitor.settings import Settings
from monitor.telemetry import get_logger

__all__ = ["Ingest", "Replayed", "poll_feeds", "replay"]

log = get_logger(__name__)

SEND_TIMEOUT_S: Final = 60.0
MARK_EVERY_S: Final = 1.0
FLUSH_MINUTE: Final = timedelta(minutes=1)
MARKER_KEY: Final = b"watermark"


class Ingest:
    """A producer to `news` and `charts`. Raises `BrokerError` when the cluster cannot be reached.

    May be used by several threads at once.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        counts = ensure_topics(settings)
        self._partitions = {name: counts[name] for name in (NEWS, CHARTS)}
        self._producer: KafkaProducer | None = producer(settings)
        self._failure: BaseException | None = None
        self._lock = Lock()

    def item(self, item: NewsItem) -> Any:
        """Send an item, keyed by its id, cut to what the worker keeps of it. Not safe before `flush`."""
        return self._send(NEWS, encode(clip(item, self._settings.max_text_chars)), item.id.encode(), [])

    def chart(self, chart: Chart) -> Any:
        """Send a chart, keyed by its item's id if it has one, so that both meet in one partition number."""
        fields = {
            "schema_version": str(SCHEMA_VERSION),
            "chart_id": chart.chart_id,
            "item_id": chart.item_id,
            "published_at": chart.published_at.isoformat(),
            "tickers": ",".join(chart.tickers),
        }
        headers = [(name, value.encode()) for name, value in fields.items() if value]
        return self._send(CHARTS, chart.image, (chart.item_id or chart.chart_id).encode(), headers)

    def mark(self, at: datetime) -> None:
        """Tell every partition: everything up to the event time `at` has been sent.

        Never past the present: a single record that is dated ahead must not make late what is still to come.
        """
        headers = [(WATERMARK_HEADER, min(at.astimezone(UTC), datetime.now(UTC)).isoformat().encode())]
        for topic, partitions in self._partitions.items():
            for partition in range(partitions):
                self._send(topic, None, MARKER_KEY, headers, partition)

    def send_all(self, records: Sequence[NewsItem | Chart]) -> None:
        """Send records and wait until the cluster has them. Raises `BrokerError`, and `RecordTooLargeError` when it is
        one record that the cluster does not take; others may have been sent then."""
        futures = [self.item(record) if isinstance(record, NewsItem) else self.chart(record) for record in records]
        with self._careful():
            self._current().flush(timeout=SEND_TIMEOUT_S)
            for future in futures:
                future.get(timeout=SEND_TIMEOUT_S)

    def flush(self) -> None:
        """Wait until the cluster has everything. Raises `BrokerError` if anything sent since the last time is lost."""
        with self._careful():
            self._current().flush(timeout=SEND_TIMEOUT_S)
            with self._lock:
                failure, self._failure = self._failure, None
            if failure is not None:
                raise failure

    def close(self) -> None:
        """Leave without waiting; `flush` before."""
        with self._lock:
            old, self._producer = self._producer, None
        if old is not None:
            with suppress(KafkaError):
                old.close(timeout=5)

    @contextmanager
    def _careful(self) -> Iterator[None]:
        try:
            with broker_errors(self._settings):
                yield
        except BrokerError:
            # An idempotent producer may not go on after a record was given up: the next call starts a fresh one.
            self.close()
            raise

    def _current(self) -> KafkaProducer:
        with self._lock:
            if self._producer is None:
                self._producer = producer(self._settings)
            return self._producer

    def _send(
        self,
        topic: str,
        value: bytes | None,
        key: bytes,
        headers: list[tuple[str, bytes]],
        partition: int | None = None,
    ) -> Any:
        with self._careful():
            future = self._current().send(self._settings.topic(topic), value, key, headers, partition)
        return future.add_errback(self._failed)

    def _failed(self, error: BaseException) -> None:
        with self._lock:
            self._failure = self._failure or error


@dataclass(slots=True)
class Replayed:
    """What a replay has sent, and how many lines it could not."""

    items: int = 0
    charts: int = 0
    bad: int = 0
    disordered: int = 0


def replay(
    lines: Iterable[Line | BadLine],
    ingest: Ingest,
    *,
    speed: float,
    lateness_s: float,
    on_line: Callable[[Line | BadLine], None] = lambda _: None,
    stop: Event | None = None,
) -> Replayed:
    """Send lines at `speed` times the pace of their event times (0: as fast as it goes), with markers between them.

    A marker a second tells how far it has got, a last one `lateness_s` and a minute after the last event that
    nothing follows. Raises `BrokerError`; returns early when `stop` is set, without the last marker.
    """
    stop = stop or Event()
    out = Replayed()
    first: datetime | None = None
    latest: datetime | None = None
    began = marked = time.monotonic()
    for line in lines:
        if stop.is_set():
            # What is read last then may be half a line.
            break
        on_line(line)
        if isinstance(line, BadLine):
            out.bad += 1
            continue
        at = line.item.published_at
        if first is None or latest is None:
            first = latest = at
            began = marked = time.monotonic()
        if at < latest - timedelta(seconds=lateness_s):
            out.disordered += 1
        while speed > 0 and not stop.is_set():
            now = time.monotonic()
            wait_s = began + (at - first).total_seconds() / speed - now
            if wait_s <= 0:
                break
            if now - marked >= MARK_EVERY_S:
                # On the replay's own clock, which stands before the next event.
                ingest.mark(max(latest, first + timedelta(seconds=(now - began) * speed)))
                marked = now
            stop.wait(min(wait_s, MARK_EVERY_S))
        if stop.is_set():
            break
        if line.chart is not None:
            ingest.chart(line.chart)
            out.charts += 1
        if line.item.text:
            ingest.item(line.item)
            out.items += 1
        latest = max(latest, at)
        if time.monotonic() - marked >= MARK_EVERY_S:
            ingest.flush()
            ingest.mark(latest)
            marked = time.monotonic()
    if latest is not None and not stop.is_set():
        ingest.mark(latest + timedelta(seconds=lateness_s) + FLUSH_MINUTE)
    ingest.flush()
    return out


def _send_what_fits(ingest: Ingest, items: list[NewsItem]) -> tuple[list[NewsItem], list[str]]:
    """Send items; returns those that the cluster has, and why others were left out. Raises `BrokerError`."""
    try:
        ingest.send_all(items)
    except RecordTooLargeError:
        # Which of them it was is not told. To send an item twice does no harm.
        sent, refused = [], []
        for item in items:
            try:
                ingest.send_all([item])
            except RecordTooLargeError as error:
                log.warning("an item is larger than the cluster takes", id=item.id, error=str(error))
                refused.append(f"{item.title[:80]!r}: {error.message}")
            else:
                sent.append(item)
        return sent, refused
    return items, []


def poll_feeds(
    urls: Sequence[str],
    ingest: Ingest,
    *,
    interval_s: float,
    egress_allow: str,
    once: bool,
    stop: Event,
    on_poll: Callable[[str, int, list[str], str], None],
) -> int:
    """Poll feeds until `stop` is set (or `once`), each at its own pace; returns how many could not be read at last.

    `on_poll` is told the address, the number of new items, why entries were skipped, and what went wrong. Every
    interval a marker says that what was published two intervals ago has been seen. A broker that is away only delays.
    A feed's server may redirect to public addresses and to what `egress_allow` names.
    """
    feeds = [RssFeed(url, interval_s) for url in urls]
    failed: set[str] = set()
    marked = -interval_s
    with open_client(feed_policy([feed.url for feed in feeds], egress_allow)) as client:
        while not stop.is_set():
            for feed in feeds:
                if feed.due_s > time.monotonic() or stop.is_set():
                    continue
                polled = feed.poll(client, datetime.now(UTC), time.monotonic(), stop.is_set)
                if stop.is_set() and not polled.items:
                    break
                try:
                    polled.items, refused = _send_what_fits(ingest, polled.items)
                    polled.skipped += refused
                except BrokerError as error:
                    if once:
                        raise
                    feed.forget(polled.items)
                    polled.items, polled.problem = [], str(error)
                (failed.add if polled.problem else failed.discard)(feed.url)
                on_poll(feed.url, len(polled.items), polled.skipped, polled.problem)
            if time.monotonic() - marked >= interval_s:
                marked = time.monotonic()
                with suppress(BrokerError):
                    ingest.mark(datetime.now(UTC) - timedelta(seconds=2 * interval_s))
                    ingest.flush()
            if once:
                break
            stop.wait(max(0.1, min(1.0, *(feed.due_s - time.monotonic() for feed in feeds))))
    return len(failed)
