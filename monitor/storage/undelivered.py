"""What has not arrived: listed, and sent again when somebody asks for it."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, and_, func, or_, select, update

from monitor.storage.audit import note_change
from monitor.storage.deliveries import COLUMNS, FAILED, PENDING, TEST, Delivery, read
from monitor.storage.tables import deliveries, receivers

__all__ = ["replay", "stranded", "undelivered"]


def undelivered(conn: Connection, *, limit: int = 1000) -> list[Delivery]:
    """What has not arrived though it was tried or given up: failed for good, or pending after a failed attempt."""
    query = (
        select(*COLUMNS)
        .where(
            or_(
                deliveries.c.state == FAILED,
                and_(
                    deliveries.c.state == PENDING, or_(deliveries.c.attempts > 0, deliveries.c.last_error.is_not(None))
                ),
            ),
            deliveries.c.event != TEST,
        )
        .order_by(deliveries.c.position, deliveries.c.id)
        .limit(limit)
    )
    return read(conn, query)


def _replayable(ids: Sequence[str] | None) -> Any:
    chosen = and_(
        deliveries.c.event != TEST,
        deliveries.c.digest_id.is_(None),
        or_(deliveries.c.state == FAILED, and_(deliveries.c.state == PENDING, deliveries.c.attempts > 0)),
    )
    if ids is None:
        return chosen
    member = deliveries.alias("member")
    digests = select(member.c.digest_id).where(member.c.id.in_(ids), member.c.digest_id.is_not(None))
    return and_(chosen, or_(deliveries.c.id.in_(ids), deliveries.c.id.in_(digests)))


def _served() -> Any:
    """The receiver is configured and switched on."""
    return deliveries.c.receiver.in_(select(receivers.c.name).where(receivers.c.enabled))


def stranded(conn: Connection, ids: Sequence[str] | None = None) -> dict[str, int]:
    """How many undelivered notices `replay` leaves alone, by the name of their receiver, which is gone or off."""
    query = select(deliveries.c.receiver, func.count()).where(_replayable(ids), ~_served())
    rows = conn.execute(query.group_by(deliveries.c.receiver).order_by(deliveries.c.receiver))
    return {name: int(number) for name, number in rows}


def replay(conn: Connection, now: datetime, ids: Sequence[str] | None = None, *, by: str = "cli") -> int:
    """Make failed and waiting notifications due at once, with a fresh schedule and the same ids; `ids` None: all.

    A digest is replayed as a whole. What nobody would send, because its receiver is gone or switched off, stays as it
    is (`stranded` tells it). Returns how many are due now.
    """
    rows = conn.scalars(select(deliveries.c.id).where(_replayable(ids), _served())).all()
    values = {"state": PENDING, "attempts": 0, "next_attempt_at": now, "last_error": None}
    conn.execute(update(deliveries).where(deliveries.c.id.in_(rows)).values(**values))
    conn.execute(
        update(deliveries).where(deliveries.c.digest_id.in_(rows), deliveries.c.state == FAILED).values(state=PENDING)
    )
    for row in rows:
        note_change(conn, now, by, f"notice:{row}", "replayed")
    return len(rows)
