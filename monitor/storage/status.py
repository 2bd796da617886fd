"""What an operator asks first, read from the store."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import msgspec
from sqlalchemy import Engine, func, select

from monitor.storage import tables as t
from monitor.storage.engine import reading

__all__ = ["StoreStatus", "store_status"]


class StoreStatus(msgspec.Struct, frozen=True, kw_only=True):
    """Figures of the store at one moment.

    `counted` is the number of pairs of item and window key in the counts; `watermark` the event time up to which
    counting is complete over all partitions; `judged_to` the last minute that was judged.
    """

    items: int
    counted: int
    dead_letters: int
    watermark: datetime | None
    judged_to: datetime | None
    alerts: dict[str, int]
    undelivered: int
    late: int
    stale: int


def _minute(value: int | None) -> datetime | None:
    return None if value is None else datetime(1970, 1, 1, tzinfo=UTC) + timedelta(minutes=value)


def store_status(engine: Engine) -> StoreStatus:
    """Count what is there. Raises `StorageError` when the store cannot be read."""
    with reading(engine) as connection:

        def one(statement: object) -> int:
            return int(connection.execute(statement).scalar_one() or 0)  # type: ignore[call-overload]

        watermark = connection.execute(select(func.min(t.partitions.c.watermark))).scalar_one()
        judged = connection.execute(select(func.max(t.judge.c.judged_to))).scalar_one()
        states = connection.execute(select(t.episodes.c.state, func.count()).group_by(t.episodes.c.state)).all()
        waiting = (
            select(func.count())
            .select_from(t.deliveries)
            .where(t.deliveries.c.state.in_(("pending", "failed")), t.deliveries.c.event != "test")
        )
        unrouted = select(func.count()).select_from(t.outbox).where(t.outbox.c.routed_at.is_(None))
        return StoreStatus(
            items=one(select(func.count()).select_from(t.items)),
            counted=one(select(func.sum(t.partitions.c.counted))),
            dead_letters=one(select(func.count()).select_from(t.dead_letters)),
            watermark=None if not watermark or watermark < 0 else datetime.fromtimestamp(watermark / 1000, UTC),
            judged_to=_minute(judged),
            alerts={"firing": 0, "acknowledged": 0, "resolved": 0} | {state: int(n) for state, n in states},
            undelivered=one(waiting) + one(unrouted),
            late=one(select(func.sum(t.partitions.c.late))),
            stale=one(select(func.sum(t.partitions.c.stale))),
        )
