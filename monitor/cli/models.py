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
    from models.bundle import read_model_file
    from models.registry import DEFAULT, shipped
    from monitor.storage.engine import reading
    from monitor.storage.models import list_models

    with reading(engine) as connection:
        registered = list_models(connection)
    in_force = settings.model or next((m.version for m in registered if m.state == "active"), DEFAULT)
    known = {model.version for model in registered}
    rows: list[dict[str, Any]] = []
    for name, folder in shipped().items():
        version = read_model_file(folder).version
        if version in known:
            continue
        used = in_force in (name, version)
        rows.append(
            {"name": name, "version": version, "state": "active" if used else "shipped", "in_force": used}
            | {"created_at": None, "parent": "", "reason": "comes with the package", "metrics": {}}
        )
    rows += [
        {"name": model.version, "version": model.version, "state": model.state, "in_force": in_force == model.version}
        | {"created_at": model.created_at.isoformat(), "parent": model.parent, "reason": model.reason}
        | {"metrics": model.metrics}
        for model in registered
    ]
    return rows


@app.command("list")
def list_command(as_json: _Json = False) -> None:
    """All models: those that come with the package, and registered versions."""
    from rich import box
    from rich.table import Table

    rows = _rows(*_open())
    if as_json:
        typer.echo(json.dumps(rows, ensure_ascii=False))
        return
    table = Table(box=box.SIMPLE)
    for column in ("", "version", "state", "since", "from", "why"):
        table.add_column(column, overflow="fold")
    for row in rows:
        mark = "*" if row["in_force"] else ""
        name = row["version"] if row["name"] == row["version"] else f"{row['name']} ({row['version']})"
        table.add_row(mark, name, row["state"], (row["created_at"] or "")[:16], row["parent"], row["reason"])
    out.print(table)
    out.print("* is what the workers score with")


@app.command()
def show(
    name: Annotated[str, typer.Argument(help="Name, version or path; default: the one in force.")] = "",
    as_json: _Json = False,
) -> None:
    """One model: where it is, what it was made of, and how it measured."""
    from models.registry import check_folder, resolve
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
                out.print(f"  {key}: {one}", markup=False)
        elif isinstance(value, list):
            out.print(f"{field}: {'; '.join(map(str, value)) or '-'}", markup=False)
        else:
            out.print(f"{field}: {value or '-'}", markup=False)


@app.command()
def promote(
    name: Annotated[str, typer.Argument(help="Version, shipped name, or path of a model folder.")],
    reason: Annotated[str, typer.Option(help="Why; stands in the log.")] = "",
) -> None:
    """Let the workers score with a model; running ones take it up within seconds."""
    from models.registry import promote as promote_model

    settings, engine = _open()
    version = promote_model(settings, engine, name, actor=_actor(), reason=reason or "promoted by hand")
    out.print(f"{version} is in force.")
    _pinned(settings)


@app.command()
def rollback(reason: Annotated[str, typer.Option(help="Why; stands in the log.")] = "") -> None:
    """Go back to the model that was in force before the last promotion."""
    from models.registry import DEFAULT
    from models.registry import rollback as roll_back

    settings, engine = _open()
    entry = roll_back(settings, engine, actor=_actor(), reason=reason or "rollback")
    out.print(f"{entry.version or DEFAULT} is in force again.")
    _pinned(settings)


def _pinned(settings: Settings) -> None:
    if settings.model:
        out.print(f"Note: the setting model = {settings.model} comes before the registry.", markup=False)
