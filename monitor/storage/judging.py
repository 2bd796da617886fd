"""The judge's row: how far it has judged, who may judge, and a snapshot of its state; and the ticks it judges by.

One process at a time holds the lease. It is not what keeps judging exact, only what keeps processes from doing the
same work: every step compares and sets `version`, so that a holder that was overtaken in its sleep changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import msgspec
import numpy as np
from sqlalchemy import Connection, delete, func, select, update

from monitor.storage import tables as t
from monitor.storage.pending import end_pending, note_pending
from monitor.storage.upsert import insert_missing
from monitor.surges.decisions import MinuteCounts
from monitor.surges.sorts import detector
from monitor.surges.ticks import MAX_GAP_MINUTES

__all__ = [
    "JudgeRow",
    "LostLeaseError",
    "WatcherRow",
    "begin_watching",
    "end_watching",
    "first_minute",
    "judged_to",
    "minute_counts",
    "release_lease",
    "save_judged",
    "save_watched",
    "stored_judge",
    "stored_watcher",
    "take_lease",
    "watched",
]

NAME: Final = "surges"


class WatcherRow(msgspec.Struct, frozen=True):
    """How far another sort of surge is judged: `snapshot` is its judge's state at the end of `snapshot_minute`."""

    judged_to: int
    snapshot: bytes | None
    snapshot_minute: int | None


class LostLeaseError(Exception):
    """Another process has taken the judging over."""


class JudgeRow(msgspec.Struct, frozen=True):
    """How far judging has come: `judged_to` is the last epoch minute judged, `snapshot` the judge's state at the end
    of `snapshot_minute` (None: none yet). `version` grows with every step."""

    judged_to: int
    version: int
    snapshot: bytes | None
    snapshot_minute: int | None


def first_minute(connection: Connection) -> int | None:
    """The epoch minute to begin judging with: the earliest in which anything is counted, after the last stretch of
    more than `MAX_GAP_MINUTES` without anything. One item dated years ago must not have all those years judged."""
    minute = t.ticks.c.minute
    begin: int | None = connection.scalar(select(func.min(minute)))
    at = begin
    while at is not None:
        last = connection.scalar(select(func.max(minute)).where(minute.between(at, at + MAX_GAP_MINUTES)))
        if last == at:
            last = connection.scalar(select(func.min(minute)).where(minute > at))
            begin = begin if last is None else last
        at = last
    return begin


def judged_to(connection: Connection) -> int | None:
    """The last epoch minute that has been judged; None before the first."""
    last: int | None = connection.scalar(select(t.judge.c.judged_to).where(t.judge.c.name == NAME))
    return last


def stored_judge(connection: Connection) -> JudgeRow | None:
    """The judge's row as it is stored, for looking at only; None before anything was judged."""
    c = t.judge.c
    columns = (c.judged_to, c.version, c.snapshot, c.snapshot_minute)
    row = connection.execute(select(*columns).where(c.name == NAME)).one_or_none()
    return None if row is None else JudgeRow(*row)


def take_lease(connection: Connection, holder: str, now: datetime, lease: timedelta, begin_at: int) -> JudgeRow | None:
    """Take or renew the lease; None when another process holds it. `begin_at` is the first minute ever to judge."""
    c = t.judge.c
    row = {
        "name": NAME,
        "judged_to": begin_at - 1,
        "version": 0,
        "lease_holder": holder,
        "lease_until": now + lease,
        "snapshot": None,
        "snapshot_minute": None,
    }
    if not insert_missing(connection, t.judge, [row]):
        free = (c.name == NAME) & ((c.lease_holder == holder) | (c.lease_until < now))
        taken = update(t.judge).where(free).values(lease_holder=holder, lease_until=now + lease)
        if connection.execute(taken).rowcount != 1:
            return None
    stored = connection.execute(
        select(c.judged_to, c.version, c.snapshot, c.snapshot_minute).where(c.name == NAME)
    ).one()
    return JudgeRow(*stored)


def save_judged(
    connection: Connection,
    holder: str,
    version: int,
    judged_to: int,
    lease_until: datetime,
    snapshot: bytes | None = None,
) -> None:
    """Move "judged up to", and with it `version` by one. A snapshot, if given, is that of `judged_to`.

    Raises `LostLeaseError` when another process has taken over since `version`: let the transaction fail then.
    """
    c = t.judge.c
    values: dict[str, Any] = {"judged_to": judged_to, "version": version + 1, "lease_until": lease_until}
    if snapshot is not None:
        values |= {"snapshot": snapshot, "snapshot_minute": judged_to}
    mine = (c.name == NAME) & (c.lease_holder == holder) & (c.version == version)
    if connection.execute(update(t.judge).where(mine).values(**values)).rowcount != 1:
        raise LostLeaseError
    if snapshot is not None:
        note_pending(connection, snapshot)


def stored_watcher(connection: Connection, surge: str) -> WatcherRow | None:
    """How far the judge of another sort of surge has come; None when nobody watches it."""
    c = t.watchers.c
    row = connection.execute(select(c.judged_to, c.snapshot, c.snapshot_minute).where(c.surge == surge)).one_or_none()
    return None if row is None else WatcherRow(*row)


def watched(connection: Connection) -> frozenset[str]:
    """The other sorts of surge that are judged."""
    return frozenset(connection.scalars(select(t.watchers.c.surge)))


def begin_watching(connection: Connection, surge: str, judged_to: int) -> None:
    """Let a sort of surge be judged whose minutes up to `judged_to` are history; nothing if it is already."""
    row = {"surge": surge, "judged_to": judged_to, "snapshot": None, "snapshot_minute": None}
    insert_missing(connection, t.watchers, [row])


def end_watching(connection: Connection, surge: str) -> None:
    """Nobody watches this sort of surge any more: forget how far it was judged, and what of it is pending."""
    known = stored_watcher(connection, surge)
    if known is not None:
        end_pending(connection, detector(surge), datetime.fromtimestamp((known.judged_to + 1) * 60, UTC))
    connection.execute(delete(t.watchers).where(t.watchers.c.surge == surge))


def save_watched(connection: Connection, surge: str, before: int, judged_to: int, snapshot: bytes | None) -> None:
    """Move how far a sort of surge is judged, from `before`. A snapshot, if given, is that of `judged_to`.

    Raises `LostLeaseError` when another process has moved it meanwhile: let the transaction fail then.
    """
    values: dict[str, Any] = {"judged_to": judged_to}
    if snapshot is not None:
        values |= {"snapshot": snapshot, "snapshot_minute": judged_to}
    c = t.watchers.c
    mine = (c.surge == surge) & (c.judged_to == before)
    if connection.execute(update(t.watchers).where(mine).values(**values)).rowcount != 1:
        raise LostLeaseError
    if snapshot is not None:
        note_pending(connection, snapshot)


def release_lease(connection: Connection, holder: str, now: datetime) -> None:
    """Let another process judge at once."""
    c = t.judge.c
    connection.execute(update(t.judge).where((c.name == NAME) & (c.lease_holder == holder)).values(lease_until=now))


def minute_counts(connection: Connection, first: int, last: int) -> Mapping[int, MinuteCounts]:
    """Story counts of the minutes `first` to `last` (inclusive) that have any."""
    c = t.ticks.c
    query = (
        select(c.minute, c.key, c.stories, c.negative_stories, c.positive_stories)
        .where(c.minute.between(first, last), c.stories > 0)
        .order_by(c.minute, c.key)
    )
    return dict(_by_minute(connection.execute(query).all()))


def _by_minute(rows: Any) -> Iterator[tuple[int, MinuteCounts]]:
    start = 0
    for end in range(1, len(rows) + 1):
        if end == len(rows) or rows[end][0] != rows[start][0]:
            block = rows[start:end]
            counts = np.array([row[2:] for row in block], dtype=np.int64)
            yield block[0][0], MinuteCounts([row[1] for row in block], *counts.T)
            start = end
