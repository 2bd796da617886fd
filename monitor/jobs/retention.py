"""Drops what is older than the settings keep, in small transactions that never hold the writers up for long."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from sqlalchemy import ColumnElement, Connection, Engine, Table, and_, delete, func, select

from monitor.jobs.alert_retention import alert_conditions
from monitor.jobs.catalogue import Cancelled, Progress
from monitor.settings import Settings
from monitor.storage.engine import open_engine, reading, writing
from monitor.storage.tables import (
    awaited_charts,
    charts,
    dead_letters,
    item_keys,
    items,
    job_runs,
    judge,
    ledger,
    retracted_keys,
    rollups,
    stories,
    ticks,
    watchers,
)
from monitor.storage.upsert import delete_rows

__all__ = ["BATCH_ROWS", "drop_old", "run"]

BATCH_ROWS: Final = 2_000


def _minute(at: datetime) -> int:
    return int(at.timestamp()) // 60


def newest_event(connection: Connection, now: datetime) -> datetime:
    """ "Now" in event time: the newest item's, never later than the clock. A replay of history keeps its data."""
    newest = connection.execute(select(func.max(items.c.published_at))).scalar()
    return min(now, newest) if newest else now


def _ticks_cutoff(connection: Connection, settings: Settings, now: datetime) -> int:
    """The first minute to keep.

    Never so late that a redelivered item could be counted twice, nor past what the judge needs to go on from its
    snapshot.
    """
    needed_h = settings.max_late_h + settings.story_window_h + 24.0
    days = max(settings.retention_ticks_days, needed_h / 24.0)
    cutoff = _minute(now - timedelta(days=days))
    for table in (judge, watchers):
        least = select(func.min(func.coalesce(table.c.snapshot_minute, table.c.judged_to)))
        needed = connection.execute(least).scalar()
        cutoff = cutoff if needed is None else min(cutoff, int(needed))
    return cutoff


def _conditions(
    connection: Connection, settings: Settings, now: datetime, clock: datetime
) -> list[tuple[Table, ColumnElement[bool]]]:
    """What to drop from each table; `now` is event time, `clock` the wall clock."""
    items_before = now - timedelta(days=settings.retention_items_days)
    minute = _ticks_cutoff(connection, settings, now)
    # Sums over longer times are cheap to keep, and are of use as long as anybody looks back.
    rollups_before = _minute(now - timedelta(days=settings.retention_rollups_days))
    kept_since = clock - timedelta(days=settings.retention_items_days)
    return [
        (charts, charts.c.published_at < now - timedelta(days=settings.retention_charts_days)),
        (items, items.c.published_at < items_before),
        (retracted_keys, retracted_keys.c.published_at < items_before),
        (awaited_charts, awaited_charts.c.published_at < now - timedelta(days=settings.retention_charts_days)),
        (ticks, ticks.c.minute < minute),
        (rollups, rollups.c.minute + rollups.c.width <= min(minute, rollups_before)),
        (ledger, ledger.c.minute < minute),
        (stories, and_(stories.c.minute < minute, stories.c.last_at < minute * 60_000)),
        (dead_letters, dead_letters.c.failed_at < kept_since),
        *alert_conditions(settings, now, clock),
        (job_runs, and_(job_runs.c.finished_at.is_not(None), job_runs.c.finished_at < kept_since)),
    ]


def _drop_batch(engine: Engine, table: Table, condition: ColumnElement[bool], rows: int) -> dict[str, int]:
    """Drop up to `rows` rows; how many by table. Items take their keys with them (these have no index on the time)."""
    key: Sequence[Any] = list(table.primary_key)
    dropped = {table.name: 0}
    with writing(engine) as connection:
        found = [tuple(row) for row in connection.execute(select(*key).where(condition).limit(rows))]
        if not found:
            return dropped
        if table is items:
            ids = [row[0] for row in found]
            dropped[item_keys.name] = connection.execute(delete(item_keys).where(item_keys.c.item_id.in_(ids))).rowcount
        delete_rows(connection, table, found)
    dropped[table.name] = len(found)
    return dropped


def drop_old(
    engine: Engine,
    settings: Settings,
    clock: datetime,
    progress: Progress,
    cancelled: Cancelled,
    *,
    batch_rows: int = BATCH_ROWS,
) -> dict[str, int]:
    """Rows dropped by table. Stops between two batches when cancelled."""
    with reading(engine) as connection:
        conditions = _conditions(connection, settings, newest_event(connection, clock), clock)
    dropped: dict[str, int] = {}
    for number, (table, condition) in enumerate(conditions):
        while not cancelled():
            progress(number, len(conditions), table.name)
            batch = _drop_batch(engine, table, condition, batch_rows)
            for name, count in batch.items():
                dropped[name] = dropped.get(name, 0) + count
            if batch[table.name] < batch_rows:
                break
    progress(len(conditions), len(conditions), "done")
    return dropped


def run(settings: Settings, progress: Progress, cancelled: Cancelled) -> dict[str, Any]:
    """The job: returns the rows dropped by table."""
    engine = open_engine(settings.database)
    try:
        return {"dropped": drop_old(engine, settings, datetime.now(UTC), progress, cancelled)}
    finally:
        engine.dispose()
