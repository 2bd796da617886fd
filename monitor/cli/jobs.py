"""`jobs list / run / cancel / history`."""

from __future__ import annotations

import signal
import threading
from datetime import UTC, datetime
from types import FrameType
from typing import Annotated, Any

import typer
from rich.progress import Progress as Bar
from rich.table import Table

from monitor.cli.context import current_settings, err, open_store, out
from monitor.errors import ConfigurationError

app = typer.Typer(no_args_is_help=True, add_completion=False)


@app.callback()
def root() -> None:
    """The scheduler's jobs: retraining, drift, retention."""


def _time(at: datetime | None) -> str:
    return at.strftime("%Y-%m-%d %H:%M:%SZ") if at else ""


def _fields(run: Any) -> dict[str, Any]:
    import msgspec

    fields: dict[str, Any] = msgspec.to_builtins(run)
    return fields


@app.command("list")
def list_jobs(json: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False) -> None:
    """Every job with its crontab, when it runs next (UTC), and how the last run ended."""
    from monitor.jobs.catalogue import JOBS
    from monitor.jobs.scheduler import next_runs
    from monitor.storage.engine import reading
    from monitor.storage.jobs import run_history

    settings = current_settings()
    upcoming = next_runs(settings, datetime.now(UTC))
    engine = open_store(settings)
    with reading(engine) as connection:
        last = {name: next(iter(run_history(connection, job=name, limit=1)), None) for name in JOBS}
    table = Table("job", "crontab (UTC)", "next run", "last run", "ended as", box=None)
    for job in JOBS.values():
        run, at = last[job.name], upcoming[job.name]
        if json:
            line = {"job": job.name, "cron": job.cron(settings), "next_run": at.isoformat() if at else None}
            out.print_json(data=line | {"last_run": _fields(run) if run else None}, indent=None)
        else:
            table.add_row(
                job.name,
                job.cron(settings) or "never",
                _time(at),
                _time(run.started_at) if run else "",
                run.state if run else "",
            )
    if not json:
        out.print(table)


@app.command("run")
def run_now(name: Annotated[str, typer.Argument(help="retrain, drift or retention.")]) -> None:
    """Run a job now, in this process, and print its result as JSON. Exit code 0 when it succeeded."""
    from monitor.jobs.catalogue import find_job
    from monitor.jobs.runner import run_job

    settings = current_settings(f"job-{name}")
    job = find_job(name)
    engine = open_store(settings)
    stop = threading.Event()

    def ask_to_stop(_number: int, _frame: FrameType | None) -> None:
        stop.set()

    before = {number: signal.signal(number, ask_to_stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        with Bar(console=err, transient=True, disable=not err.is_terminal) as bar:
            task = bar.add_task(job.name, total=None)

            def progress(done: int, total: int, message: str = "") -> None:
                bar.update(task, completed=done, total=total or None, description=f"{job.name}: {message or '...'}")

            run = run_job(settings, engine, job, progress, stop=stop, own_process=True)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        engine.dispose()
    out.print_json(data=_fields(run))
    if run.state != "succeeded":
        if run.error:
            err.print(f"error: {run.error}", style="bold red", markup=False)
        raise typer.Exit(130 if run.state == "cancelled" else 1)


@app.command()
def cancel(which: Annotated[str, typer.Argument(metavar="RUN_ID|NAME", help="A run's id, or a job's name.")]) -> None:
    """Ask a running job to stop; one that does not is killed after a while."""
    from monitor.jobs.catalogue import find_job
    from monitor.storage.engine import writing
    from monitor.storage.jobs import mark_interrupted, request_cancel

    engine = open_store(current_settings())
    wanted: int | str = int(which) if which.isdecimal() else find_job(which).name
    with writing(engine) as connection:
        mark_interrupted(connection, datetime.now(UTC))
        run = request_cancel(connection, wanted)
    if run is None:
        raise ConfigurationError(f"No such run is going on: {which}.", "`sentiment-monitor jobs history` shows all.")
    out.print(f"Run {run.id} of {run.job} has been asked to stop.")


@app.command()
def history(
    job: Annotated[str | None, typer.Option(help="Only this job's runs.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="Runs shown at the most.")] = 20,
    json: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False,
) -> None:
    """The newest runs first: when, how long, how they ended."""
    from monitor.jobs.catalogue import find_job
    from monitor.storage.engine import reading, writing
    from monitor.storage.jobs import mark_interrupted, run_history

    name = find_job(job).name if job else None
    engine = open_store(current_settings())
    with writing(engine) as connection:
        mark_interrupted(connection, datetime.now(UTC))
    with reading(engine) as connection:
        runs = run_history(connection, job=name, limit=limit)
    table = Table("run", "job", "state", "started", "seconds", "error", box=None)
    for run in runs:
        if json:
            out.print_json(data=_fields(run), indent=None)
            continue
        took = f"{(run.finished_at - run.started_at).total_seconds():.1f}" if run.finished_at else ""
        table.add_row(str(run.id), run.job, run.state, _time(run.started_at), took, run.error or "")
    if not json:
        out.print(table)
