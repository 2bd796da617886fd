"""Fires the jobs by their crontabs. The schedule lives in the store, so that a fire missed while the scheduler was
down is made up for once. Every fire is a process of its own: it can be cancelled, and it cannot take the scheduler
down with it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import threading
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial
from typing import Any, Final

from apscheduler.executors.pool import ThreadPoolExecutor
from apscheduler.jobstores.base import JobLookupError
from apscheduler.jobstores.sqlalchemy import SQLAlchemyJobStore
from apscheduler.schedulers.background import BackgroundScheduler
from apscheduler.schedulers.base import STATE_RUNNING
from apscheduler.triggers.cron import CronTrigger
from sqlalchemy import Engine

from monitor.errors import ConfigurationError, StorageError
from monitor.health import Health
from monitor.jobs.catalogue import JOBS
from monitor.program import PROGRAM
from monitor.settings import Settings
from monitor.storage.engine import open_engine, writing
from monitor.storage.jobs import mark_interrupted
from monitor.storage.migrate import upgrade
from monitor.supervisor import die_with
from monitor.telemetry import get_logger

__all__ = ["JOBS_TABLE", "build_scheduler", "crontab", "next_runs", "run_scheduler"]

JOBS_TABLE: Final = "apscheduler_jobs"
# A fire missed by more than this is left out: the next regular one is near enough for all three jobs.
MISFIRE_GRACE_S: Final = 6 * 3600
# `nice(2)`: above that of the lanes that score.
JOB_NICENESS: Final = 10
LOOK_EVERY_S: Final = 1.0
_DAYS: Final = ("sun", "mon", "tue", "wed", "thu", "fri", "sat", "sun")

log = get_logger(__name__)


class _Children:
    """The processes of the jobs that are running, and the settings that they start with."""

    def __init__(self) -> None:
        self.environment: dict[str, str] = {}
        self.lock = threading.Lock()
        self.running: dict[str, subprocess.Popen[bytes]] = {}
        self.stopping = False


# APScheduler stores a job as the name of a function and its arguments; settings (secrets among them) stay out of it.
_children: Final = _Children()


def crontab(expression: str) -> CronTrigger:
    """A trigger (UTC) for five crontab fields, where 0 and 7 are Sunday as crontab(5) has it (APScheduler's own reading
    of the numbers starts at Monday). Raises `ConfigurationError`."""
    fields = expression.split()
    try:
        if len(fields) != 5:
            raise ValueError("five fields are needed")
        days = re.sub(r"(?<![/\d])[0-7](?!\d)", lambda digit: _DAYS[int(digit[0])], fields[4])
        return CronTrigger.from_crontab(" ".join([*fields[:4], days]), timezone=UTC)
    except (ValueError, TypeError) as error:
        raise ConfigurationError(f"The crontab {expression!r} is not valid: {error}.") from error


def _begin(parent: int) -> None:
    """In the job's process, before it is Python: a training run must not outlive a scheduler that was killed, and gives
    way to the scoring of news on the same machine."""
    die_with(parent)
    os.nice(JOB_NICENESS)


def fire(name: str) -> None:
    """Run one job in a process of its own and wait for its end. Called by the scheduler's threads."""
    with _children.lock:
        if _children.stopping:
            return
        process = subprocess.Popen(
            [*PROGRAM, "jobs", "run", name],
            env=os.environ | _children.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            preexec_fn=partial(_begin, os.getpid()),
        )
        _children.running[name] = process
    log.info("job started", job=name, process=process.pid)
    try:
        code = process.wait()
    finally:
        with _children.lock:
            _children.running.pop(name, None)
    (log.info if code == 0 else log.error)("job ended", job=name, exit_code=code)


class _Scheduler(BackgroundScheduler):  # type: ignore[misc]
    """APScheduler's own looks for due jobs once more when its executors are gone already, which loses the fire, and
    its timer dies in silence when the store fails while a fire is being noted."""

    error: Exception | None = None

    def _process_jobs(self) -> Any:
        try:
            return super()._process_jobs() if self.state == STATE_RUNNING else None
        except Exception as error:  # noqa: BLE001 - whoever owns the scheduler looks at it
            self.error = error
            return None


def build_scheduler(settings: Settings, engine: Engine) -> _Scheduler:
    """A paused scheduler that holds the jobs of `settings`.

    A job whose crontab is unchanged keeps its stored next run time; one whose crontab has changed gets a new one; one
    without a crontab is taken out. Raises `ConfigurationError` for a crontab that is not valid.
    """
    triggers = {job.name: crontab(job.cron(settings)) for job in JOBS.values() if job.cron(settings)}
    scheduler = _Scheduler(
        jobstores={"default": SQLAlchemyJobStore(engine=engine, tablename=JOBS_TABLE)},
        executors={"default": ThreadPoolExecutor(len(JOBS))},
        job_defaults={"coalesce": True, "max_instances": 1, "misfire_grace_time": MISFIRE_GRACE_S},
        timezone=UTC,
    )
    scheduler.start(paused=True)
    for stored in scheduler.get_jobs():
        if stored.id not in triggers:
            with suppress(JobLookupError):
                scheduler.remove_job(stored.id)
    for name, trigger in triggers.items():
        stored = scheduler.get_job(name)
        if stored is None or str(stored.trigger) != str(trigger):
            scheduler.add_job(f"{__name__}:fire", trigger, id=name, args=[name], replace_existing=True)
    return scheduler


def next_runs(settings: Settings, now: datetime) -> dict[str, datetime | None]:
    """When each job fires next by the crontabs in force; None for a job that is switched off."""
    upcoming: dict[str, datetime | None] = {}
    for job in JOBS.values():
        cron = job.cron(settings)
        upcoming[job.name] = crontab(cron).get_next_fire_time(None, now) if cron else None
    return upcoming


def _stop_children(timeout_s: float) -> None:
    """Ask every running job to stop, wait, then kill."""
    with _children.lock:
        _children.stopping = True
        running = list(_children.running.values())
    for process in running:
        process.terminate()
    for process in running:
        try:
            process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def run_scheduler(settings: Settings, stop: threading.Event | None = None) -> None:
    """Fire jobs until SIGTERM, SIGINT or `stop`. Running jobs are asked to stop and given `shutdown_s`.

    Raises `ConfigurationError` for a bad crontab, `StorageError` when the store cannot be reached or fails while a
    fire is noted.
    """
    stop = stop or threading.Event()
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda _number, _frame: stop.set())
    engine = open_engine(settings.database)
    upgrade(engine)
    with writing(engine) as connection:
        for run_id in mark_interrupted(connection, datetime.now(UTC)):
            log.warning("a run was interrupted", run=run_id)
    _children.environment, _children.stopping = settings.environment(), False
    scheduler = build_scheduler(settings, engine)
    scheduler.resume()
    for name, at in next_runs(settings, datetime.now(UTC)).items():
        log.info("job scheduled", job=name, next_run=at.isoformat() if at else "never")
    try:
        with Health(settings.metrics_port) as health:
            while not stop.wait(LOOK_EVERY_S):
                if scheduler.error is not None:
                    said = str(scheduler.error).partition("\n")[0]
                    raise StorageError(f"The schedule cannot be kept: {said}.") from scheduler.error
                health.beat()
    finally:
        scheduler.pause()
        _stop_children(settings.shutdown_s)
        scheduler.shutdown(wait=True)
        engine.dispose()
        log.info("scheduler stopped")
