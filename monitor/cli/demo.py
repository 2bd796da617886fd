"""`demo`: everything on one machine, with nothing to install but the package."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import sys
import time
from base64 import b64encode
from contextlib import ExitStack
from datetime import datetime
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from monitor.cli.context import current_settings, err, open_store, out
from monitor.cli.processes import DEMO_MARK, free_dashboard_port, process_specs, signals_as_interrupt, start_all
from monitor.datadir import LOCK_FILE, check_space, owned
from monitor.errors import ConfigurationError, MonitorError

if TYPE_CHECKING:
    from rich.progress import TaskID
    from sqlalchemy import Engine

    from monitor.alerts.demo_receiver import DemoReceiver
    from monitor.settings import Settings
    from monitor.supervisor import Supervisor

POLL_S = 0.5


def _claim_data_dir(settings: Settings) -> None:
    """Make data_dir, whose lock is held, the demo's own.

    What an earlier demo left is cleared; anything else is left alone and refused.
    """
    mark = settings.data_dir / DEMO_MARK
    if mark.exists():
        for name in ("monitor.db", "monitor.db-wal", "monitor.db-shm"):
            (settings.data_dir / name).unlink(missing_ok=True)
        for name in ("broker", "models", "logs"):
            shutil.rmtree(settings.data_dir / name, ignore_errors=True)
    elif any(path.name != LOCK_FILE for path in settings.data_dir.iterdir()):
        raise ConfigurationError(
            f"{settings.data_dir} is in use by something else than a demo.",
            "Give the demo a folder of its own: `sentiment-monitor --data-dir FOLDER demo`.",
        )
    try:
        mark.write_text(json.dumps({"made_by": "sentiment-monitor demo"}))
    except OSError as error:
        raise ConfigurationError(f"The folder {settings.data_dir} cannot be written: {error.strerror}.") from error


def _refuse_filled_store(engine: Engine) -> None:
    from monitor.storage.status import store_status

    items = store_status(engine).items
    if items:
        raise ConfigurationError(
            f"The database holds {items} items already; the demo needs an empty one.",
            "Name another with --database-url, or leave it out to use SQLite.",
        )


def _demo_settings(receiver: DemoReceiver) -> Settings:
    settings = current_settings("demo", **free_dashboard_port(current_settings("demo")))
    flags: dict[str, object] = {
        "dashboard_port": settings.dashboard_port,
        "webhook_urls": receiver.url,
        "webhook_secret": receiver.secret,
        "egress_allow": f"127.0.0.1:{receiver.port}",
    }
    if not settings.embedded and not settings.topic_prefix:
        flags["topic_prefix"] = f"demo-{secrets.token_hex(4)}-"
    return current_settings("demo", **flags)


class _Stream(NamedTuple):
    """The bundled stream: where it lies, how many items it has, and the minute of the last one."""

    path: Path
    items: int
    last_minute: datetime


def _stream() -> _Stream:
    path = Path(str(resources.files("monitor") / "data" / "demo" / "stream.jsonl"))
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    last = max(datetime.fromisoformat(json.loads(line)["published_at"]) for line in lines)
    return _Stream(path, len(lines), last.replace(second=0, microsecond=0))


def _has_display() -> bool:
    return sys.platform != "linux" or bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))


class _Run:
    """One demo: its processes, its receiver, and what has been seen so far."""

    def __init__(self, settings: Settings, receiver: DemoReceiver, engine: Engine, supervisor: Supervisor) -> None:
        self.settings, self.receiver, self.engine, self.supervisor = settings, receiver, engine, supervisor
        self.printed = 0

    def print_alerts(self) -> None:
        """Print what the receiver has taken since the last call."""
        for message in self.receiver.received[self.printed :]:
            self.printed += 1
            alert = message.payload["data"]
            out.print(
                f"\n[{message.payload['type']}] {alert['key']} ({alert['severity']}): {alert['observed']} negative "
                f"stories in {alert['window']['minutes']} min, {alert['expected']:.1f} expected "
                f"(p = {alert['p_value']:.1e}); signature verified",
                style="bold",
                markup=False,
            )
            for story in alert["stories"][:5]:
                copies = f" ({story['copies']} copies)" if story["copies"] > 1 else ""
                out.print(f"    {story['p_negative']:.2f}  {story['title'][:110]}{copies}", markup=False)
            if len(alert["stories"]) > 5:
                out.print(f"    and {len(alert['stories']) - 5} more: {alert['link']}", markup=False)

    def fired(self) -> bool:
        """True once a firing alert has been delivered with a good signature."""
        return any(message.payload["type"] == "alert.firing" for message in self.receiver.received)

    def replay(self, stream: _Stream, deadline: float, until_alert: bool, progress: Progress, task: TaskID) -> None:
        """Watch until the whole stream is stored, counted and judged, and an alert has arrived."""
        from monitor.storage.status import store_status

        fed = False
        while True:
            check_space(self.settings.data_dir)
            self.supervisor.check()
            fed = fed or self.supervisor.finished("feed")
            status = store_status(self.engine)
            progress.update(task, completed=min(status.items, stream.items))
            self.print_alerts()
            judged = status.judged_to is not None and status.judged_to >= stream.last_minute
            if fed and status.items >= stream.items and judged and self.fired() and status.undelivered == 0:
                self.print_alerts()
                return
            if until_alert and time.monotonic() > deadline:
                raise MonitorError(
                    f"No alert arrived within the time allowed ({status.items} of {stream.items} items stored).",
                    f"The processes' output is in {self.settings.data_dir / 'logs'}.",
                )
            time.sleep(POLL_S)


def demo(
    headless: Annotated[bool, typer.Option("--headless", help="Open no browser window.")] = False,
    until_alert: Annotated[
        bool, typer.Option("--until-alert", help="Stop after the replay, once the alert has been delivered.")
    ] = False,
    speed: Annotated[
        float, typer.Option(min=0, help="Seconds of event time replayed in a second; 0: as fast as it goes.")
    ] = 0.0,
    limit: Annotated[
        float, typer.Option("--timeout", min=1, help="With --until-alert: seconds to wait for the alert.")
    ] = 600.0,
) -> None:
    """Everything on this machine: broker, database, worker, aggregator, notifier, scheduler, dashboard, receiver."""
    from monitor.alerts.demo_receiver import DemoReceiver
    from monitor.supervisor import ProcessSpec, Supervisor

    # A random secret for each run: the receiver shows that what arrives was signed with it.
    secret = "whsec_" + b64encode(secrets.token_bytes(24)).decode()
    with signals_as_interrupt(), DemoReceiver(secret=secret) as receiver, ExitStack() as held:
        settings = _demo_settings(receiver)
        held.enter_context(owned(settings.data_dir))
        _claim_data_dir(settings)
        engine = open_store(settings)
        _refuse_filled_store(engine)
        stream = _stream()
        supervisor = Supervisor(
            process_specs(settings),
            settings.environment(),
            settings.data_dir / "logs",
            settings.shutdown_s,
            on_event=lambda text: err.print(f"  {text}", markup=False),
        )
        run = _Run(settings, receiver, engine, supervisor)
        try:
            kind = "an embedded development broker" if settings.embedded else f"Kafka at {settings.bootstrap_servers}"
            err.print(f"Starting {kind} and the processes; data and logs in {settings.data_dir}", markup=False)
            start_all(supervisor, settings)
            deadline = time.monotonic() + limit
            supervisor.add(
                ProcessSpec(
                    "feed",
                    (sys.executable, "-m", "monitor.cli.app", "feed", "jsonl", str(stream.path), "--speed", str(speed)),
                    restart=False,
                )
            )
            out.print(f"dashboard: {settings.dashboard_url}", markup=False)
            if not headless and _has_display():
                typer.launch(settings.dashboard_url)
            with Progress(
                TextColumn("replaying {task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                console=err,
            ) as progress:
                task = progress.add_task(f"{stream.items} items of real news", total=stream.items)
                run.replay(stream, deadline, until_alert, progress, task)
            if until_alert:
                return
            out.print("The whole stream is in. The dashboard stays up; Ctrl-C stops everything.")
            while True:
                check_space(settings.data_dir)
                supervisor.check()
                run.print_alerts()
                time.sleep(POLL_S)
        except KeyboardInterrupt:
            err.print("stopping")
            if until_alert:
                # Whoever waits for the alert must not take an interruption for its arrival.
                raise
        finally:
            killed = supervisor.stop()
            engine.dispose()
            if killed:
                err.print(f"These had to be killed: {', '.join(killed)}; see {settings.data_dir / 'logs'}.")
