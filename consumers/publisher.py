"""What the worker sends: scored items, contributions with the progress of the sources, dead letters."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final

import stamina
from kafka import KafkaProducer
from kafka.errors import KafkaError, KafkaTimeoutError, MessageSizeTooLargeError

from consumers.clients import broker_errors, drop, producer
from consumers.topics import CONTRIBUTIONS, DEAD_LETTERS, SCORED
from monitor.errors import BrokerError
from monitor.records import Contribution, ContributionBatch, Rejected, ScoredItem, SourceWatermark, encode
from monitor.settings import Settings
from monitor.surges.keys import partition_of
from monitor.telemetry import get_logger

__all__ = ["Outgoing", "Publisher", "contribution_records", "dead_letter_record"]

log = get_logger(__name__)

# A producer gives a record up after this time.
SEND_TIMEOUT_S: Final = 30.0
# What can block before a record is handed over: finding the cluster, room and metadata for a record.
BLOCK_S: Final = 5.0
# Told to stop, what is on its way is waited for this long; supervisors kill after `shutdown_s`, 20 s unless changed.
STOP_GRACE_S: Final = 4.0
LOOK_EVERY_S: Final = 0.25
# Half of what one record of the topic may hold.
CONTRIBUTION_BYTES: Final = 8 << 20
ORIGIN: Final = "origin-"
ORIGIN_HEADER: Final = "origin-header-"
CUT_FROM: Final = "cut-from"
# What is kept of a dead letter that is too large: so much of its value, and so much of its key.
CUT_BYTES: Final = 65_536
CUT_KEY_BYTES: Final = 1_024
MAX_REASON_CHARS: Final = 1_000


@dataclass(slots=True)
class Outgoing:
    """One record to send; `topic` without prefix, `partition` None leaves the choice to the key's hash."""

    topic: str
    value: bytes | None
    key: bytes | None = None
    partition: int | None = None
    headers: list[tuple[str, bytes]] = field(default_factory=list)


def scored_record(item: ScoredItem) -> Outgoing:
    """A record of the public `scored` topic, keyed by item id."""
    return Outgoing(SCORED, encode(item), item.id.encode())


def contribution_records(
    contributions: Iterable[Contribution],
    sources: tuple[SourceWatermark, ...],
    source_count: int,
    partitions: int,
) -> list[Outgoing]:
    """At least one record for every partition of `contributions`, each with its keys' share and all `sources`.

    A share that is too large for one record goes in several, of which only the last tells the progress: it must not
    be believed before all of the share has been read.
    """
    shares: list[list[Contribution]] = [[] for _ in range(partitions)]
    for one in contributions:
        shares[partition_of(one.key, partitions)].append(one)
    return [
        Outgoing(CONTRIBUTIONS, value, partition=partition)
        for partition, share in enumerate(shares)
        for value in _batches(tuple(share), sources, source_count)
    ]


def _batches(share: tuple[Contribution, ...], sources: tuple[SourceWatermark, ...], count: int) -> list[bytes]:
    value = encode(ContributionBatch(contributions=share, sources=sources, source_count=count))
    if len(value) <= CONTRIBUTION_BYTES or len(share) < 2:
        return [value]
    middle = len(share) // 2
    return [*_batches(share[:middle], (), count), *_batches(share[middle:], sources, count)]


def dead_letter_record(record: Any, rejected: Rejected) -> Outgoing:
    """A record of `dead-letters`: the original bytes and key, and where they came from and why in headers."""
    headers: list[tuple[str, bytes]] = [
        ("code", rejected.code.encode()),
        ("reason", rejected.reason[:MAX_REASON_CHARS].encode("utf-8", "replace")),
        (f"{ORIGIN}topic", record.topic.encode()),
        (f"{ORIGIN}partition", str(record.partition).encode()),
        (f"{ORIGIN}offset", str(record.offset).encode()),
        (f"{ORIGIN}timestamp", str(record.timestamp).encode()),
    ]
    headers += [(f"{ORIGIN_HEADER}{name}", value or b"") for name, value in record.headers or ()]
    if record.value is None:
        headers.append((f"{ORIGIN}null", b"1"))
    # As plain bytes: producers take no others.
    return Outgoing(DEAD_LETTERS, bytes(record.value or b""), record.key, headers=headers)


class Publisher:
    """Sends records and returns when the cluster has them all; waits out an outage.

    Parameters
    ----------
    patience_s : how long an outage is waited for.
    going_on : asked all the time; False gives up what is not acknowledged within some seconds, and tries no more.
    """

    def __init__(self, settings: Settings, patience_s: float, going_on: Callable[[], bool] = lambda: True) -> None:
        self._settings = settings
        self._patience_s = patience_s
        self._going_on = going_on
        self._producer: KafkaProducer | None = None

    def send(self, records: Sequence[Outgoing]) -> None:
        """Send all and wait for the acknowledgements. After a failed attempt all are sent again: receivers count by id.

        Raises `BrokerError` when the outage outlasts the patience or the cluster refuses a record for good.
        """
        if not records:
            return
        waiting = stamina.retry_context(
            on=self._worth_waiting, attempts=None, timeout=self._patience_s, wait_initial=0.1, wait_max=3.0
        )
        with broker_errors(self._settings):
            for attempt in waiting:
                with attempt:
                    try:
                        self._attempt(records)
                    except MessageSizeTooLargeError:
                        # Which record it was is not told. Only a dead letter may be kept in part.
                        self._attempt([_cut(record) for record in records])

    def close(self) -> None:
        """Leave; nothing is on its way any more after `send`."""
        if self._producer is not None:
            with suppress(KafkaError):
                self._producer.close(timeout=5)
            self._producer = None

    def _worth_waiting(self, error: Exception) -> bool:
        passing = isinstance(error, BrokerError) or (
            isinstance(error, KafkaError) and not isinstance(error, MessageSizeTooLargeError)
        )
        if passing and self._going_on():
            log.warning("the broker does not take the records", error=str(error))
            return True
        return False

    def _attempt(self, records: Sequence[Outgoing]) -> None:
        if self._producer is None:
            self._producer = producer(
                self._settings,
                bootstrap_timeout_ms=int(BLOCK_S * 1000),
                delivery_timeout_ms=int(SEND_TIMEOUT_S * 1000),
                request_timeout_ms=int(SEND_TIMEOUT_S * 1000) // 2,
                max_block_ms=int(BLOCK_S * 1000),
            )
        try:
            futures = [
                self._producer.send(
                    self._settings.topic(record.topic), record.value, record.key, record.headers, record.partition
                )
                for record in records
            ]
            self._flush(self._producer)
            for future in futures:
                future.get(timeout=0)
        except KafkaError:
            # An idempotent producer may not go on after a record was given up: start with a fresh one.
            drop(self._producer)
            self._producer = None
            raise

    def _flush(self, client: KafkaProducer) -> None:
        """Until every record is acknowledged or given up. Raises `KafkaTimeoutError` when told to stop meanwhile."""
        give_up_at = time.monotonic() + 2 * SEND_TIMEOUT_S
        stopping = False
        while True:
            try:
                client.flush(timeout=LOOK_EVERY_S)
                return
            except KafkaTimeoutError:
                if not stopping and not self._going_on():
                    stopping, give_up_at = True, time.monotonic() + STOP_GRACE_S
                if time.monotonic() > give_up_at:
                    raise


def _cut(record: Outgoing) -> Outgoing:
    """A large dead letter with the beginnings of its value and key, without its original headers; others as they are.

    Whatever made it large: a strange sender's key or headers may be so just as well as the value.
    """
    value, key = record.value or b"", record.key
    size = len(value) + len(key or b"") + sum(len(name.encode()) + len(held or b"") for name, held in record.headers)
    if record.topic != DEAD_LETTERS or size <= CUT_BYTES:
        return record
    headers = [header for header in record.headers if not header[0].startswith(ORIGIN_HEADER)]
    headers.append((CUT_FROM, str(len(value)).encode()))
    return Outgoing(record.topic, value[:CUT_BYTES], key and key[:CUT_KEY_BYTES], headers=headers)
