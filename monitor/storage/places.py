"""The places in the log of contributions up to which the store has counted."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
from sqlalchemy import Connection, select, update

from monitor.storage import tables as t

__all__ = ["Place", "places", "restart_places"]


class Place(msgspec.Struct, frozen=True):
    """`next_offset` is the first record of the partition that is not counted, in the log of that identity."""

    log: str
    next_offset: int


def places(connection: Connection) -> dict[int, Place]:
    """By partition, those that have been counted in."""
    c = t.partitions.c
    return {
        row.partition: Place(row.log, row.next_offset)
        for row in connection.execute(select(c.partition, c.log, c.next_offset))
    }


def restart_places(connection: Connection, log: str, offsets: Mapping[int, int]) -> None:
    """Go on at these offsets of this log; what was counted and what waits stays."""
    for partition, offset in offsets.items():
        row, waiting = t.partitions.c, t.waiting.c
        before = connection.scalar(select(row.next_offset).where(row.partition == partition)) or 0
        # Waiting contributions are kept apart by offset: make room for the same offsets of another log.
        connection.execute(
            update(t.waiting).where(waiting.partition == partition).values(offset=waiting.offset - before - 1)
        )
        connection.execute(update(t.partitions).where(row.partition == partition).values(log=log, next_offset=offset))
