"""`demo`: everything on one machine, with nothing to install but the package."""

from __future__ import annotations

import json
import os
import secrets
import shlex
import shutil
import sys
import time
from base64 import b64encode
from contextlib import ExitStack
from datetime import datetime, timedelta
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import msgspec
import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from monitor.cli.context import current_settings, err, open_store, out
from monitor.cli.processes import (
    free_dashboard_port,
    log_dir,
    process_specs,
    signals_as_interrupt,
    start_all,
)
from monitor.datadir import DEMO_MARK, LOCK_FILE, check_space, owned
from monitor.errors import ConfigurationError, MonitorError
from monitor.program import PROGRAM
from monitor.settings import Settings

if TYPE_CHECKING:
    from rich.progress import TaskID
    from sqlalchemy import Engine

    from monitor.alerts.demo_receiver import DemoReceiver
    from monitor.storage.status import StoreStatus
    from monitor.supervisor import Supervisor

POLL_S = 0.5
STORIES_SHOWN = 5
# A week in 45 seconds: slow enough for the alerts to come one after the other. As fast as it goes, the partitions are
# worked off one by one, and all of it is judged at the end.
SPEED = 15_000
# The stream has 806 keys and, each judged from its second day on, 2,742 key-days: the usual budget of 0.01 allows 27
# false alarms in it (16 alerts were seen), which would bury what the demo is about.
SURGE_BUDGET = 0.001
# Settings that decide, beside the budget, whether the planted surge is found and its alert sent to the demo's receiver.
DECISIVE = ("model", "rules_file", "sentiment_rules_file", "companies_file", "receivers_file", "surge_min_sources")


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
        # In a database of its own none of the demo's data lies here.
        kept = {} if settings.database_url else {"surge_budget": settings.surge_budget}
        mark.write_text(json.dumps({"made_by": "sentiment-monitor demo", "settings": kept}))
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
    if "surge_budget" not in settings.model_fields_set:
        flags["surge_budget"] = SURGE_BUDGET
    if not settings.embedded and not settings.topic_prefix:
        flags["topic_prefix"] = f"demo-{secrets.token_hex(4)}-"
    return current_settings("demo", **flags)


class _Stream(NamedTuple):
    """The bundled stream: where it lies, how many items it has, the minutes of the first and the last one, and the
    surge that is planted in it (`surge.json`: `key`, `company`, `start`, `minutes`, `stories`)."""

    path: Path
    items: int
    first_minute: datetime
    last_minute: datetime
    surge: dict[str, Any]

    def introduction(self) -> str:
        """What is replayed, and what is to be found in it."""
        surge, start = self.surge, datetime.fromisoformat(self.surge["start"])
        return (
            f"The stream: {self.items} items, {self.first_minute:%-d} {self.first_minute:%B} to {self.last_minute:%-d} "
            f"{self.last_minute:%B %Y}. The surge to be found: {surge['stories']} stories about {surge['company']} "
            f"({surge['key']}) that people labelled negative, in {surge['minutes']} minutes from "
            f"{start:%-d %B, %H:%M} UTC on. What else fires is its echo in the whole market, or chance."
        )

    def outcome(self, counted: int) -> str:
        """Why the alert about the planted surge has counted so many stories and not as many as were planted."""
        return (
            f"It counted {counted} stories at its worst, those that the model scored negative; "
            f"{self.surge['stories']} were planted, which people had labelled so."
        )

    def question(self) -> str:
        """The command that says how the planted surge was judged."""
        over = datetime.fromisoformat(self.surge["start"]) + timedelta(minutes=self.surge["minutes"])
        return f"alerts why {self.surge['key']} --at {over:%Y-%m-%dT%H:%M}"


def _lacking(status: StoreStatus, stream: _Stream, fed: bool) -> list[str]:
    """What is still to be done before every alert of the stream has arrived."""
    lacking = [] if fed else ["the stream is not fed to its end"]
    if status.items < stream.items:
        refused = f" ({status.dead_letters} are dead letters)" if status.dead_letters else ""
        lacking.append(f"{status.items} of {stream.items} items are stored{refused}")
    if status.judged_to is None:
        lacking.append("nothing is judged")
    elif status.judged_to < stream.last_minute:
        lacking.append(f"judged up to {status.judged_to:%Y-%m-%d %H:%M} of {stream.last_minute:%Y-%m-%d %H:%M} UTC")
    if status.undelivered:
        lacking.append(f"{status.undelivered} notices are undelivered")
    return lacking


def _doing(stored: int, of: int) -> str:
    """What goes on while so many items are stored, in words of one length: the bar beside them keeps its place."""
    if stored >= of:
        return "counting, judging"
    return "replaying news   " if stored else "loading the model"


def _stream() -> _Stream:
    path = Path(str(resources.files("monitor") / "data" / "demo" / "stream.jsonl"))
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    minutes = [
        datetime.fromisoformat(json.loads(line)["published_at"]).replace(second=0, microsecond=0) for line in lines
    ]
    surge = json.loads((path.parent / "surge.json").read_text(encoding="utf-8"))
    return _Stream(path, len(lines), min(minutes), max(minutes), surge)


def told(payload: dict[str, Any]) -> list[str]:
    """A webhook's body as lines for the terminal: an alert with the stories behind it, the end of one in one line."""
    from monitor.alerts.records import Digest, Notice, expectation
    from monitor.surges.sorts import stories_of

    if payload["type"] == "alert.digest":
        entries = msgspec.convert(payload, Digest).data.notices
        return [f"\n[alert.digest] {len(entries)} notices; signature verified"] + [
            f"    {one.type} {one.key} ({one.severity}): {one.observed} stories, {expectation(one.expected)} expected"
            for one in entries
        ]
    notice = msgspec.convert(payload, Notice)
    alert = notice.data
    head = f"\n[{notice.type}] {alert.key} ({alert.severity})"
    counted = f"{alert.observed} {stories_of(alert.surge)} in {alert.window.minutes} min"
    if alert.resolved_at is not None:
        lasted = int((alert.resolved_at - alert.fired_at).total_seconds()) // 60
        return [f"{head}: over after {lasted // 60} h {lasted % 60:02} min; at its worst {counted}"]
    lines = [f"{head}: {counted}, {expectation(alert.expected)} expected (p = {alert.p_value:.1e}); signature verified"]
    for story in alert.stories[:STORIES_SHOWN]:
        copies = f" ({story.copies} copies)" if story.copies > 1 else ""
        lines.append(f"    {story.p_negative:.2f}  {story.title[:110]}{copies}")
    if len(alert.stories) > STORIES_SHOWN:
        lines.append(f"    and {len(alert.stories) - STORIES_SHOWN} more: {alert.link}")
    return lines


def _command(settings: Settings) -> str:
    """How the command was called, with the data folder where that is not the usual one."""
    usual = Settings.model_fields["data_dir"].get_default(call_default_factory=True)
    folder = "" if settings.data_dir == usual else f" --data-dir {shlex.quote(str(settings.data_dir))}"
    return f"{shlex.quote(sys.argv[0])}{folder}"


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
            head, *rest = told(message.payload)
            out.print(head, style="bold", markup=False)
            for line in rest:
                out.print(line, markup=False)

    def fired(self, key: str = "") -> list[str]:
        """Ids of the alerts that the receiver was told of, with a good signature; if `key` is given, those about it."""
        alerts = []
        for message in self.receiver.received:
            data = message.payload["data"]
            if message.type == "alert.digest":
                alerts += [notice for notice in data["notices"] if notice["type"] == "alert.firing"]
            elif message.type == "alert.firing":
                alerts.append(data)
        return list(dict.fromkeys(str(alert["id"]) for alert in alerts if key in ("", alert["key"])))

    def counted(self, key: str) -> int:
        """How many stories the alert about `key` counted at its worst."""
        from monitor.storage.alerts import list_alerts
        from monitor.storage.engine import reading

        with reading(self.engine) as connection:
            return max((alert.observed for alert in list_alerts(connection, key=key)), default=0)

    def replay(self, stream: _Stream, deadline: float, until_alert: bool, progress: Progress, task: TaskID) -> str:
        """Watch until the whole stream is stored, counted and judged, and all alerts have arrived.

        Returns why that about the planted surge is not among them; empty if it is. With `until_alert` this raises
        `MonitorError`, as does the deadline (of `time.monotonic`).
        """
        from monitor.storage.status import store_status

        fed, silent = False, 0
        while True:
            check_space(self.settings.data_dir)
            self.supervisor.check()
            fed = fed or self.supervisor.finished("feed")
            status = store_status(self.engine)
            stored = min(status.items, stream.items)
            progress.update(task, completed=stored, description=_doing(stored, stream.items))
            self.print_alerts()
            lacking = _lacking(status, stream, fed)
            found = bool(self.fired(stream.surge["key"]))
            if not lacking and found:
                self.print_alerts()
                return ""
            # A notice that is on its way between two tables while they are read is seen the next time.
            silent = 0 if lacking else silent + 1
            if silent == 2:
                why = self._silence(stream)
                if until_alert:
                    raise MonitorError(why, f"Ask `{_command(self.settings)} {stream.question()}`.")
                return why
            if until_alert and time.monotonic() > deadline:
                if not found:
                    lacking.append(f"no alert about {stream.surge['key']} has arrived")
                raise MonitorError(
                    f"The demo was not done within the time allowed: {'; '.join(lacking)}.",
                    f"The processes' output is in {log_dir(self.settings)}.",
                )
            time.sleep(POLL_S)

    def _silence(self, stream: _Stream) -> str:
        """Why no alert about the planted surge has come, though all is judged and nothing waits to be delivered."""
        from monitor.storage.alerts import list_alerts
        from monitor.storage.engine import reading

        key = stream.surge["key"]
        with reading(self.engine) as connection:
            fired = list_alerts(connection, key=key, limit=1)
        cause = "one has fired, but did not come to the demo's receiver" if fired else "the judge has found no surge"
        own = [name for name in DECISIVE if name in self.settings.model_fields_set and getattr(self.settings, name)]
        if self.settings.surge_budget != SURGE_BUDGET:
            own.append("surge_budget")
        set_here = f" This demo has settings of its own: {', '.join(own)}." if own else ""
        return f"The whole stream is judged and all is delivered, but no alert about {key} came: {cause}.{set_here}"


def demo(
    headless: Annotated[bool, typer.Option("--headless", help="Open no browser window.")] = False,
    until_alert: Annotated[
        bool,
        typer.Option(
            "--until-alert", help="End by itself once all is replayed and the planted surge's alert delivered."
        ),
    ] = False,
    speed: Annotated[
        float | None,
        typer.Option(
            min=0,
            show_default=f"{SPEED:,}, with --until-alert 0",
            help="Seconds of event time replayed in a second; 0: as fast as it goes.",
        ),
    ] = None,
    limit: Annotated[
        float, typer.Option("--timeout", min=1, help="With --until-alert: seconds that this may take.")
    ] = 600.0,
) -> None:
    """Everything on this machine: broker, database, worker, aggregator, notifier, scheduler, dashboard, receiver."""
    from monitor.alerts.demo_receiver import DemoReceiver
    from monitor.supervisor import ProcessSpec, Supervisor

    # A random secret for each run: the receiver shows that what arrives was signed with it.
    secret = "whsec_" + b64encode(secrets.token_bytes(24)).decode()
    with signals_as_interrupt(), DemoReceiver(secret=secret) as receiver, ExitStack() as held:
        # The folder before the port: what listens there may be the demo that runs in it.
        held.enter_context(owned(current_settings("demo").data_dir))
        settings = _demo_settings(receiver)
        _claim_data_dir(settings)
        engine = open_store(settings)
        _refuse_filled_store(engine)
        stream = _stream()
        supervisor = Supervisor(
            process_specs(settings),
            settings.environment(),
            log_dir(settings),
            settings.shutdown_s,
            on_event=lambda text: err.print(f"  {text}", markup=False),
        )
        run = _Run(settings, receiver, engine, supervisor)
        try:
            kind = "an embedded development broker" if settings.embedded else f"Kafka at {settings.bootstrap_servers}"
            err.print(f"Starting {kind} and the processes; data and logs in {settings.data_dir}", markup=False)
            start_all(supervisor, settings)
            pace = speed if speed is not None else 0 if until_alert else SPEED
            deadline = time.monotonic() + limit
            supervisor.add(
                ProcessSpec(
                    "feed",
                    (*PROGRAM, "feed", "jsonl", str(stream.path), "--speed", str(pace)),
                    restart=False,
                )
            )
            out.print(f"dashboard: {settings.dashboard_url}", markup=False)
            out.print(stream.introduction(), markup=False)
            out.print(f"False alarms allowed: {settings.surge_budget:g} per key and day (surge_budget).", markup=False)
            if not headless and _has_display():
                typer.launch(settings.dashboard_url)
            with Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                console=err,
            ) as progress:
                task = progress.add_task(_doing(0, stream.items), total=stream.items)
                silence = run.replay(stream, deadline, until_alert, progress, task)
            out.print(
                f"\n{silence}"
                if silence
                else f"\nThe whole stream is stored, counted and judged. Alerts delivered: {len(run.fired())}, one "
                f"of them about {stream.surge['key']}. {stream.outcome(run.counted(stream.surge['key']))}",
                markup=False,
            )
            if until_alert:
                return
            out.print("The dashboard stays up until Ctrl-C, which stops everything. In another terminal:", markup=False)
            why = stream.question() if silence else f"alerts why {run.fired(stream.surge['key'])[0][:8]}"
            for verb in ("status", "alerts list", why):
                out.print(f"    {_command(settings)} {verb}", markup=False)
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
                err.print(f"These had to be killed: {', '.join(killed)}; see {log_dir(settings)}.")
