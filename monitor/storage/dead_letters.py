"""The index of dead letters: which record could not be processed, why, and whether it was sent again.

The bytes themselves lie on the topic `dead-letters`. A record is identified by where it came from, so a redelivered
copy changes nothing and the number of rows is the number of records.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any

import msgspec
from sqlalchemy import ColumnElement, Connection, Row, select, tuple_, update

from monitor.errors import InputError
from monitor.storage.tables import dead_letters
from monitor.storage.upsert import insert_missing

__all__ = ["DeadLetter", "LetterId", "dead_letter_list", "find_dead_letters", "mark_replayed", "store_dead_letters"]


class LetterId(msgspec.Struct, frozen=True, order=True):
    """Where a record came from: full name of the topic, partition, offset. Written `topic:partition:offset`."""

    topic: str
    partition: int
    offset: int

    def __str__(self) -> str:
        return f"{self.topic}:{self.partition}:{self.offset}"

    @classmethod
    def parse(cls, text: str) -> LetterId:
        """From `topic:partition:offset`. Raises `InputError`."""
        topic, _, rest = text.partition(":")
        partition, _, offset = rest.partition(":")
        if not topic or not (partition + offset).isascii() or not partition.isdigit() or not offset.isdigit():
            raise InputError(
                f"{text!r} is no dead letter's id.", "It looks like news:3:1024; `dead-letters list` shows them."
            )
        return cls(topic, int(partition), int(offset))


class DeadLetter(msgspec.Struct, frozen=True, kw_only=True):
    """One entry of the index."""

    id: LetterId
    code: str
    reason: str
    failed_at: datetime
    replayed_at: datetime | None = None


def store_dead_letters(connection: Connection, letters: Iterable[DeadLetter]) -> None:
    """Enter letters; one that is there already stays as it is."""
    rows = {
        letter.id: {
            "topic": letter.id.topic,
            "partition": letter.id.partition,
            "offset": letter.id.offset,
            "code": letter.code[:64],
            "reason": letter.reason.replace("\x00", ""),
            "failed_at": letter.failed_at,
            "replayed_at": None,
        }
        for letter in letters
    }
    insert_missing(connection, dead_letters, [rows[key] for key in sorted(rows)])


def _letter(row: Row[Any]) -> DeadLetter:
    return DeadLetter(
        id=LetterId(row.topic, row.partition, row.offset),
        code=row.code,
        reason=row.reason,
        failed_at=row.failed_at,
        replayed_at=row.replayed_at,
    )


def dead_letter_list(
    connection: Connection, *, limit: int | None = 100, code: str = "", waiting: bool = False
) -> list[DeadLetter]:
    """Letters, the newest first. `waiting` leaves out those that were sent again, `code` all others."""
    query = select(dead_letters).order_by(
        dead_letters.c.failed_at.desc(), dead_letters.c.topic, dead_letters.c.partition, dead_letters.c.offset.desc()
    )
    if code:
        query = query.where(dead_letters.c.code == code)
    if waiting:
        query = query.where(dead_letters.c.replayed_at.is_(None))
    return [_letter(row) for row in connection.execute(query.limit(limit) if limit is not None else query)]


def find_dead_letters(connection: Connection, ids: Sequence[LetterId]) -> dict[LetterId, DeadLetter]:
    """The letters with these ids that are there."""
    if not ids:
        return {}
    letters = (_letter(row) for row in connection.execute(select(dead_letters).where(_is_one_of(ids))))
    return {letter.id: letter for letter in letters}


def mark_replayed(connection: Connection, ids: Sequence[LetterId]) -> None:
    """These letters have been sent to their topic again just now."""
    if ids:
        connection.execute(update(dead_letters).where(_is_one_of(ids)).values(replayed_at=datetime.now(UTC)))


def _is_one_of(ids: Sequence[LetterId]) -> ColumnElement[bool]:
    c = dead_letters.c
    return tuple_(c.topic, c.partition, c.offset).in_([(i.topic, i.partition, i.offset) for i in ids])
