"""The notifier process: the outbox to Kafka `alerts` and to receivers.

The two run side by side and know nothing of each other, so that Kafka being away does not hold webhooks up, nor the
other way round.
"""

from __future__ import annotations

import asyncio
import signal
import threading
from datetime import UTC, datetime, timedelta
from typing import Final

from kafka import KafkaProducer
from kafka.errors import KafkaError
from sqlalchemy import Engine

from consumers.clients import broker_errors, drop, producer
from consumers.topics import ALERTS, ensure_topics
from monitor.alerts.config import NotificationConfig, load_notifications
from monitor.alerts.delivery import Dispatcher, holder_name
from monitor.alerts.senders import open_senders
from monitor.alerts.targets import check_names
from monitor.errors import BrokerError, ConfigurationError, MonitorError, StorageError
from monitor.health import Health
from monitor.records import encode
from monitor.settings import Settings
from monitor.storage.engine import open_engine, reading, writing
from monitor.storage.migrate import upgrade
from monitor.storage.outbox import OutboxEntry, claim_unpublished, mark_published, waits_for_publication
from monitor.telemetry import get_logger

__all__ = ["AlertPublisher", "run_notifier"]

log = get_logger(__name__)

BATCH: Final = 100
MAX_PAUSE_S: Final = 15.0


class AlertPublisher(threading.Thread):
    """Sends events of the outbox to Kafka `alerts`, in order, keyed by the alert's id.

    An event is marked as published when the cluster has acknowledged it; killed in between, it is sent again: readers
    tell repetitions by the headers `alert-id` and `event`. Kafka being away is waited for, with growing pauses. On
    anything else that goes wrong it ends, and `error` says why.
    """

    def __init__(self, settings: Settings, engine: Engine) -> None:
        super().__init__(name="alert-publisher", daemon=True)
        self._settings = settings
        self._engine = engine
        self._holder = holder_name()
        self._stop_requested = threading.Event()
        self._producer: KafkaProducer | None = None
        self.error: Exception | None = None

    def stop(self) -> None:
        """Ask it to end; `join` it then."""
        self._stop_requested.set()

    def run(self) -> None:
        """Publish until `stop` is called."""
        try:
            self._publish_all()
        except Exception as error:  # noqa: BLE001 - a thread that dies in silence would leave Kafka without alerts
            self.error = error
        self._close()

    def _publish_all(self) -> None:
        pause = self._settings.notifier_interval_s
        while not self._stop_requested.wait(pause):
            try:
                while self.publish() == BATCH and not self._stop_requested.is_set():
                    pass
                pause = self._settings.notifier_interval_s
            except (BrokerError, StorageError) as error:
                pause = min(max(2 * pause, 1.0), MAX_PAUSE_S)
                log.warning("alerts cannot be published, trying again", error=str(error), again_in_s=pause)

    def publish(self) -> int:
        """Send what waits, at most `BATCH` events; returns how many. Raises `BrokerError` or `StorageError`."""
        with reading(self._engine) as conn:
            if not waits_for_publication(conn):
                return 0
        now = datetime.now(UTC)
        until = now + timedelta(seconds=self._settings.notifier_lease_s)
        with writing(self._engine) as conn:
            entries = claim_unpublished(conn, self._holder, now, until, BATCH)
        if not entries:
            return 0
        try:
            self._send(entries)
        except BrokerError:
            # A producer that has failed may hold records which it would send later, out of order.
            if self._producer is not None:
                drop(self._producer)
                self._producer = None
            raise
        with writing(self._engine) as conn:
            mark_published(conn, [entry.position for entry in entries], datetime.now(UTC))
        log.info("alerts published", events=len(entries))
        return len(entries)

    def _send(self, entries: list[OutboxEntry]) -> None:
        if self._producer is None:
            ensure_topics(self._settings)
            # Within the lease: when it runs out another notifier sends these events.
            within_ms = int(self._settings.notifier_lease_s * 1000 / 2)
            self._producer = producer(
                self._settings,
                linger_ms=0,
                delivery_timeout_ms=within_ms,
                request_timeout_ms=within_ms,
                max_block_ms=within_ms,
            )
        topic = self._settings.topic(ALERTS)
        with broker_errors(self._settings):
            sent = [
                self._producer.send(
                    topic,
                    key=entry.episode_id.encode(),
                    value=encode(entry.alert),
                    headers=[("alert-id", entry.episode_id.encode()), ("event", entry.event.encode())],
                )
                for entry in entries
            ]
            for future in sent:
                future.get(timeout=self._settings.notifier_lease_s)

    def _close(self) -> None:
        if self._producer is not None:
            try:
                self._producer.close(timeout=1)
            except KafkaError as error:
                log.debug("the producer did not close cleanly", error=str(error))
            self._producer = None


async def _look_where_they_lead(config: NotificationConfig) -> None:
    """Tell the operator of receivers that lead where nobody may be called, or of which that is not known.

    The others are served all the same, and it is looked at again with every notice: a name's addresses change.
    """
    looked = [check_names({name: receiver}, config.policy) for name, receiver in config.receivers.items()]
    for name, found in zip(config.receivers, await asyncio.gather(*looked, return_exceptions=True), strict=True):
        if isinstance(found, ConfigurationError):
            log.error("nothing is sent to a receiver", receiver=name, error=str(found))
        elif isinstance(found, BaseException):
            raise found
        elif found:
            log.warning(
                "no name server tells where a receiver leads: that is checked when something is sent", receiver=name
            )


def run_notifier(settings: Settings) -> None:
    """Run until SIGINT or SIGTERM.

    Raises `ConfigurationError` for wrong receivers, `StorageError` when the store cannot be opened at the start,
    `MonitorError` when publishing cannot go on; nothing is lost then.
    """
    config = load_notifications(settings)
    asyncio.run(_look_where_they_lead(config))
    engine = open_engine(settings.database)
    upgrade(engine)
    publisher = AlertPublisher(settings, engine)
    publisher.start()
    try:
        with Health(settings.metrics_port) as health:
            asyncio.run(_dispatch(settings, engine, config, publisher, health))
    finally:
        publisher.stop()
        # What it is sending, should Kafka not answer, is sent again: it need not be waited for.
        publisher.join(settings.shutdown_s / 4)
        engine.dispose()
    if publisher.error is not None:
        if isinstance(publisher.error, MonitorError):
            raise publisher.error
        log.error("the notifier cannot go on", error=repr(publisher.error), exc_info=publisher.error)
        raise BrokerError(f"Sending alerts to Kafka failed: {publisher.error!r}.") from publisher.error


async def _dispatch(
    settings: Settings, engine: Engine, config: NotificationConfig, publisher: AlertPublisher, health: Health
) -> None:
    stop = asyncio.Event()

    def turned() -> None:
        health.beat()
        if publisher.error is not None:
            stop.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    dispatcher = Dispatcher(
        engine,
        config,
        open_senders(config),
        lease_s=settings.notifier_lease_s,
        interval_s=settings.notifier_interval_s,
    )
    log.info("notifier started", receivers=sorted(config.receivers))
    await dispatcher.run(stop, grace_s=settings.shutdown_s / 2, on_turn=turned)
    log.info("notifier stopped")
