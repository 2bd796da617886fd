"""Runs of the scheduled jobs: start, heartbeat, cancel request, result, history."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any, Final, Literal

import msgspec
from sqlalchemy import Connection, RowMapping, insert, select, update

from monitor.storage.tables import job_runs

__all__ = [
    "HEARTBEAT_TIMEOUT",
    "JobRun",
    "beat",
    "finish_run",
    "latest_result",
    "mark_interrupted",
    "request_cancel",
    "run_history",
    "running_run",
    "start_run",
]

RunState = Literal["running", "succeeded", "failed", "cancelled", "interrupted"]
# A run that has not shown itself for this long was killed together with its process.
HEARTBEAT_TIMEOUT: Final = timedelta(seconds=60)
# A number of its own (`items.py`, `migrate.py`): workers hold theirs for as long as they store a batch.
_LOCK: Final = 7_342_200


class JobRun(msgspec.Struct, frozen=True, kw_only=True):
    """One run of a job. `process` is host and process id; `result` is what the job returned, `error` why it failed."""

    id: int
    job: str
    state: RunState
    started_at: datetime
    finished_at: datetime | None
    heartbeat_at: datetime
    process: str
    cancel_requested: bool
    result: dict[str, Any] | None
    error: str | None


def _run(row: RowMapping) -> JobRun:
    return JobRun(**row)


def mark_interrupted(connection: Connection, now: datetime) -> list[int]:
    """Close the runs whose process was killed (no heartbeat for a minute); returns their ids."""
    rows = connection.execute(
        update(job_runs)
        .where(job_runs.c.state == "running", job_runs.c.heartbeat_at < now - HEARTBEAT_TIMEOUT)
        .values(state="interrupted", finished_at=now, error="The process was killed before the job had finished.")
        .returning(job_runs.c.id)
    )
    return sorted(int(row.id) for row in rows)


def start_run(connection: Connection, job: str, process: str, now: datetime) -> int | None:
    """Record that a job starts; its run id, or None when a run of the same job is still going on.

    Call inside `writing`: of two processes that start the same job at once, one gets None.
    """
    if connection.dialect.name == "postgresql":
        connection.exec_driver_sql(f"select pg_advisory_xact_lock({_LOCK})")
    mark_interrupted(connection, now)
    if running_run(connection, job) is not None:
        return None
    return int(
        connection.execute(
            insert(job_runs)
            .values(
                job=job,
                state="running",
                started_at=now,
                heartbeat_at=now,
                process=process,
                cancel_requested=False,
            )
            .returning(job_runs.c.id)
        ).scalar_one()
    )


def running_run(connection: Connection, job: str) -> JobRun | None:
    """The run of a job that is going on."""
    row = connection.execute(select(job_runs).where(job_runs.c.job == job, job_runs.c.state == "running")).mappings()
    found = row.first()
    return _run(found) if found else None


def beat(connection: Connection, run_id: int, now: datetime) -> bool:
    """Show that a run is alive; True when somebody has asked for its end, or it was taken for dead."""
    row = connection.execute(
        update(job_runs)
        .where(job_runs.c.id == run_id, job_runs.c.state == "running")
        .values(heartbeat_at=now)
        .returning(job_runs.c.cancel_requested)
    ).first()
    return True if row is None else bool(row.cancel_requested)


def finish_run(
    connection: Connection,
    run_id: int,
    state: RunState,
    now: datetime,
    *,
    result: Mapping[str, Any] | None = None,
    error: str | None = None,
) -> None:
    """Record how a run ended. A run that was already closed keeps its state."""
    connection.execute(
        update(job_runs)
        .where(job_runs.c.id == run_id, job_runs.c.state == "running")
        .values(
            state=state, finished_at=now, heartbeat_at=now, result=None if result is None else dict(result), error=error
        )
    )


def request_cancel(connection: Connection, which: int | str) -> JobRun | None:
    """Ask for the end of a run, by run id or by job name; the run, or None when no such run is going on."""
    wanted = job_runs.c.id == which if isinstance(which, int) else job_runs.c.job == which
    row = (
        connection.execute(
            update(job_runs)
            .where(wanted, job_runs.c.state == "running")
            .values(cancel_requested=True)
            .returning(*job_runs.c)
        )
        .mappings()
        .first()
    )
    return _run(row) if row else None


def run_history(connection: Connection, *, job: str | None = None, limit: int = 50) -> list[JobRun]:
    """The newest runs first."""
    query = select(job_runs).order_by(job_runs.c.id.desc()).limit(limit)
    if job is not None:
        query = query.where(job_runs.c.job == job)
    return [_run(row) for row in connection.execute(query).mappings()]


def latest_result(connection: Connection, job: str) -> JobRun | None:
    """The newest run of a job that succeeded."""
    query = (
        select(job_runs)
        .where(job_runs.c.job == job, job_runs.c.state == "succeeded")
        .order_by(job_runs.c.id.desc())
        .limit(1)
    )
    row = connection.execute(query).mappings().first()
    return _run(row) if row else None
