"""The schedule: crontabs as crontab(5) reads them, kept in the store, fired in processes of their own."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import Engine

from monitor.errors import ConfigurationError, StorageError
from monitor.jobs import scheduler
from monitor.jobs.scheduler import build_scheduler, crontab, next_runs, run_scheduler
from monitor.settings import Settings
from monitor.storage.engine import reading, writing
from monitor.storage.jobs import run_history, start_run

SUNDAY = datetime(2026, 3, 1, tzinfo=UTC)


@pytest.mark.parametrize(
    ("expression", "first"),
    [
        ("0 3 * * *", "2026-03-01T03:00"),
        ("*/15 * * * *", "2026-03-01T00:00"),
        ("0 4 * * 0", "2026-03-01T04:00"),
        ("0 4 * * 7", "2026-03-01T04:00"),
        ("0 4 * * 1-5", "2026-03-02T04:00"),
        ("0 4 * * 6", "2026-03-07T04:00"),
        ("30 2 15 * *", "2026-03-15T02:30"),
        ("0 4 * * tue", "2026-03-03T04:00"),
    ],
)
def test_crontabs_are_utc_and_start_the_week_on_sunday(expression: str, first: str) -> None:
    assert crontab(expression).get_next_fire_time(None, SUNDAY) == datetime.fromisoformat(first).replace(tzinfo=UTC)


@given(st.text(alphabet="0123456789*/,-x ", max_size=20))
def test_a_bad_crontab_is_refused_in_one_sentence(expression: str) -> None:
    valid = False
    with suppress(ConfigurationError):
        valid = crontab(expression).timezone is not None
    if not valid:
        with pytest.raises(ConfigurationError, match=re.escape(repr(expression))):
            crontab(expression)
    assert not valid or len(expression.split()) == 5


def test_next_runs_follow_the_settings(make_settings: Callable[..., Settings]) -> None:
    settings = make_settings(retrain_cron="", drift_cron="15 * * * *", retention_cron="30 2 * * *")
    upcoming = next_runs(settings, SUNDAY)
    assert upcoming["retrain"] is None
    assert upcoming["drift"] == SUNDAY.replace(minute=15)
    assert upcoming["retention"] == SUNDAY.replace(hour=2, minute=30)


def test_the_schedule_is_kept_over_a_restart_and_follows_a_changed_crontab(
    store: Engine, make_settings: Callable[..., Settings]
) -> None:
    def restarted(**crons: str) -> dict[str, datetime]:
        built = build_scheduler(make_settings(**crons), store)
        jobs = {job.id: job.next_run_time for job in built.get_jobs()}
        # A run that was missed while nothing ran: its time lies in the past.
        for job in built.get_jobs():
            built.modify_job(job.id, next_run_time=SUNDAY)
        built.shutdown(wait=False)
        return jobs

    first = restarted()
    assert set(first) == {"retrain", "drift", "retention"}
    assert min(first.values()) > datetime.now(UTC)
    second = restarted(drift_cron="45 * * * *", retrain_cron="")
    assert set(second) == {"drift", "retention"}
    assert second["retention"] == SUNDAY
    assert second["drift"].minute == 45


def test_a_fire_runs_the_job_in_a_process_with_the_same_settings(
    store: Engine, make_settings: Callable[..., Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scheduler, "_children", scheduler._Children())
    scheduler._children.environment = make_settings().environment()
    scheduler.fire("drift")
    with reading(store) as connection:
        run = run_history(connection)[0]
    assert (run.job, run.state) == ("drift", "succeeded")
    assert not run.process.endswith(f":{os.getpid()}")
    assert scheduler._children.running == {}


@pytest.mark.skipif(sys.platform != "linux", reason="a child is told of its parent's death on Linux only")
def test_a_job_does_not_outlive_a_scheduler_that_is_killed() -> None:
    # A scheduler in whose place a process fires a job, which stands in for a long one.
    code = (
        "import subprocess, sys\n"
        "from monitor.jobs import scheduler\n"
        "start = subprocess.Popen\n"
        "def popen(command, **options):\n"
        "    child = start([sys.executable, '-c', 'import time; time.sleep(60)'], **options)\n"
        "    print(child.pid, flush=True)\n"
        "    return child\n"
        "scheduler.subprocess.Popen = popen\n"
        "scheduler.fire('retrain')\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    parent.kill()
    parent.communicate()
    deadline = time.monotonic() + 20
    while _alive(child):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_stopping_ends_running_jobs_and_closes_what_a_killed_scheduler_left(
    store: Engine, make_settings: Callable[..., Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    with writing(store) as connection:
        start_run(connection, "retrain", "host:1", SUNDAY)
    children = scheduler._Children()
    monkeypatch.setattr(scheduler, "_children", children)
    # Stands in for a long job: a process that heeds SIGTERM.
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    children.running["retrain"] = child
    stop = threading.Event()
    thread = threading.Thread(target=run_scheduler, args=(make_settings(retrain_cron=""), stop))
    thread.start()
    time.sleep(0.2)
    stop.set()
    thread.join(20)
    assert not thread.is_alive()
    assert child.wait(5) == -signal.SIGTERM
    with reading(store) as connection:
        assert run_history(connection)[0].state == "interrupted"


def test_a_store_that_fails_while_a_fire_is_noted_ends_the_scheduler(
    store: Engine, make_settings: Callable[..., Settings]
) -> None:
    settings = make_settings(retrain_cron="", retention_cron="")
    built = build_scheduler(settings, store)
    # Due, but for so long that it is left out.
    built.modify_job("drift", next_run_time=datetime.now(UTC) - timedelta(seconds=2 * scheduler.MISFIRE_GRACE_S))
    built.shutdown(wait=False)
    with writing(store) as connection:
        connection.exec_driver_sql(
            "create trigger broken before update on apscheduler_jobs begin select raise(abort, 'worn out'); end"
        )
    with pytest.raises(StorageError, match=r"The schedule cannot be kept: .*worn out"):
        run_scheduler(settings, threading.Event())


def test_a_bad_crontab_stops_the_scheduler_before_it_starts(
    store: Engine, make_settings: Callable[..., Settings]
) -> None:
    with pytest.raises(ConfigurationError, match="every day"):
        run_scheduler(make_settings(drift_cron="every day"), threading.Event())
