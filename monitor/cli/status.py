"""`status`: what an operator asks first."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from monitor.cli.context import current_settings, err, open_store, out
from monitor.datadir import announced
from monitor.errors import BrokerError


def status(json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False) -> None:
    """Items, counts, dead letters, lag, watermark, alerts, undelivered notifications; processes that do not stay up.

    `counted` is more than `items`: an item counts once under each of its keys (its topic and every ticker in it).
    `processes` is about those that `demo` or `up` runs in this data folder.
    """
    from consumers.lag import lag
    from monitor.cli.processes import supervised_processes
    from monitor.storage.status import store_status

    settings = current_settings()
    engine = open_store(settings)
    found = store_status(engine)
    behind: dict[str, int | None] = {"worker": None, "aggregator": None}
    problem: BrokerError | None = None
    try:
        now = lag(settings, engine)
        behind = {"worker": now.worker, "aggregator": now.aggregator}
    except BrokerError as error:
        # The store can be read all the same: an operator asks for the status just when something is down.
        problem = error
    processes = supervised_processes(settings)
    now_utc = datetime.now(UTC)
    troubles = [(one, one.trouble(now_utc)) for one in processes]
    values: dict[str, Any] = {
        "items": found.items,
        "counted": found.counted,
        "dead_letters": found.dead_letters,
        "lag": behind,
        "watermark": _time(found.watermark),
        "judged_to": _time(found.judged_to),
        "alerts": found.alerts,
        "undelivered": found.undelivered,
        "late": found.late,
        "stale": found.stale,
    }
    if json:
        if problem:
            err.print(f"lag unknown: {problem}", markup=False)
        values["processes"] = {
            one.name: {
                "state": one.state,
                "restarts": one.restarts,
                "trouble": trouble,
                "last_code": one.last_code,
                "last_words": one.last_words,
                "log": one.log,
            }
            for one, trouble in troubles
        }
        out.print_json(data=values)
        return
    for one, trouble in troubles:
        if trouble:
            err.print(f"{trouble} Its output is in {one.log}.", style="bold red", markup=False)
    table = Table(show_header=False, box=None)
    if processes:
        well = [one.name for one, trouble in troubles if not trouble and one.state == "running"]
        values["processes"] = f"{', '.join(well) or 'none'} running"
    if problem:
        # A demo that has ended is no trouble: where a broker of this folder would be need not be told at length.
        no_broker = settings.embedded and announced(settings.broker_address_file) is None
        told = f"{problem.message}\n{problem.hint}".rstrip()
        values["lag"] = "unknown: no broker runs" if no_broker else f"unknown: {told}"
    values["counted"] = f"{found.counted:,} (an item counts once under each of its keys)"
    for name, value in values.items():
        if name in ("watermark", "judged_to"):
            value = value or "none yet"
        shown = ", ".join(f"{k} {_shown(v)}" for k, v in value.items()) if isinstance(value, dict) else _shown(value)
        table.add_row(name.replace("_", " "), Text(shown))
    out.print(table)


def _time(at: datetime | None) -> str | None:
    return at.isoformat().replace("+00:00", "Z") if at else None


def _shown(value: Any) -> str:
    return "unknown" if value is None else f"{value:,}" if isinstance(value, int) else str(value)
