"""The scoring worker: poll -> decode -> pair -> score -> store -> send -> commit.

One thread polls, stores, sends and commits; another one scores. Order is what makes it safe: a batch is stored in one
transaction, then sent and acknowledged, then its offsets may be committed, and never past a record that is still held
or in flight. Whatever happens in between, the records are read again and end in the same rows.
"""

from __future__ import annotations

import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from types import FrameType
from typing import Final

from kafka import ConsumerRebalanceListener, KafkaConsumer
from kafka.errors import KafkaError
from kafka.structs import OffsetAndMetadata, TopicPartition
from sqlalchemy import Engine

from consumers import worker_metrics as metrics
from consumers.clients import broker_errors, consumer, poll, subscribe
from consumers.intake import Intake, Origin, Refusal
from consumers.pipeline import Pipeline
from consumers.publisher import Outgoing, Publisher, contribution_records
from consumers.scoring import Scoring
from consumers.topics import CHARTS, CONTRIBUTIONS, NEWS, ensure_topics
from consumers.unreadable import hand_out_unreadable
from monitor.health import Health
from monitor.pairing import Group
from monitor.records import Contribution, SourceWatermark
from monitor.settings import Settings
from monitor.storage.engine import open_engine
from monitor.storage.migrate import upgrade
from monitor.telemetry import get_logger

__all__ = ["Worker", "run_worker"]

log = get_logger(__name__)

COMMIT_EVERY_S: Final = 0.5
REPORT_EVERY_S: Final = 0.25
# A poll takes a millisecond of processor time, whether it finds something or not. While the engine is busy it comes now
# and then, seldom when the next batch is there already.
BUSY_WAIT_S: Final = 0.02
READY_WAIT_S: Final = 0.1
BUSY_POLL_MS: Final = 1
IDLE_POLL_MS: Final = 100
MAX_POLL_RECORDS: Final = 500
FETCH_BYTES: Final = 4 << 20
# New partitions are found, and an assignment made on stale metadata is made again, after this time.
METADATA_AGE_MS: Final = 10_000
AT: Final = "at="


class _Listener(ConsumerRebalanceListener):  # type: ignore[misc]
    """Notes what the group decides; called on the client's own thread, so that acting on it is left to the loop."""

    def __init__(self) -> None:
        self.changes: deque[str] = deque()

    def on_partitions_revoked(self, revoked: Iterable[TopicPartition]) -> None:  # noqa: ARG002
        """Partitions are about to be taken away."""
        self.changes.append("revoked")

    def on_partitions_assigned(self, assigned: Iterable[TopicPartition]) -> None:  # noqa: ARG002
        """Partitions have been handed out."""
        self.changes.append("assigned")


class Worker:
    """One member of the consumer group that scores.

    Parameters
    ----------
    scorer : the classifier.
    store : a migrated database.
    stopping : asked all the time; True makes `run` finish what is being scored, commit and return.
    health : gets a sign of life with every turn of the loop.
    """

    def __init__(
        self,
        settings: Settings,
        scorer: Scoring,
        store: Engine,
        stopping: Callable[[], bool],
        health: Health | None = None,
    ) -> None:
        self._settings = settings
        self._scorer = scorer
        self._stopping = stopping
        self._health = health or Health(0)
        self._intake = Intake(settings, settings.worker_image_bytes // 2)
        self._publisher = Publisher(settings, settings.worker_outage_s, lambda: not stopping())
        self._pipeline = Pipeline(
            scorer,
            store,
            send=self._send,
            owns=self._intake.owns,
            going_on=lambda: not stopping(),
            patience_s=settings.worker_outage_s,
        )
        self._listener = _Listener()
        self._ready: deque[Group[Origin]] = deque()
        self._ready_bytes = 0
        self._reading_s = 0.0
        self._at_end: set[str] = set()
        self._committed: dict[TopicPartition, tuple[int, int]] = {}
        self._reported: tuple[SourceWatermark, ...] = ()
        self._counts: dict[str, int] = {}
        self._assigned = False
        self._settled = False

    def run(self) -> None:
        """Work until told to stop. Raises `ModelError`, `StorageError` or `BrokerError` when it cannot go on."""
        self._counts = ensure_topics(self._settings)
        client = consumer(
            self._settings,
            self._settings.worker_group,
            max_poll_records=max(MAX_POLL_RECORDS, 2 * self._settings.worker_batch_items),
            max_partition_fetch_bytes=FETCH_BYTES,
            fetch_max_wait_ms=IDLE_POLL_MS,
            metadata_max_age_ms=METADATA_AGE_MS,
        )
        hand_out_unreadable(client)
        topics = [self._settings.topic(NEWS), self._settings.topic(CHARTS)]
        with broker_errors(self._settings):
            subscribe(client, topics, self._listener)
        log.info("worker started", model=self._scorer.model_version, group=self._settings.worker_group)
        try:
            self._loop(client)
            self._drain(client)
        finally:
            self._pipeline.close()
            self._publisher.close()
            with suppress(KafkaError):
                client.close(autocommit=False, timeout_ms=5000)
        log.info("worker stopped")

    def _loop(self, client: KafkaConsumer) -> None:
        committed = reported = refreshed = began = time.monotonic()
        while not self._stopping():
            self._health.beat()
            full = self._throttle(client)
            enough = full or len(self._ready) >= self._settings.worker_batch_items
            self._pipeline.wait(READY_WAIT_S if enough else BUSY_WAIT_S)
            # First what is there: the engine need not wait for the poll.
            self._submit()
            self._poll(client)
            now = time.monotonic()
            if not full:
                # An item waits for its chart only while charts can come in.
                self._reading_s += now - began
            began = now
            self._enqueue(self._intake.expire(self._reading_s, self._at_end))
            self._submit()
            self._pipeline.finish(self._take_refused(), wait=False)
            if now - refreshed >= self._settings.worker_model_poll_s:
                refreshed = now
                self._pipeline.refresh()
            if now - reported >= REPORT_EVERY_S:
                reported = now
                self._report(client, now, fetching=not full)
            if now - committed >= COMMIT_EVERY_S:
                committed = now
                self._commit(client)

    def _drain(self, client: KafkaConsumer) -> None:
        """Finish what is being scored; what waits is read again by whoever comes next."""
        self._pipeline.drop_unbegun()
        self._pipeline.finish(self._take_refused(), wait=True)
        self._commit(client)

    # Reading

    def _throttle(self, client: KafkaConsumer) -> bool:
        """Pause what must not come in now; True when nothing may."""
        images = self._ready_bytes + self._pipeline.image_bytes + self._intake.pairing.held_bytes
        full = len(self._ready) >= 2 * self._settings.worker_batch_items or images > self._settings.worker_image_bytes
        # Many items wait for charts, or charts for items: let the others catch up before more come.
        pairing, many = self._intake.pairing, self._settings.worker_held_items // 4
        ahead = {NEWS: pairing.items > many >= pairing.charts, CHARTS: pairing.charts > many >= pairing.items}
        crowded = {self._settings.topic(name) for name, is_ahead in ahead.items() if is_ahead}
        assigned = client.assignment()
        pause = {tp for tp in assigned if full or tp.topic in crowded}
        paused = client.paused()
        if pause - paused:
            client.pause(*(pause - paused))
        if paused & assigned - pause:
            client.resume(*(paused & assigned - pause))
        return full

    def _poll(self, client: KafkaConsumer) -> None:
        try:
            polled = poll(client, BUSY_POLL_MS if self._pipeline.holds or self._ready else IDLE_POLL_MS)
        except KafkaError as error:
            if not error.retriable:
                with broker_errors(self._settings):
                    raise
            metrics.RETRIES.labels("broker").inc()
            log.warning("reading failed, trying again", error=str(error))
            return
        if self._listener.changes:
            self._let_go()
        if not self._settled:
            # What was polled in between may not be what follows on the committed offsets.
            self._settle(client)
            return
        self._enqueue(self._intake.take(polled, self._reading_s, time.monotonic()))
        for partition, records in polled.items():
            metrics.POLLED.labels(self._intake.source(partition).partition(":")[0]).inc(len(records))

    def _let_go(self) -> None:
        """All partitions were taken away to be handed out anew: what is not done is read again, here or elsewhere.

        Batches in flight are no longer owned and dropped when they come back.
        """
        while self._listener.changes:
            self._assigned = self._listener.changes.popleft() == "assigned"
        self._settled = False
        self._intake.reset()
        self._ready.clear()
        self._ready_bytes = 0
        self._at_end.clear()
        self._committed.clear()
        self._reported = ()

    def _settle(self, client: KafkaConsumer) -> None:
        """Go to the committed offsets of the partitions that were handed out; tried again when they are not known."""
        if not self._assigned:
            return
        for partition in client.assignment():
            try:
                found = client.committed(partition, metadata=True, timeout_ms=5000)
                if found is None:
                    client.seek_to_beginning(partition)
                else:
                    client.seek(partition, found.offset)
            except (KafkaError, AssertionError) as error:
                log.warning("the committed offsets are not known yet", partition=str(partition), error=str(error))
                self._intake.reset()
                return
            at = _time_in(found.metadata or "") if found is not None else 0
            position = found.offset if found is not None else None
            self._intake.sources.assign(self._intake.source(partition), at, time.monotonic(), position)
            if position is not None:
                self._committed[partition] = (position, at)
        self._settled = True
        log.info("partitions assigned", partitions=sorted(self._intake.sources.partitions))

    # Scoring

    def _enqueue(self, groups: Iterable[Group[Origin]]) -> None:
        for group in groups:
            self._ready.append(group)
            self._ready_bytes += sum(len(chart.image) for chart in group.charts.values())

    def _submit(self) -> None:
        """Hand the classifier what is there: at once while it has no two batches to score, else as full batches.

        What is scored and not stored yet does not count: the classifier need not wait for the store.
        """
        size = self._settings.worker_batch_items
        while self._ready and self._pipeline.room and (not self._pipeline.busy or len(self._ready) >= size):
            groups = [self._ready.popleft() for _ in range(min(size, len(self._ready)))]
            self._ready_bytes -= sum(len(chart.image) for group in groups for chart in group.charts.values())
            self._pipeline.submit(groups)

    def _take_refused(self) -> list[Refusal]:
        refused, self._intake.refused = self._intake.refused, []
        return refused

    # Telling

    def _send(self, records: list[Outgoing], contributions: list[Contribution]) -> None:
        self._reported = self._intake.sources.watermarks(self._at_end, time.monotonic())
        count = self._counts[NEWS] + self._counts[CHARTS]
        self._publisher.send(
            [*records, *contribution_records(contributions, self._reported, count, self._counts[CONTRIBUTIONS])]
        )

    def _report(self, client: KafkaConsumer, now: float, *, fetching: bool) -> None:
        """Tell the aggregators how far the partitions are, when that has changed."""
        self._at_end.clear()
        # While no broker is connected nothing can be seen to come: quiet begins when one is there again.
        fetching = fetching and client.metrics()["consumer-metrics"]["connection-count"] > 0
        for partition in client.assignment():
            name = self._intake.source(partition)
            progress = self._intake.sources.partitions.get(name)
            end = client.highwater(partition)
            if progress is None or end is None:
                continue
            position = self._position(client, partition)
            if not fetching or partition in client.paused():
                self._intake.sources.active(name, now)
            elif position is not None and position >= end:
                progress.skip_to(position)
                self._at_end.add(name)
            metrics.LAG.labels(name).set(max(0, end - (progress.position if progress.position is not None else 0)))
        metrics.HELD.set(len(self._intake.pairing))
        if self._intake.sources.watermarks(self._at_end, now) != self._reported:
            self._send([], [])

    @staticmethod
    def _position(client: KafkaConsumer, partition: TopicPartition) -> int | None:
        with suppress(KafkaError):
            position: int | None = client.position(partition, timeout_ms=100)
            return position
        return None

    def _commit(self, client: KafkaConsumer) -> None:
        """Commit what is done. After a rebalance it is read again instead, after an outage tried again."""
        offsets = {}
        for partition in client.assignment():
            progress = self._intake.sources.partitions.get(self._intake.source(partition))
            if progress is not None and progress.position is not None:
                mark = (progress.position, progress.at)
                if self._committed.get(partition) != mark:
                    offsets[partition] = mark
        if not offsets:
            return
        try:
            client.commit({tp: OffsetAndMetadata(at, f"{AT}{ms}", -1) for tp, (at, ms) in offsets.items()}, 5000)
        except KafkaError as error:
            log.warning("offsets not committed, the records may be read again", error=str(error))
        else:
            self._committed.update(offsets)


def _time_in(metadata: str) -> int:
    """Event time that a former owner of the partition reached: it travels with the committed offset."""
    text = metadata.removeprefix(AT)
    return int(text) if metadata.startswith(AT) and text.isdecimal() else 0


def run_worker(settings: Settings, scorer: Scoring | None = None) -> None:
    """Score until SIGTERM or SIGINT. `scorer` None: the model in force.

    Raises `MonitorError` when it cannot start or go on; nothing is lost then.
    """
    stop = threading.Event()

    def on_signal(number: int, _frame: FrameType | None) -> None:
        log.info("stopping", signal=signal.Signals(number).name)
        stop.set()

    store = open_engine(settings.database)
    upgrade(store)
    with Health(settings.metrics_port) as health:
        if scorer is None:
            from models.engine import open_scorer

            scorer = opened = open_scorer(settings, store)
            opened.warm_up()
        # Until here a signal ends the process at once: loading a model takes long, and nothing is at stake yet.
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, on_signal)
        Worker(settings, scorer, store, stop.is_set, health).run()
    store.dispose()
