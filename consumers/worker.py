"""The scoring worker: poll -> decode -> pair -> score -> store -> send -> commit.

One thread polls and commits, one stores and sends, others score. Order is what makes it safe: a batch is stored in one
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
from kafka.structs import TopicPartition
from sqlalchemy import Engine

from consumers import worker_metrics as metrics
from consumers.backlog import Backlog
from consumers.clients import broker_errors, consumer, poll, subscribe
from consumers.commits import Commits, time_in
from consumers.intake import Intake, Origin
from consumers.pipeline import Pipeline
from consumers.publisher import Publisher
from consumers.reporting import Reporting
from consumers.scoring import Scoring
from consumers.storing import Storing
from consumers.threads import share_the_interpreter
from consumers.topics import CHARTS, NEWS, ensure_topics
from consumers.unreadable import hand_out_unreadable
from monitor.health import Health
from monitor.pairing import Group
from monitor.settings import Settings
from monitor.storage.engine import open_engine
from monitor.storage.migrate import upgrade
from monitor.telemetry import get_logger

__all__ = ["Worker", "run_worker"]

log = get_logger(__name__)

COMMIT_EVERY_S: Final = 0.5
REPORT_EVERY_S: Final = 0.25
# What is stored and sent is looked at again, and may be committed then: for one batch that takes as long as for all
# that were stored since the last time.
CONFIRM_EVERY_S: Final = 0.2
# A poll takes a millisecond of processor time, whether it finds something or not. While the engine is busy it comes now
# and then, so that what comes meanwhile makes one batch; seldom when the next batch is there already. What comes while
# it is free is waited for, and scored at once.
BUSY_WAIT_S: Final = 0.03
READY_WAIT_S: Final = 0.1
BUSY_POLL_MS: Final = 1
FREE_POLL_MS: Final = 20
IDLE_POLL_MS: Final = 100
MAX_POLL_RECORDS: Final = 500
# A batch that is not scored, or a transaction that is not through, after this time has got stuck: the worker is not
# ready any more.
STUCK_SCORING_S: Final = 120.0
STUCK_STORING_S: Final = 30.0
# What is being stored when partitions are taken away is waited for this long, in parts of a session.
SETTLE_SESSIONS: Final = 0.3
FETCH_BYTES: Final = 4 << 20
FIRST_RECORD_BYTES: Final = 64 << 10
# With every poll of smaller ones the largest record counts for so much of its size.
FORGET_LARGEST: Final = 0.9
# New partitions are found, and an assignment made on stale metadata is made again, after this time.
METADATA_AGE_MS: Final = 10_000


class _Listener(ConsumerRebalanceListener):  # type: ignore[misc]
    """Notes what the group decides; called on the client's own thread, so that acting on it is left to the loop.

    `disown` returns when nothing more is stored of what was read: only then do others get the partitions.
    """

    def __init__(self, disown: Callable[[], None]) -> None:
        self.changes: deque[str] = deque()
        self._disown = disown

    def on_partitions_revoked(self, revoked: Iterable[TopicPartition]) -> None:  # noqa: ARG002
        """Partitions are about to be taken away."""
        self._disown()
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
    health : gets a sign of life with every turn of the loop unless something has got stuck; is told what ended it.
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
        self._publisher = Publisher(settings, settings.worker_outage_s, self._going_on)
        self._reporting = Reporting(self._intake, self._publisher)
        self._pipeline = Pipeline(
            scorer,
            store,
            send=self._reporting.send,
            owns=self._intake.owns,
            going_on=self._going_on,
            patience_s=settings.worker_outage_s,
            on_scored=lambda: self._storing.wake(),
        )
        self._storing = Storing(self._store_and_send)
        self._listener = _Listener(self._disown)
        self._ready = Backlog(settings, scorer.token_budget)
        self._reading_s = 0.0
        self._failed = False
        self._confirmed_at = 0.0
        # Bytes that may still come in, and those of the largest record lately (until one has come: of a large one).
        self._room = settings.worker_image_bytes
        self._largest = float(FIRST_RECORD_BYTES)
        self._commits = Commits(self._intake)
        self._assigned = False
        self._settled = False

    def run(self) -> None:
        """Work until told to stop. Raises `ModelError`, `StorageError` or `BrokerError` when it cannot go on."""
        self._reporting.counts = ensure_topics(self._settings)
        client = consumer(
            self._settings,
            self._settings.worker_group,
            max_partition_fetch_bytes=min(FETCH_BYTES, self._settings.worker_image_bytes // 16),
            fetch_max_wait_ms=IDLE_POLL_MS,
            metadata_max_age_ms=METADATA_AGE_MS,
        )
        hand_out_unreadable(client)
        topics = [self._settings.topic(NEWS), self._settings.topic(CHARTS)]
        with broker_errors(self._settings):
            subscribe(client, topics, self._listener)
        log.info("worker started", model=self._scorer.model_version, group=self._settings.worker_group)
        self._storing.start()
        try:
            self._loop(client)
            self._drain(client)
        except Exception as error:
            self._failed = True
            self._health.fail(str(error))
            raise
        finally:
            self._storing.end(finish=False)
            self._pipeline.close()
            self._publisher.close()
            with suppress(KafkaError):
                client.close(autocommit=False, timeout_ms=5000)
        log.info("worker stopped")

    def _loop(self, client: KafkaConsumer) -> None:
        committed = reported = refreshed = began = time.monotonic()
        while not self._stopping():
            self._storing.check()
            self._beat()
            full = self._throttle(client)
            enough = full or self._ready.full(long=False) or self._ready.full(long=True)
            if enough or self._pipeline.scores:
                self._pipeline.wait(READY_WAIT_S if enough else BUSY_WAIT_S, until_idle=not enough)
                if not enough:
                    # What came now would wait behind it, and not in one batch with what comes next.
                    self._scorer.wait_for_room(READY_WAIT_S)
            # First what is there: the engine need not wait for the poll.
            self._submit()
            self._poll(client, free=not enough and not self._pipeline.scores)
            now = time.monotonic()
            if not full:
                # An item waits for its chart only while charts can come in.
                self._reading_s += now - began
            began = now
            self._enqueue(self._intake.expire(self._reading_s, self._reporting.at_end))
            self._submit()
            if self._intake.refused:
                self._storing.wake()
            if now - refreshed >= self._settings.worker_model_poll_s:
                refreshed = now
                self._pipeline.refresh()
            if now - reported >= REPORT_EVERY_S:
                reported = now
                self._reporting.look(client, now, fetching=not full)
                metrics.HELD.set(len(self._intake.pairing))
                self._storing.wake()
            if now - committed >= COMMIT_EVERY_S:
                committed = now
                self._commits.send(client, now)

    def _beat(self) -> None:
        """A sign of life, unless something has got stuck that this thread does not wait for."""
        now = time.monotonic()
        stuck = self._pipeline.scoring_for(now) > STUCK_SCORING_S or self._storing.busy_for(now) > STUCK_STORING_S
        if not stuck:
            self._health.beat()

    def _going_on(self) -> bool:
        return not (self._failed or self._stopping())

    def _drain(self, client: KafkaConsumer) -> None:
        """Finish what is being scored; what waits is read again by whoever comes next."""
        self._pipeline.drop_unbegun()
        self._storing.end(finish=True)
        self._storing.check()
        self._commits.finish(client)

    def _store_and_send(self, last: bool) -> None:
        """The storing thread's work: what is scored, what was refused, and now and then how far the partitions are."""
        self._pipeline.finish(self._intake.take_refused(), wait=last)
        now = time.monotonic()
        if not last and now - self._confirmed_at < CONFIRM_EVERY_S:
            return
        self._confirmed_at = now
        self._pipeline.correct()
        if not last:
            self._reporting.tell()
        # All that is done now is sent.
        self._commits.marks = self._intake.sources.marks()

    # Reading

    def _throttle(self, client: KafkaConsumer) -> bool:
        """Pause what must not come in now; True when nothing may."""
        held = self._ready.bytes + self._pipeline.held_bytes + self._intake.pairing.held_bytes
        self._room = self._settings.worker_image_bytes - held
        full = len(self._ready) >= 2 * self._settings.worker_batch_items or self._room < 0
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

    def _poll(self, client: KafkaConsumer, *, free: bool) -> None:
        """Take what has come; `free`: what comes can be scored at once, and is waited for."""
        try:
            busy_ms = FREE_POLL_MS if free else BUSY_POLL_MS
            timeout_ms = busy_ms if self._pipeline.scores or self._ready else IDLE_POLL_MS
            polled = poll(client, timeout_ms, self._most_records())
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
            self._reporting.polled(partition, records[-1].offset + 1)
            self._largest = max(self._largest * FORGET_LARGEST, *(len(record.value or b"") for record in records), 1024)
            metrics.POLLED.labels(self._intake.source(partition).partition(":")[0]).inc(len(records))

    def _most_records(self) -> int:
        """What one poll may bring, so that there is room for it if its records are as large as the last ones were.

        A bound on the bytes that are fetched does not do: compressed, many large records are few bytes.
        """
        most = max(MAX_POLL_RECORDS, 2 * self._settings.worker_batch_items)
        return max(1, min(most, int(self._room / (2 * self._largest))))

    def _disown(self) -> None:
        """Partitions are being taken away: nothing more is stored of them. On the client's own thread."""
        self._intake.disowned.set()
        self._storing.settle(SETTLE_SESSIONS * self._settings.kafka_session_timeout_s)

    def _let_go(self) -> None:
        """All partitions were taken away to be handed out anew: what is not done is read again, here or elsewhere.

        Batches in flight are no longer owned and dropped when they come back.
        """
        while self._listener.changes:
            self._assigned = self._listener.changes.popleft() == "assigned"
        self._settled = False
        self._intake.reset()
        self._ready.clear()
        self._reporting.forget()
        self._commits.forget()

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
            at = time_in(found.metadata or "") if found is not None else 0
            position = found.offset if found is not None else None
            self._intake.sources.assign(self._intake.source(partition), at, time.monotonic(), position)
            if position is not None:
                self._commits.assigned(partition, position, at)
        self._settled = True
        log.info("partitions assigned", partitions=sorted(self._intake.sources.partitions))

    # Scoring

    def _enqueue(self, groups: Iterable[Group[Origin]]) -> None:
        for group in groups:
            self._ready.add(group)

    def _submit(self) -> None:
        """Hand the classifier what is there, in as many batches as it takes.

        What is scored and not stored yet does not count: the classifier need not wait for the store.
        """
        for long in (False, True):
            while self._ready.waits(long=long) and self._pipeline.takes(long=long):
                self._pipeline.submit(self._ready.take(long=long), long=long)


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
        share_the_interpreter()
        # Until here a signal ends the process at once: loading a model takes long, and nothing is at stake yet.
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, on_signal)
        Worker(settings, scorer, store, stop.is_set, health).run()
    store.dispose()
