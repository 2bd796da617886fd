"""Runs of jobs: recorded, exclusive, cancelled, and told from those whose process was killed."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import Engine

from monitor.errors import ConfigurationError, ModelError
from monitor.jobs import runner
from monitor.jobs.catalogue import JOBS, Cancelled, Job, Progress, find_job, load_function
from monitor.jobs.runner import run_job
from monitor.settings import Settings
from monitor.storage.engine import open_engine, reading, writing
from monitor.storage.jobs import (
    HEARTBEAT_TIMEOUT,
    beat,
    finish_run,
    latest_result,
    mark_interrupted,
    request_cancel,
    run_history,
    running_run,
    start_run,
)

NOW = datetime(2026, 3, 2, 12, tzinfo=UTC)
QUIET: Progress = lambda done, total, message="": None  # noqa: E731
HERE = __name__


def quick(settings: Settings, progress: Progress, cancelled: Cancelled) -> dict[str, Any]:
    progress(1, 1, "done")
    return {"folder": settings.data_dir.name, "cancelled": cancelled()}


def until_cancelled(settings: Settings, progress: Progress, cancelled: Cancelled) -> dict[str, Any]:
    deadline = time.monotonic() + 20
    while not cancelled() and time.monotonic() < deadline:
        time.sleep(0.01)
    return {"stopped": cancelled()}


def past_recall(settings: Settings, progress: Progress, cancelled: Cancelled) -> dict[str, Any]:
    """Has asked for the last time when the request comes: what it does then is done."""
    assert not cancelled()
    engine = open_engine(settings.database)
    with writing(engine) as connection:
        assert request_cancel(connection, "past_recall") is not None
    time.sleep(0.2)
    return {"promoted": True}


def refuses(settings: Settings, progress: Progress, cancelled: Cancelled) -> dict[str, Any]:
    raise ModelError("The adapter is missing.", "Train one.")


def breaks(settings: Settings, progress: Progress, cancelled: Cancelled) -> dict[str, Any]:
    raise ZeroDivisionError("by hand")


def job(function: str) -> Job:
    return Job(function, f"{HERE}:{function}", "drift_cron", "")


def test_a_run_is_recorded_with_its_result(store: Engine, make_settings: Callable[..., Settings]) -> None:
    run = run_job(make_settings(), store, job("quick"), QUIET)
    assert (run.state, run.result, run.error) == ("succeeded", {"folder": "data", "cancelled": False}, None)
    assert run.finished_at is not None
    assert run.finished_at >= run.started_at
    with reading(store) as connection:
        assert latest_result(connection, "quick") == run
        assert running_run(connection, "quick") is None


@pytest.mark.parametrize(
    ("function", "error"),
    [("refuses", "The adapter is missing. Train one."), ("breaks", "ZeroDivisionError: by hand")],
)
def test_a_failure_is_recorded_with_its_reason(
    function: str, error: str, store: Engine, make_settings: Callable[..., Settings]
) -> None:
    run = run_job(make_settings(), store, job(function), QUIET)
    assert (run.state, run.error, run.result) == ("failed", error, None)


def test_a_running_job_is_cancelled_through_the_store_and_not_started_twice(
    store: Engine, make_settings: Callable[..., Settings]
) -> None:
    settings = make_settings()
    runs: list[Any] = []
    thread = threading.Thread(
        target=lambda: runs.append(run_job(settings, store, job("until_cancelled"), QUIET, interval_s=0.02))
    )
    thread.start()
    while True:
        with reading(store) as connection:
            going = running_run(connection, "until_cancelled")
        if going:
            break
    with pytest.raises(ConfigurationError, match="running already"):
        run_job(settings, store, job("until_cancelled"), QUIET)
    with writing(store) as connection:
        assert request_cancel(connection, going.id) is not None
    thread.join(15)
    assert runs[0].state == "cancelled"
    assert runs[0].result == {"stopped": True}


def test_a_run_that_was_done_when_its_cancellation_came_is_not_called_cancelled(
    store: Engine, make_settings: Callable[..., Settings]
) -> None:
    run = run_job(make_settings(), store, job("past_recall"), QUIET, interval_s=0.02)
    assert (run.state, run.result) == ("succeeded", {"promoted": True})


def test_a_job_that_ignores_its_end_is_killed_with_its_process(
    store: Engine, make_settings: Callable[..., Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    exits: list[int] = []
    killed = threading.Event()

    def leave(code: int) -> None:
        exits.append(code)
        killed.set()
        # The real call never returns; this thread ends at its next look.
        watch.done.set()

    monkeypatch.setattr("os._exit", leave)
    with writing(store) as connection:
        run_id = start_run(connection, "retrain", "host:1", datetime.now(UTC))
    assert run_id is not None
    watch = runner._Watch(store, run_id, 0.01, kill_after_s=0.05)
    watch.start()
    with writing(store) as connection:
        request_cancel(connection, "retrain")
    assert killed.wait(10)
    watch.join(5)
    with reading(store) as connection:
        run = run_history(connection)[0]
    assert exits[0] == runner.KILLED_EXIT_CODE
    assert run.state == "cancelled"
    assert "Killed" in str(run.error)


def test_runs_of_a_killed_process_are_marked_and_make_room(store: Engine) -> None:
    with writing(store) as connection:
        first = start_run(connection, "drift", "host:1", NOW)
        other = start_run(connection, "retention", "host:2", NOW)
        assert first is not None
        assert other is not None
        assert start_run(connection, "drift", "host:3", NOW + timedelta(seconds=30)) is None
        later = NOW + HEARTBEAT_TIMEOUT + timedelta(seconds=1)
        assert beat(connection, other, later - timedelta(seconds=5)) is False
        assert mark_interrupted(connection, later) == [first]
        # The process was only slow: it learns that it was given up, and its result does not overwrite the record.
        assert beat(connection, first, later) is True
        finish_run(connection, first, "succeeded", later, result={})
        assert start_run(connection, "drift", "host:3", later) == other + 1
    with reading(store) as connection:
        states = {run.id: run.state for run in run_history(connection)}
    assert states == {first: "interrupted", other: "running", other + 1: "running"}


def test_cancel_names_a_run_or_a_job_and_only_one_that_is_going_on(store: Engine) -> None:
    with writing(store) as connection:
        run_id = start_run(connection, "drift", "host:1", NOW)
        assert run_id is not None
        assert request_cancel(connection, "retention") is None
        assert request_cancel(connection, run_id + 1) is None
        asked = request_cancel(connection, "drift")
        assert asked is not None
        assert asked.cancel_requested
        assert beat(connection, run_id, NOW) is True
        finish_run(connection, run_id, "cancelled", NOW)
        assert request_cancel(connection, run_id) is None


def test_history_is_newest_first_and_bounded(store: Engine) -> None:
    with writing(store) as connection:
        for number in range(5):
            run_id = start_run(connection, "drift", "host:1", NOW + timedelta(minutes=number))
            assert run_id is not None
            finish_run(connection, run_id, "succeeded", NOW + timedelta(minutes=number, seconds=3))
        runs = run_history(connection, limit=3)
    assert [run.started_at.minute for run in runs] == [4, 3, 2]


def test_every_job_of_this_room_can_be_loaded_and_unknown_ones_are_named() -> None:
    for name in ("drift", "retention"):
        assert callable(load_function(JOBS[name]))
    with pytest.raises(ConfigurationError, match="no job 'nap'"):
        find_job("nap")
    with pytest.raises(ConfigurationError, match="cannot be loaded"):
        load_function(Job("lost", "monitor.jobs.nowhere:run", "drift_cron", ""))
