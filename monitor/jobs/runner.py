"""Runs one job in this process: records the run, beats for it, and ends it when somebody asks for that."""

from __future__ import annotations

import os
import socket
import threading
import time
from datetime import UTC, datetime
from typing import Any, Final

from sqlalchemy import Engine

from monitor.errors import ConfigurationError, MonitorError, StorageError
from monitor.jobs.catalogue import Job, Progress, load_function
from monitor.settings import Settings
from monitor.storage.engine import reading, writing
from monitor.storage.jobs import JobRun, beat, finish_run, run_history, start_run
from monitor.telemetry import get_logger

__all__ = ["KILLED_EXIT_CODE", "run_job"]

HEARTBEAT_S: Final = 2.0
KILLED_EXIT_CODE: Final = 130

log = get_logger(__name__)


def _now() -> datetime:
    return datetime.now(UTC)


class _Watch(threading.Thread):
    """Beats for a run and looks for its cancel request. A job that ignores the request is killed with its process."""

    def __init__(self, engine: Engine, run_id: int, interval_s: float, kill_after_s: float | None) -> None:
        super().__init__(name=f"job-run-{run_id}", daemon=True)
        self.engine, self.run_id = engine, run_id
        self.interval_s, self.kill_after_s = interval_s, kill_after_s
        self.cancelled = threading.Event()
        self.done = threading.Event()

    def run(self) -> None:
        """Until the job is done."""
        asked_at: float | None = None
        while not self.done.wait(self.interval_s):
            try:
                with writing(self.engine) as connection:
                    if beat(connection, self.run_id, _now()):
                        self.cancelled.set()
            except StorageError as error:
                # A store that is away for a moment must not end hours of training; the next beat tries again.
                log.warning("heartbeat failed", run=self.run_id, error=str(error))
            if self.cancelled.is_set() and asked_at is None:
                asked_at = time.monotonic()
            if asked_at is None or self.kill_after_s is None or time.monotonic() - asked_at < self.kill_after_s:
                continue
            with writing(self.engine) as connection:
                reason = f"Killed: it had not stopped {self.kill_after_s:.0f} s after it was asked to."
                finish_run(connection, self.run_id, "cancelled", _now(), error=reason)
            os._exit(KILLED_EXIT_CODE)


def run_job(
    settings: Settings,
    engine: Engine,
    job: Job,
    progress: Progress,
    *,
    stop: threading.Event | None = None,
    interval_s: float = HEARTBEAT_S,
    own_process: bool = False,
) -> JobRun:
    """Run a job to its end and return the recorded run, which also says whether it failed.

    It ends early when its cancellation is requested in the store or `stop` is set. With `own_process` a job that
    does not heed that within `settings.shutdown_s` is killed together with this process. A request that the job does
    not look for any more comes too late: its run is not recorded as cancelled. Raises `ConfigurationError` when a run
    of the same job is going on or the job cannot be loaded.
    """
    function = load_function(job)
    process = f"{socket.gethostname()}:{os.getpid()}"
    with writing(engine) as connection:
        run_id = start_run(connection, job.name, process, _now())
    if run_id is None:
        raise ConfigurationError(
            f"The job {job.name} is running already.", f"`sentiment-monitor jobs cancel {job.name}` stops it."
        )
    watch = _Watch(engine, run_id, interval_s, settings.shutdown_s if own_process else None)
    if stop is not None:
        # One flag for both ways of asking.
        watch.cancelled = stop
    watch.start()
    result: dict[str, Any] | None = None
    problem: str | None = None
    cancelled = False

    def asked() -> bool:
        nonlocal cancelled
        cancelled = cancelled or watch.cancelled.is_set()
        return cancelled

    try:
        result = function(settings, progress, asked)
    except MonitorError as error:
        problem = str(error)
    except KeyboardInterrupt:
        cancelled = True
    except Exception as error:
        log.exception("job failed", job=job.name)
        problem = f"{type(error).__name__}: {error}"
    finally:
        watch.done.set()
    watch.join()
    state = "cancelled" if cancelled else "failed" if problem else "succeeded"
    with writing(engine) as connection:
        finish_run(connection, run_id, state, _now(), result=result, error=problem)  # type: ignore[arg-type]
    with reading(engine) as connection:
        return next(run for run in run_history(connection, job=job.name) if run.id == run_id)
