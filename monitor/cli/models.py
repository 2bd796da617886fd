"""`models`: the registry."""

from __future__ import annotations

import getpass
import json
import logging
from typing import TYPE_CHECKING, Annotated, Any

import typer

from monitor.cli.context import current_settings, open_store, out

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from monitor.settings import Settings

__all__ = ["app"]

app = typer.Typer(no_args_is_help=True, add_completion=False)

_Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.callback()
def root() -> None:
    """Models: which there are, which one the workers score with, and its history."""


def _open() -> tuple[Settings, Engine]:
    settings = current_settings("models")
    if settings.log_level != "debug":
        logging.getLogger("models").setLevel(logging.WARNING)
    return settings, open_store(settings)


def _actor() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        # A container's user without a name.
        return "unknown"


def _rows(settings: Settings, engine: Engine) -> list[dict[str, Any]]:
    from models.model_file import read_model_file
    from models.registry import DEFAULT, gate_result, shipped
    from monitor.storage.engine import reading
    from monitor.storage.models import list_models

    with reading(engine) as connection:
        registered = list_models(connection)
    in_force = settings.model or next((m.version for m in registered if m.state == "active"), DEFAULT)
    known = {model.version for model in registered}
    rows: list[dict[str, Any]] = []
    for name, folder in shipped().items():
        file = read_model_file(folder)
        if file.version in known:
            continue
        used = in_force in (name, file.version)
        rows.append(
            {"name": name, "version": file.version, "state": "active" if used else "shipped", "in_force": used}
            | {"created_at": None, "parent": "", "gate": "", "reason": "comes with the package"}
            | {"metrics": dict(file.metrics)}
        )
    rows += [
        {"name": model.version, "version": model.version, "state": model.state, "in_force": in_force == model.version}
        | {"created_at": model.created_at.isoformat(), "parent": model.parent, "gate": gate_result(model)}
        | {"reason": model.reason, "metrics": model.metrics}
        for model in registered
    ]
    return rows


def _changes(metrics: dict[str, Any]) -> str:
    """What the gate measured, before and after: `sentiment .853 > .857, held-out corrections .200 > .511`."""
    told = [(head, one["before"], one["after"]) for head, one in metrics.get("heads", {}).items()]
    held = metrics.get("held_out_corrections")
    if held and held["n"]:
        told.append(("held-out corrections", held["before"], held["after"]))
    return ", ".join(f"{name} {before:.3f} > {after:.3f}" for name, before, after in told)


@app.command("list")
def list_command(as_json: _Json = False) -> None:
    """All models: those that come with the package, and registered versions."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    rows = _rows(*_open())
    if as_json:
        typer.echo(json.dumps(rows, ensure_ascii=False))
        return
    table = Table(box=box.SIMPLE)
    for column in ("", "version", "state", "gate", "since", "from", "why"):
        table.add_column(column, overflow="fold")
    for row in rows:
        mark = "*" if row["in_force"] else ""
        name = row["version"] if row["name"] == row["version"] else f"{row['name']} ({row['version']})"
        since = (row["created_at"] or "")[:16]
        changes = _changes(row["metrics"])
        why = f"{row['reason']}\nAccuracy: {changes}." if changes else row["reason"]
        table.add_row(mark, name, row["state"], row["gate"] or "-", since, row["parent"], Text(why))
    out.print(table)
    out.print("* is what the workers score with; `models show VERSION` has all figures")


@app.command()
def show(
    name: Annotated[str, typer.Argument(help="Name, version or path; default: the one in force.")] = "",
    as_json: _Json = False,
) -> None:
    """One model: where it is, what it was made of, and how it measured."""
    from models.registry import check_folder, gate_result, resolve
    from monitor.storage.engine import reading
    from monitor.storage.models import get_model, list_promotions

    settings, engine = _open()
    found = resolve(settings, engine, name)
    file = check_folder(found.path)
    with reading(engine) as connection:
        registered = get_model(connection, file.version)
        promotions = [p for p in list_promotions(connection) if p.version == file.version]
    told = {
        "version": file.version,
        "path": str(found.path),
        "state": registered.state if registered else "shipped",
        "parent": registered.parent if registered else "",
        "gate": gate_result(registered) if registered else "",
        "reason": registered.reason if registered else "",
        "text_backbone": file.text_backbone,
        "vision_backbone": file.vision_backbone,
        "taxonomy": file.taxonomy.name,
        "data": list(file.data),
        "metrics": dict(file.metrics) | (registered.metrics if registered else {}),
        "promotions": [{"at": p.at.isoformat(), "actor": p.actor, "reason": p.reason} for p in promotions],
    }
    if as_json:
        typer.echo(json.dumps(told, ensure_ascii=False))
        return
    for field, value in told.items():
        if isinstance(value, dict):
            out.print(f"{field}:")
            for key, one in value.items():
                _print_figure(key, one)
        elif isinstance(value, list):
            out.print(f"{field}: {'; '.join(map(str, value)) or '-'}", markup=False)
        else:
            out.print(f"{field}: {value or '-'}", markup=False)


def _print_figure(name: str, value: Any) -> None:
    if name != "heads":
        told = ", ".join(f"{key} {one}" for key, one in value.items()) if isinstance(value, dict) else value
        out.print(f"  {name}: {told}", markup=False)
        return
    from rich import box
    from rich.table import Table

    table = Table(title="  measured by the gate, before > after", box=box.SIMPLE, title_justify="left")
    table.add_column("head")
    for column in ("rows", "accuracy", "surely above", "calibration error", "its growth surely below"):
        table.add_column(column, justify="right")
    for head, one in value.items():
        accuracy, error = (f"{one[f'{key}before']:.3f} > {one[f'{key}after']:.3f}" for key in ("", "ece_"))
        table.add_row(head, str(one["n"]), accuracy, f"{one['lower']:+.3f}", error, f"{one['ece_upper']:+.3f}")
    out.print(table)


@app.command()
def promote(
    name: Annotated[str, typer.Argument(help="Version, shipped name, or path of a model folder.")],
    reason: Annotated[str, typer.Option(help="Why; stands in the log.")] = "",
    force: Annotated[bool, typer.Option("--force", help="Also a version that the gate rejected.")] = False,
) -> None:
    """Let the workers score with a model; running ones take it up within seconds."""
    from models.registry import promote as promote_model

    settings, engine = _open()
    version = promote_model(settings, engine, name, actor=_actor(), reason=reason or "promoted by hand", force=force)
    out.print(f"{version} is in force.")
    _print_result(engine, version)
    _pinned(settings)


@app.command()
def rollback(reason: Annotated[str, typer.Option(help="Why; stands in the log.")] = "") -> None:
    """Go back to the model that was in force before the last promotion."""
    from models.registry import DEFAULT
    from models.registry import rollback as roll_back

    settings, engine = _open()
    entry = roll_back(settings, engine, actor=_actor(), reason=reason or "rollback")
    out.print(f"{entry.version or DEFAULT} is in force again.")
    _print_result(engine, entry.version)
    _pinned(settings)


def _print_result(engine: Engine, version: str) -> None:
    """What the gate said of a version, if it judged it."""
    from models.registry import gate_result
    from monitor.storage.engine import reading
    from monitor.storage.models import get_model

    with reading(engine) as connection:
        model = get_model(connection, version)
    if model is not None and gate_result(model):
        out.print(f"The gate: {gate_result(model)}. {model.reason}", markup=False)
        told = _changes(model.metrics)
        if told:
            out.print(f"Accuracy: {told}.", markup=False)


def _pinned(settings: Settings) -> None:
    if settings.model:
        out.print(f"Note: the setting model = {settings.model} comes before the registry.", markup=False)
