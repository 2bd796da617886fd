"""The processes, one verb each, and `up`, which runs all of them under one supervisor."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from monitor.cli.context import current_settings, err, open_store
from monitor.datadir import DEMO_MARK, announced, check_space, owned, supervised
from monitor.errors import BrokerError, ConfigurationError, MonitorError
from monitor.program import PROGRAM
from monitor.settings import ENV_PREFIX

if TYPE_CHECKING:
    from pathlib import Path

    from monitor.settings import Settings
    from monitor.supervisor import ProcessReport, ProcessSpec, Supervisor

__all__ = [
    "aggregator",
    "broker",
    "dashboard",
    "free_dashboard_port",
    "log_dir",
    "notifier",
    "process_specs",
    "scheduler",
    "signals_as_interrupt",
    "start_all",
    "supervised_processes",
    "up",
    "worker",
]

# Those that serve metrics and health.
MEASURED = ("worker", "aggregator", "notifier", "scheduler")
ROLES = (*MEASURED, "dashboard")
# For what a process has left to do once its work is stored.
END_WITHIN_S = 1.0


def worker() -> None:
    """Score news and charts from Kafka until stopped."""
    from consumers.worker import run_worker

    run_worker(current_settings("worker"))


def aggregator() -> None:
    """Count contributions in event time and judge surges until stopped."""
    from consumers.aggregator import run_aggregator

    settings = current_settings("aggregator")
    try:
        run_aggregator(settings)
    except MonitorError as error:
        _end_with(error.exit_code)
        raise
    _end_with(0)


def _end_with(code: int) -> None:
    """End the process soon after its main thread, also where other threads go on: without a broker those of Faust try
    to reach it for ever, and Python waits for them. Everything is stored by then."""

    def end() -> None:
        threading.main_thread().join()
        time.sleep(END_WITHIN_S)
        os._exit(code)

    threading.Thread(target=end, name="end", daemon=True).start()


def notifier() -> None:
    """Deliver alerts from the outbox until stopped."""
    from consumers.notifier import run_notifier

    run_notifier(current_settings("notifier"))


def scheduler() -> None:
    """Run the jobs on their schedule until stopped."""
    from monitor.jobs.scheduler import run_scheduler

    run_scheduler(current_settings("scheduler"))


def dashboard() -> None:
    """Serve the analysts' dashboard until stopped."""
    from dashboard.server import run_dashboard

    run_dashboard(current_settings("dashboard"))


def broker() -> None:
    """Run the embedded development broker until stopped: one node, loopback only, not for production."""
    from consumers.broker.process import run_broker

    settings = current_settings("broker")
    if not settings.embedded:
        raise ConfigurationError(
            f"kafka_bootstrap_servers names a cluster ({settings.kafka_bootstrap_servers}).",
            "Unset it to use the embedded broker.",
        )
    run_broker(settings)


@contextmanager
def signals_as_interrupt() -> Iterator[None]:
    """Inside the block SIGTERM and SIGHUP stop the program as Ctrl-C does.

    SIGINT too is set anew: a shell without job control starts its background commands with Ctrl-C ignored.
    """

    def stop(_signal: int, _frame: object) -> None:
        raise KeyboardInterrupt

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def free_dashboard_port(settings: Settings) -> dict[str, int]:
    """The flag that makes the dashboard's port known before anything starts: the one set, or a free one for 0.

    Raises `ConfigurationError` when it is taken.
    """
    from dashboard.server import free_port

    return {"dashboard_port": free_port(settings.dashboard_host, settings.dashboard_port)}


def process_specs(settings: Settings, roles: tuple[str, ...] = ROLES) -> list[ProcessSpec]:
    """Command lines of the processes; the embedded broker comes first when no cluster is configured."""
    from monitor.supervisor import ProcessSpec

    specs = [ProcessSpec(role, (*PROGRAM, role), environment=_own_metrics_port(settings, role)) for role in roles]
    if settings.embedded:
        specs.insert(
            0,
            ProcessSpec(
                "broker",
                (*PROGRAM, "broker"),
                ready=lambda: announced(settings.broker_address_file) is not None,
                ready_s=30.0,
                serves=True,
            ),
        )
    return specs


def _own_metrics_port(settings: Settings, role: str) -> dict[str, str]:
    """On one machine every process that serves metrics needs a port of its own: they follow on `metrics_port`."""
    if role not in MEASURED or not settings.metrics_port:
        return {}
    return {f"{ENV_PREFIX}METRICS_PORT": str(settings.metrics_port + MEASURED.index(role))}


def log_dir(settings: Settings) -> Path:
    """Where the output of supervised processes goes."""
    return settings.data_dir / "logs"


def supervised_processes(settings: Settings) -> list[ProcessReport]:
    """How the processes are doing that `demo` or `up` runs in this data folder; when none does any more, those because
    of which it has ended."""
    from monitor.supervisor import process_reports

    found = process_reports(log_dir(settings))
    return found if supervised(settings.data_dir) else [one for one in found if one.state == "gave_up"]


def start_all(supervisor: Supervisor, settings: Settings) -> None:
    """Start the supervised processes; the store is migrated first, and the topics are made by the processes."""
    open_store(settings).dispose()
    supervisor.start()


def up() -> None:
    """All processes against the configured broker and database, supervised; one Ctrl-C stops them all."""
    from monitor.supervisor import Supervisor

    settings = current_settings("up")
    if (settings.data_dir / DEMO_MARK).exists():
        raise ConfigurationError(
            f"{settings.data_dir} holds the data of a demo.", "Choose another folder with --data-dir, or remove it."
        )
    # The folder before the port: what listens there may be the `up` that runs in it.
    with signals_as_interrupt(), owned(settings.data_dir):
        settings = current_settings("up", **free_dashboard_port(settings))
        supervisor = Supervisor(
            process_specs(settings),
            settings.environment(),
            log_dir(settings),
            settings.shutdown_s,
            on_event=lambda text: err.print(text, markup=False),
        )
        try:
            if settings.embedded:
                err.print("No cluster is configured: the embedded development broker stands in (not for production).")
            start_all(supervisor, settings)
            err.print(f"dashboard: {settings.dashboard_url}", markup=False)
            while True:
                check_space(settings.data_dir)
                supervisor.check()
                time.sleep(0.5)
        except KeyboardInterrupt:
            err.print("stopping")
        finally:
            killed = supervisor.stop()
    if killed:
        raise BrokerError(f"These had to be killed: {', '.join(killed)}.", f"See {log_dir(settings)}.")
