"""The outbox: what happened to alerts, to be published on Kafka and made into deliveries.

It has one row per episode and event at the most, so that nothing is announced twice. Rows come from whoever changes an
episode, in that transaction; the notifier reads them in the order of `position`.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from itertools import takewhile
from typing import Any, Final

import msgspec
from sqlalchemy import Connection, and_, select, update

from monitor.alerts.records import Alert, AlertState, alert_from_builtins
from monitor.storage.tables import outbox

__all__ = [
    "OutboxEntry",
    "announce",
    "claim_unpublished",
    "firing_position",
    "mark_published",
    "mark_routed",
    "unrouted",
    "waits_for_publication",
    "waits_for_routing",
]

_PUBLIC: Final = and_(outbox.c.published_at.is_(None), ~outbox.c.event.startswith("raised:"))


class OutboxEntry(msgspec.Struct, frozen=True):
    """One event of one episode that has to be announced, in the order of `position`."""

    position: int
    episode_id: str
    event: str
    alert: Alert
    created_at: datetime


def announce(conn: Connection, alert: Alert, event: str) -> None:
    """Enter an event of an alert, to be told as the alert stands now."""
    conn.execute(
        outbox.insert().values(
            episode_id=alert.id, event=event, payload=msgspec.to_builtins(alert), created_at=datetime.now(UTC)
        )
    )


def _entry(row: Any) -> OutboxEntry:
    return OutboxEntry(row.id, row.episode_id, row.event, alert_from_builtins(row.payload), row.created_at)


def firing_position(conn: Connection, episode_id: str) -> int | None:
    """Where the firing of an episode stands in the outbox; None as long as it has not been routed."""
    position: int | None = conn.scalar(
        select(outbox.c.id).where(
            outbox.c.episode_id == episode_id,
            outbox.c.event == AlertState.FIRING.value,
            outbox.c.routed_at.is_not(None),
        )
    )
    return position


def waits_for_routing(conn: Connection) -> bool:
    """True when the outbox holds an event that has not been made into deliveries."""
    return bool(conn.scalar(select(outbox.c.routed_at.is_(None)).where(outbox.c.routed_at.is_(None)).limit(1)))


def waits_for_publication(conn: Connection) -> bool:
    """True when the outbox holds a public event that Kafka has not acknowledged."""
    return bool(conn.scalar(select(outbox.c.published_at.is_(None)).where(_PUBLIC).limit(1)))


def unrouted(conn: Connection, limit: int = 500) -> list[OutboxEntry]:
    """Events that have not been made into deliveries yet, in order; locked until the transaction ends."""
    query = select(outbox).where(outbox.c.routed_at.is_(None)).order_by(outbox.c.id).limit(limit).with_for_update()
    return [_entry(row) for row in conn.execute(query)]


def claim_unpublished(
    conn: Connection, publisher: str, now: datetime, until: datetime, limit: int = 500
) -> list[OutboxEntry]:
    """Public events that Kafka has not acknowledged yet, in order, claimed for `publisher` until then.

    Nothing behind an event that another publisher has claimed is given out, so that order is kept.
    """
    rows = conn.execute(select(outbox).where(_PUBLIC).order_by(outbox.c.id).limit(limit).with_for_update()).all()
    mine = list(takewhile(lambda row: row.publisher in (None, publisher) or row.publisher_until <= now, rows))
    claimed = update(outbox).where(outbox.c.id.in_([row.id for row in mine]))
    conn.execute(claimed.values(publisher=publisher, publisher_until=until))
    return [_entry(row) for row in mine]


def mark_published(conn: Connection, positions: Sequence[int], at: datetime) -> None:
    """Kafka has acknowledged these."""
    conn.execute(update(outbox).where(outbox.c.id.in_(positions)).values(published_at=at))


def mark_routed(conn: Connection, positions: Sequence[int], at: datetime) -> None:
    """These have become deliveries."""
    conn.execute(update(outbox).where(outbox.c.id.in_(positions)).values(routed_at=at))
