"""Where the aggregator goes on reading: the place in the store is the truth, the consumer group follows it.

The store may have been restored from a backup, or emptied, or be used with a new cluster. Offsets alone do not tell:
so the store also remembers of which log its places are, and before reading begins they are held against that log.
Reading something again does no harm, since the ledger knows what was counted; skipping something would.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import stamina
from kafka import KafkaAdminClient, OffsetAndMetadata, OffsetSpec, TopicPartition
from kafka.errors import CoordinatorLoadInProgressError, CoordinatorNotAvailableError, NoError, NotCoordinatorError
from sqlalchemy import Engine

from consumers.clients import admin, broker_errors, group_id
from consumers.topics import CONTRIBUTIONS
from monitor.settings import Settings
from monitor.storage.engine import writing
from monitor.storage.places import places, restart_places
from monitor.telemetry import get_logger

__all__ = ["LogPlace", "align"]

log = get_logger(__name__)


COORDINATOR_S: Final = 30.0
_NO_COORDINATOR: Final = (CoordinatorNotAvailableError, CoordinatorLoadInProgressError, NotCoordinatorError)


class LogPlace(NamedTuple):
    """The log of contributions: `identity` tells it from others, `begins` has the first offset of each partition."""

    identity: str
    begins: dict[int, int]


def align(settings: Settings, engine: Engine) -> LogPlace:
    """Make the stored places and the group's offsets fit the log as it is now; call it before reading begins.

    Places of another log, or behind the end of this one, or before its beginning, start again at its beginning. The
    group's offsets are set to the stored places unless another aggregator is reading. Raises `BrokerError`,
    `StorageError`.
    """
    topic = settings.topic(CONTRIBUTIONS)
    client = admin(settings)
    try:
        with broker_errors(settings):
            (described,) = client.describe_topics([topic])
            identity = f"{client.describe_cluster()['cluster_id']}/{described.get('topic_id') or topic}"
            parts = [TopicPartition(topic, one["partition_index"]) for one in described["partitions"]]
            begins = _offsets(client, parts, OffsetSpec.EARLIEST)
            ends = _offsets(client, parts, OffsetSpec.LATEST)
        stored = _adopt(engine, identity, begins, ends)
        wanted = {part: stored.get(part.partition, begins[part.partition]) for part in parts}
        # A cluster that has just started, or has lost a node, has no coordinator for some seconds.
        waiting = stamina.retry_context(on=_NO_COORDINATOR, attempts=None, timeout=COORDINATOR_S, wait_max=2.0)
        with broker_errors(settings):
            for attempt in waiting:
                with attempt:
                    _move_group(client, group_id(settings, settings.aggregator_group), wanted)
    finally:
        client.close()
    return LogPlace(identity, begins)


def _offsets(client: KafkaAdminClient, parts: list[TopicPartition], spec: OffsetSpec) -> dict[int, int]:
    found = client.list_partition_offsets(dict.fromkeys(parts, spec))
    return {part.partition: found[part].offset for part in parts}


def _adopt(engine: Engine, identity: str, begins: dict[int, int], ends: dict[int, int]) -> dict[int, int]:
    """Stored places by partition, after those that do not fit this log have been set to its beginning."""
    with writing(engine) as connection:
        stored = places(connection)
        unfit: dict[int, int] = {}
        for partition, place in stored.items():
            begin, end = begins.get(partition, 0), ends.get(partition, 0)
            if place.log == identity and begin <= place.next_offset <= end:
                continue
            unfit[partition] = begin
            if place.log == identity and place.next_offset < begin:
                lost = begin - place.next_offset
                log.error("records were deleted before they were counted", partition=partition, records=lost)
            else:
                log.warning(
                    "the store counted another log: reading this one from its beginning",
                    partition=partition,
                    log=identity,
                )
        restart_places(connection, identity, unfit)
    return {partition: unfit.get(partition, place.next_offset) for partition, place in stored.items()}


def _move_group(client: KafkaAdminClient, group: str, wanted: dict[TopicPartition, int]) -> None:
    committed = client.list_group_offsets([group]).get(group, {})
    there = {part: committed[part].offset if part in committed else -1 for part in wanted}
    moved = {part: offset for part, offset in wanted.items() if there[part] != offset}
    if not moved:
        return
    results = client.alter_group_offsets(
        group, {part: OffsetAndMetadata(offset, "", -1) for part, offset in moved.items()}
    )
    refused = sorted({error.__name__ for error in results.values() if error is not NoError})
    if not refused:
        log.info("the group reads on from the places in the store", partitions=len(moved))
        return
    # Another aggregator is in the group and sees to its offsets.
    ahead = {part.partition: offset for part, offset in moved.items() if there[part] > offset}
    log.debug("the group has members, its offsets stay", reasons=refused, ahead=ahead)
