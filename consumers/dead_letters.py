"""Looking at dead letters and sending them again.

The index in the store says which records there are; their bytes lie on the topic `dead-letters`, where a redelivered
record may lie more than once.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from datetime import datetime, timedelta
from typing import Any

import msgspec
from kafka import KafkaConsumer
from kafka.errors import KafkaTimeoutError
from kafka.structs import TopicPartition
from sqlalchemy import Engine

from consumers.clients import broker_errors, consumer
from consumers.publisher import CUT_FROM, ORIGIN, ORIGIN_HEADER, Outgoing, Publisher
from consumers.topics import DEAD_LETTERS
from monitor.errors import InputError
from monitor.settings import Settings
from monitor.storage.dead_letters import LetterId, dead_letter_list, find_dead_letters, mark_replayed
from monitor.storage.engine import reading, writing

__all__ = ["OriginalRecord", "read_original", "replay"]

REPLAY_TOGETHER = 200
REPLAY_BYTES = 32 << 20
SEND_TIMEOUT_S = 60.0
PATIENCE_S = 20.0
CLOCKS_DIFFER = timedelta(minutes=10)


class OriginalRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A record as it was when it was refused. `cut_from` is its size in bytes when only its beginning was kept."""

    id: LetterId
    code: str
    reason: str
    timestamp: int
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes], ...]
    cut_from: int | None = None


def _parse(record: Any) -> OriginalRecord | None:
    """From a record of `dead-letters`; None for one that some other program has put there."""
    own: dict[str, bytes] = {}
    original: list[tuple[str, bytes]] = []
    for name, value in record.headers or ():
        if name.startswith(ORIGIN_HEADER):
            original.append((name.removeprefix(ORIGIN_HEADER), value or b""))
        else:
            own.setdefault(name, value or b"")
    try:
        letter = LetterId(own[f"{ORIGIN}topic"].decode(), int(own[f"{ORIGIN}partition"]), int(own[f"{ORIGIN}offset"]))
        return OriginalRecord(
            id=letter,
            code=own["code"].decode(),
            reason=own["reason"].decode("utf-8", "replace"),
            timestamp=int(own[f"{ORIGIN}timestamp"]),
            key=record.key,
            value=None if f"{ORIGIN}null" in own else record.value,
            headers=tuple(original),
            cut_from=int(own[CUT_FROM]) if CUT_FROM in own else None,
        )
    except (KeyError, ValueError):
        return None


def _everything(settings: Settings, client: KafkaConsumer, since: datetime | None = None) -> Iterator[OriginalRecord]:
    """All records of the topic up to its present end, the oldest first; those sent before `since` are left out.

    Raises `BrokerError` when none comes for `PATIENCE_S`.
    """
    name = settings.topic(DEAD_LETTERS)
    with broker_errors(settings):
        partitions = [TopicPartition(name, number) for number in sorted(client.partitions_for_topic(name) or ())]
        if not partitions:
            return
        client.assign(partitions)
        client.seek_to_beginning(*partitions)
        ends = client.end_offsets(partitions)
        if since is not None:
            at = int(since.timestamp() * 1000)
            for partition, place in client.offsets_for_times(dict.fromkeys(partitions, at)).items():
                client.seek(partition, place.offset if place is not None else ends[partition])
        heard = time.monotonic()
        while any(client.position(partition) < ends[partition] for partition in partitions):
            polled = client.poll(timeout_ms=500)
            if not polled and time.monotonic() - heard > PATIENCE_S:
                raise KafkaTimeoutError(f"nothing came for {PATIENCE_S:.0f} s")
            for records in polled.values():
                for record in records:
                    parsed = _parse(record)
                    if parsed is not None:
                        yield parsed
            if polled:
                # Who takes the records may be slow: only waiting counts.
                heard = time.monotonic()


def read_original(settings: Settings, letter: LetterId, failed_at: datetime | None = None) -> OriginalRecord | None:
    """A refused record as it was; None when the topic no longer holds it. Raises `BrokerError`.

    `failed_at`, if it is known, is when the record was refused: reading begins a little before, and at the topic's
    beginning only when it is not found there (the clocks of worker and cluster differ).
    """
    since = (failed_at - CLOCKS_DIFFER,) if failed_at is not None else ()
    with closing(consumer(settings, None)) as client:
        for begin in (*since, None):
            for record in _everything(settings, client, begin):
                if record.id == letter:
                    return record
    return None


def _again(settings: Settings, record: OriginalRecord) -> Outgoing:
    topic = record.id.topic.removeprefix(settings.topic_prefix)
    key = record.key if record.key is not None or record.value is not None else b""
    # The same partition as before: an item and its chart meet in one partition number.
    return Outgoing(topic, record.value, key, record.id.partition, list(record.headers))


def replay(
    settings: Settings,
    store: Engine,
    wanted: LetterId | None,
    *,
    code: str = "",
    on_sent: Callable[[int], None] = lambda _: None,
) -> tuple[int, list[LetterId]]:
    """Send refused records to their topics again: one, or (`wanted` None) all that were not sent again yet.

    Returns how many were sent and the letters whose bytes are not there (any more). A record is marked only after the
    cluster has it: an interruption sends one twice rather than never. Raises `InputError` for an unknown letter,
    `BrokerError`, `StorageError`.
    """
    with reading(store) as connection:
        if wanted is not None:
            left = set(find_dead_letters(connection, [wanted]))
            if not left:
                raise InputError(f"There is no dead letter {wanted}.", "`dead-letters list` shows them.")
        else:
            left = {letter.id for letter in dead_letter_list(connection, limit=None, code=code, waiting=True)}
    publisher = Publisher(settings, SEND_TIMEOUT_S)
    sent = 0
    try:
        with closing(consumer(settings, None)) as client:
            together: dict[LetterId, OriginalRecord] = {}
            for record in _everything(settings, client) if left else ():
                if record.id in left and record.cut_from is None:
                    left.discard(record.id)
                    together[record.id] = record
                size = sum(len(one.value or b"") for one in together.values())
                if len(together) == REPLAY_TOGETHER or size > REPLAY_BYTES:
                    sent += _send(settings, store, publisher, together)
                    on_sent(sent)
                    together = {}
            sent += _send(settings, store, publisher, together)
            on_sent(sent)
    finally:
        publisher.close()
    return sent, sorted(left)


def _send(settings: Settings, store: Engine, publisher: Publisher, records: Mapping[LetterId, OriginalRecord]) -> int:
    publisher.send([_again(settings, record) for record in records.values()])
    with writing(store) as connection:
        mark_replayed(connection, list(records))
    return len(records)
