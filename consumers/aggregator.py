"""The aggregator: contributions -> counts, stories and offsets in one transaction; beside it, the judge.

Faust moves the records: consumer group, assignment, acknowledgement. It keeps no state: counts live in the store, and
the place in the stream is stored with them (`monitor.storage.checkpoint`), so that the acknowledged offsets only say
where to begin reading. There are no tables, no changelog topics and no leader election.
"""

from __future__ import annotations

import asyncio
import gc
import signal
import ssl
import threading
import time
from collections.abc import Callable, Collection, Coroutine, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Any, Final

import faust
import msgspec
import stamina
from aiokafka.errors import KafkaConnectionError
from faust.types import TP
from sqlalchemy import Engine

from consumers import aggregator_metrics as metrics
from consumers.clients import HEARTBEATS_PER_SESSION, LARGEST_RECORD_BYTES, group_id
from consumers.place import LogPlace, align
from consumers.publisher import Publisher, dead_letter_record
from consumers.rereading import Rereading, SetBack
from consumers.topics import CONTRIBUTIONS, ensure_topics
from monitor.errors import BrokerError, MonitorError, StorageError
from monitor.health import Health
from monitor.records import Contribution, ContributionBatch, Rejected, decode_strict
from monitor.settings import Settings
from monitor.storage.checkpoint import Applied, ContributionRecord, GapError, PartitionCheckpoint
from monitor.storage.dead_letters import DeadLetter, LetterId, store_dead_letters
from monitor.storage.engine import open_engine, writing
from monitor.storage.migrate import upgrade
from monitor.surges.counting import CountingConfig
from monitor.surges.live import LiveJudge
from monitor.telemetry import get_logger

__all__ = ["Aggregation", "KafkaRecord", "collect_seldom", "decode_batch", "run_aggregator"]

log = get_logger(__name__)

BATCH_RECORDS: Final = 500
BATCH_WITHIN_S: Final = 0.2
COMMIT_INTERVAL_S: Final = 1.0
CHECK_INTERVAL_S: Final = 0.2
# Counting makes objects by the ten thousand, none of them in a circle: to look for circles after every 700 takes a
# tenth of its time.
COLLECT_AFTER: Final = 50_000
# What is counted is in the store already; without a broker there is nobody to take leave of.
LEAVE_S: Final = 5.0


class KafkaRecord(msgspec.Struct, frozen=True):
    """One record as it came; `timestamp` in epoch milliseconds."""

    topic: str
    partition: int
    offset: int
    timestamp: int
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes], ...] = ()


def decode_batch(value: bytes | None) -> ContributionBatch | Rejected:
    """What a record of `contributions` says, or why it cannot be counted. Never raises."""
    try:
        batch = decode_strict(ContributionBatch, value or b"")
    except (msgspec.DecodeError, RecursionError) as error:
        return Rejected(code="bad_contributions", reason=f"The record is no batch of contributions: {error}.")
    # NUL, which PostgreSQL does not store as text, can only be written as an escape in JSON.
    if b"\\u0000" in (value or b"") and any("\x00" in text for c in batch.contributions for text in _texts(c)):
        return Rejected(code="bad_contributions", reason="A contribution holds a NUL character.")
    return batch


def _texts(c: Contribution) -> tuple[str, ...]:
    return c.key, c.item_id, c.source, c.title, c.url


class Aggregation:
    """Counts batches of records. All calls but `forget` and `overdue` come from one thread at a time.

    Raises `StorageError` or `BrokerError` when an outage lasts longer than `worker_outage_s`, or at once when
    `stopping` is set; `BrokerError` also when reading does not go on where the store is.
    """

    def __init__(self, settings: Settings, engine: Engine, stopping: threading.Event, place: LogPlace) -> None:
        self._settings = settings
        self._place = place
        self._engine = engine
        self._stopping = stopping
        self._config = CountingConfig.of(settings)
        self._partitions: dict[int, PartitionCheckpoint] = {}
        self._rereading = Rereading()
        self._counting = False
        self._publisher = Publisher(settings, settings.worker_outage_s, lambda: not stopping.is_set())

    def forget(self) -> None:
        """Partitions come and go: load them from the store when they are next counted in."""
        self._partitions = {}
        self._rereading.forget()

    def overdue(self, assigned: Callable[[], Collection[int]]) -> BrokerError | None:
        """What to end with when one of the partitions `assigned` waits in vain for what is missing.

        Not while records are counted: they may be the ones, and wait for a store that is away.
        """
        return None if self._counting else self._rereading.overdue(assigned)

    def close(self) -> None:
        """Close the producer of dead letters, if there was one."""
        self._publisher.close()

    def count(self, records: Iterable[KafkaRecord]) -> dict[int, int]:
        """Count records of any partitions, each partition in a transaction of its own, in the order of offsets.

        Returns the partitions that have to be read again, and from which offset; what comes of them before that is
        left out.
        """
        self._counting, began = True, time.monotonic()
        try:
            return self._count_all(records)
        finally:
            self._rereading.spent(time.monotonic() - began)
            self._counting = False

    def _count_all(self, records: Iterable[KafkaRecord]) -> dict[int, int]:
        by_partition: dict[int, dict[int, KafkaRecord]] = {}
        for record in records:
            by_partition.setdefault(record.partition, {})[record.offset] = record
        again: dict[int, int] = {}
        for partition, ours in sorted(by_partition.items()):
            try:
                with metrics.COUNTING_SECONDS.time():
                    self._count(partition, [ours[offset] for offset in sorted(ours)])
            except GapError as gap:
                metrics.RECORDS.labels("read_again").inc(len(ours))
                if self._rereading.gap(gap):
                    log.warning("reading passed records over and is set back", partition=partition, reason=str(gap))
                again[partition] = gap.stored
            else:
                self._rereading.counted(partition, max(ours))
        return again

    def _count(self, partition: int, records: Sequence[KafkaRecord]) -> None:
        decoded = [(record, decode_batch(record.value)) for record in records]
        refused = [(record, found) for record, found in decoded if isinstance(found, Rejected)]
        if refused:
            self._refuse(refused)
        wanted = [
            ContributionRecord(record.offset, None if isinstance(found, Rejected) else found)
            for record, found in decoded
        ]
        checkpoint = self._partitions.get(partition)
        if checkpoint is None:
            log, begin = self._place.identity, self._place.begins.get(partition, 0)
            checkpoint = PartitionCheckpoint(self._engine, partition, self._config, log=log, begin=begin)
            self._partitions[partition] = checkpoint
        for attempt in self._attempts():
            with attempt:
                _tell(partition, checkpoint.apply(wanted))

    def _attempts(self) -> Iterable[stamina.Attempt]:
        return stamina.retry_context(
            on=lambda error: isinstance(error, StorageError) and not self._stopping.is_set(),
            attempts=None,
            timeout=self._settings.worker_outage_s,
            wait_initial=0.2,
            wait_max=3.0,
        )

    def _refuse(self, refused: Sequence[tuple[KafkaRecord, Rejected]]) -> None:
        """Put records aside: on the topic first, then into the index. Redelivered ones do no harm."""
        self._publisher.send([dead_letter_record(record, why) for record, why in refused])
        now = datetime.now(UTC)
        letters = [
            DeadLetter(
                id=LetterId(record.topic, record.partition, record.offset),
                code=why.code,
                reason=why.reason,
                failed_at=now,
            )
            for record, why in refused
        ]
        for attempt in self._attempts():
            with attempt, writing(self._engine) as connection:
                store_dead_letters(connection, letters)
        metrics.RECORDS.labels("refused").inc(len(letters))
        for letter in letters:
            log.warning("a record of contributions cannot be counted", id=str(letter.id), reason=letter.reason)


def _tell(partition: int, applied: Applied) -> None:
    metrics.RECORDS.labels("counted").inc(applied.records)
    metrics.RECORDS.labels("skipped").inc(applied.skipped)
    metrics.CONTRIBUTIONS.labels("all").inc(applied.contributions)
    metrics.CONTRIBUTIONS.labels("late").inc(applied.late)
    metrics.CONTRIBUTIONS.labels("stale").inc(applied.stale)
    metrics.CONTRIBUTIONS.labels("duplicate").inc(applied.duplicates)
    metrics.WATERMARK.labels(str(partition)).set(applied.watermark / 1000)
    if applied.skipped:
        log.info("records skipped that were counted before", partition=partition, records=applied.skipped)


class _Failure:
    """The first thing that went wrong for good, in whatever thread."""

    def __init__(self) -> None:
        self.error: BaseException | None = None

    def note(self, error: BaseException) -> None:
        self.error = self.error or error


def _credentials(settings: Settings) -> Any:
    encrypted = settings.kafka_security_protocol in ("SSL", "SASL_SSL")
    context = ssl.create_default_context(cafile=settings.kafka_ssl_cafile or None) if encrypted else None
    if settings.kafka_security_protocol.startswith("SASL"):
        return faust.SASLCredentials(
            username=settings.kafka_sasl_username,
            password=settings.kafka_sasl_password.get_secret_value(),
            ssl_context=context,
            mechanism=settings.kafka_sasl_mechanism or None,
        )
    return faust.SSLCredentials(context) if context is not None else None


def _make_app(
    settings: Settings,
    partitions: int,
    aggregation: Aggregation,
    pool: ThreadPoolExecutor,
    failure: _Failure,
    set_back: SetBack,
) -> Any:
    """The Faust app: one agent without tables that hands batches of records to `aggregation` on `pool`."""
    session_s = settings.kafka_session_timeout_s
    # Faust wants a folder, though without tables it keeps nothing there.
    folder = settings.data_dir / "faust"
    folder.mkdir(parents=True, exist_ok=True)
    app = faust.App(
        group_id(settings, settings.aggregator_group),
        broker=[f"kafka://{server.strip()}" for server in settings.bootstrap_servers.split(",")],
        broker_credentials=_credentials(settings),
        broker_session_timeout=session_s,
        broker_heartbeat_interval=session_s / HEARTBEATS_PER_SESSION,
        broker_commit_interval=COMMIT_INTERVAL_S,
        broker_max_poll_records=BATCH_RECORDS,
        consumer_auto_offset_reset="earliest",
        consumer_max_fetch_size=LARGEST_RECORD_BYTES,
        stream_buffer_maxsize=2 * BATCH_RECORDS,
        stream_wait_empty=False,
        topic_disable_leader=True,
        topic_partitions=partitions,
        topic_allow_declare=False,
        store="memory://",
        datadir=str(folder),
        web_enabled=False,
    )
    name = settings.topic(CONTRIBUTIONS)
    topic = app.topic(name, value_type=bytes, value_serializer="raw", key_type=bytes, key_serializer="raw")

    async def count(stream: Any) -> None:
        async for events in stream.take_events(BATCH_RECORDS, within=BATCH_WITHIN_S):
            records = [_record(event.message) for event in events]
            try:
                again = await asyncio.get_running_loop().run_in_executor(pool, aggregation.count, records)
                set_back.start(app.consumer, {TP(name, partition): offset for partition, offset in again.items()})
            except Exception as error:  # noqa: BLE001 - Faust would start the agent anew every few seconds, in silence
                failure.note(error)
                # Not acknowledged: whoever comes next reads them again.
                await asyncio.Event().wait()

    async def changed(*_: Any, **__: Any) -> None:
        aggregation.forget()

    app.agent(topic)(count)
    app.on_partitions_assigned.connect(changed)
    app.on_partitions_revoked.connect(changed)
    return app


def _record(message: Any) -> KafkaRecord:
    headers = message.headers.items() if isinstance(message.headers, dict) else message.headers or ()
    return KafkaRecord(
        topic=message.topic,
        partition=message.partition,
        offset=message.offset,
        timestamp=int((message.timestamp or 0.0) * 1000),
        key=message.key,
        value=message.value,
        headers=tuple((str(name), bytes(value or b"")) for name, value in headers),
    )


def _judge(judge: LiveJudge, stopping: threading.Event, failure: _Failure) -> None:
    try:
        judge.run(stopping)
    except Exception as error:  # noqa: BLE001 - a thread that dies in silence would leave surges unseen
        failure.note(error)


async def _serve(
    app: Any, judge: LiveJudge, aggregation: Aggregation, stopping: threading.Event, failure: _Failure, health: Health
) -> None:
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    thread = threading.Thread(target=_judge, args=(judge, stopping, failure), name="judge")
    try:
        try:
            await app.start()
        except KafkaConnectionError as error:
            raise BrokerError("No Kafka broker answers.", "It was there a moment ago; start again.") from error
        thread.start()
        log.info("aggregator started", group=app.conf.id)
        while not stopping.is_set() and failure.error is None:
            await asyncio.sleep(CHECK_INTERVAL_S)
            if app.crashed or app.should_stop:
                failure.note(BrokerError(f"The consumer of contributions has failed: {app.crash_reason}."))
            elif (
                overdue := aggregation.overdue(lambda: {one.partition for one in app.consumer.assignment()})
            ) is not None:
                failure.note(overdue)
            health.beat()
            if judge.judged_to is not None:
                metrics.JUDGED_TO.set((judge.judged_to + 1) * 60)
    finally:
        stopping.set()
        log.info("stopping")
        leaving = asyncio.ensure_future(app.stop())
        await asyncio.wait([leaving], timeout=LEAVE_S)
        if not leaving.done():
            log.warning("left without a word to the group: the broker does not answer")
        if thread.ident is not None:
            await loop.run_in_executor(None, thread.join)


def _run(main: Coroutine[Any, Any, None]) -> None:
    """As `asyncio.run`, but does not wait for tasks that go on when they are cancelled: Faust's do without a broker."""
    loop = asyncio.new_event_loop()
    try:
        loop.run_until_complete(main)
    finally:
        left = asyncio.all_tasks(loop)
        for task in left:
            task.cancel()
        if left:
            loop.run_until_complete(asyncio.wait(left, timeout=1.0))
        loop.set_exception_handler(lambda _loop, _context: None)
        loop.close()


def collect_seldom() -> None:
    """Have Python look for reference cycles less often, and not among what is there for good."""
    gc.freeze()
    gc.set_threshold(COLLECT_AFTER, *gc.get_threshold()[1:])


def run_aggregator(settings: Settings) -> None:
    """Count and judge until SIGTERM or SIGINT; what is being counted is stored before it returns.

    Raises `MonitorError` when it cannot start or go on; nothing is lost then, another process takes over.
    """
    engine = open_engine(settings.database)
    upgrade(engine)
    partitions = ensure_topics(settings)[CONTRIBUTIONS]
    place = align(settings, engine)
    stopping, failure = threading.Event(), _Failure()
    aggregation = Aggregation(settings, engine, stopping, place)
    judge = LiveJudge(engine, settings, partitions)
    pool = ThreadPoolExecutor(1, thread_name_prefix="count")
    collect_seldom()

    async def main(health: Health) -> None:
        app = _make_app(settings, partitions, aggregation, pool, failure, SetBack(stopping, failure.note))
        await _serve(app, judge, aggregation, stopping, failure, health)

    try:
        with Health(settings.metrics_port) as health:
            _run(main(health))
    finally:
        pool.shutdown()
        aggregation.close()
        engine.dispose()
    if failure.error is not None:
        if isinstance(failure.error, MonitorError):
            raise failure.error
        log.error("the aggregator cannot go on", error=repr(failure.error), exc_info=failure.error)
        raise StorageError(f"Counting failed: {failure.error!r}.") from failure.error
    log.info("aggregator stopped")
