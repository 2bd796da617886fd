"""What has not arrived: listed, and sent again when somebody asks for it."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, and_, case, func, or_, select, update

from monitor.storage.audit import note_change
from monitor.storage.deliveries import COLUMNS, DELIVERED, FAILED, PENDING, TEST, Delivery, read
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

    A digest is replayed as a whole. What came later about the same alert for the same receiver is sent again behind it,
    also what has arrived: an alert that is said to fire must be said to be over afterwards. What nobody would send,
    because its receiver is gone or switched off, stays as it is (`stranded` tells it). Returns how many undelivered
    ones are due now.
    """
    chosen = dict.fromkeys(conn.scalars(select(deliveries.c.id).where(_replayable(ids), _served())).all(), "replayed")
    fresh = asked = list(chosen)
    while fresh:
        # A digest among these has later notices of its own.
        found = [row for row in _later(conn, fresh) if row not in chosen]
        chosen |= dict.fromkeys(found, "sent again behind an earlier one")
        fresh = found
    for row, event in chosen.items():
        _due_again(conn, row, now)
        note_change(conn, now, by, f"notice:{row}", event)
    return len(asked)


def _due_again(conn: Connection, row: str, now: datetime) -> None:
    values = {
        "state": PENDING,
        # One attempt stays noted of what was tried by itself: its id must not change any more (no digest).
        "attempts": case((deliveries.c.attempts > 0, 1), else_=0),
        "next_attempt_at": now,
        "last_error": None,
        "delivered_at": None,
        # One that arrived in a digest is sent by itself.
        "digest_id": None,
    }
    conn.execute(update(deliveries).where(deliveries.c.id == row).values(**values))
    conn.execute(
        update(deliveries).where(deliveries.c.digest_id == row, deliveries.c.state == FAILED).values(state=PENDING)
    )


def _later(conn: Connection, ids: Sequence[str]) -> list[str]:
    """What arrived or was given up, for the same receiver and about the same alert, behind one of these notices or what
    one of these digests holds; the digest in place of what was given up in it."""
    earlier, later = deliveries.alias("earlier"), deliveries.alias("later")
    behind = and_(
        later.c.receiver == earlier.c.receiver,
        later.c.episode_id == earlier.c.episode_id,
        later.c.position > earlier.c.position,
        later.c.state.in_((DELIVERED, FAILED)),
        later.c.event != TEST,
    )
    given_up_together = and_(later.c.state == FAILED, later.c.digest_id.is_not(None))
    query = (
        select(case((given_up_together, later.c.digest_id), else_=later.c.id))
        .join(earlier, behind)
        .where(or_(earlier.c.id.in_(ids), earlier.c.digest_id.in_(ids)))
        .distinct()
    )
    return list(conn.scalars(query))
