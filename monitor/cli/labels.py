"""`labels`: analysts' corrections, listed and moved in and out as JSON Lines."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from monitor.cli.context import current_settings, err, open_store, out

app = typer.Typer(no_args_is_help=True, add_completion=False)

_STDIO = Path("-")


@app.callback()
def root() -> None:
    """Analysts' corrections of sentiment, topic and entities, which retraining learns from."""


@app.command("list")
def list_command(
    author: Annotated[str, typer.Option(help="Only corrections of this author.")] = "",
    limit: Annotated[int, typer.Option(min=1, help="At most so many, the newest.")] = 50,
    json: Annotated[bool, typer.Option("--json", help="JSON Lines instead of a table.")] = False,
) -> None:
    """Show the newest corrections."""
    from rich.table import Table
    from rich.text import Text

    from monitor.storage.engine import reading
    from monitor.storage.labels import encode_label, list_labels

    with reading(open_store(current_settings())) as connection:
        labels = list_labels(connection, author=author, limit=limit)
    if json:
        for label in labels:
            typer.echo(encode_label(label).decode())
        return
    if not labels:
        err.print("No corrections yet: make one in the dashboard, or import a file.")
        return
    table = Table("made (UTC)", "author", "sentiment", "topic", "entities", "text", box=None, pad_edge=False)
    for label in labels:
        table.add_row(
            f"{label.created_at:%Y-%m-%d %H:%M}",
            Text(label.author),
            label.sentiment or "",
            Text(label.topic or ""),
            Text(", ".join(f"{name}: {value}" for name, value in label.entities.items())),
            Text(" ".join(label.text.split())[:80]),
        )
    out.print(table)


@app.command("import")
def import_command(
    file: Annotated[Path, typer.Argument(help="JSON Lines, or - for standard input.", allow_dash=True)],
    author: Annotated[str, typer.Option(help="Author of lines that name none.")] = "import",
) -> None:
    """Take corrections in: all lines or, when one is bad, none. Importing a file again changes nothing.

    A line has `text` and any of `sentiment`, `topic` (one that the model in force knows), `entities` (name to
    sentiment); `id`, `item_id`, `author`, `comment` and `created_at` may be added.
    """
    from models.model_file import read_model_file
    from models.registry import existing_store, resolve
    from monitor.errors import InputError
    from monitor.storage.engine import writing
    from monitor.storage.labels import add_labels, read_labels

    settings = current_settings()
    try:
        data = sys.stdin.buffer.read() if file == _STDIO else file.read_bytes()
    except OSError as error:
        raise InputError(f"The file {file} cannot be read: {error.strerror}.") from error
    # The topics are those of the model in force, which will learn from this.
    taxonomy = read_model_file(resolve(settings, existing_store(settings)).path).taxonomy
    labels = read_labels(data, taxonomy=taxonomy, author=author, max_text_chars=settings.max_text_chars)
    engine = open_store(settings)
    with writing(engine) as connection:
        new = add_labels(connection, labels)
    err.print(f"{new} corrections imported, {len(labels) - new} were there already.")


@app.command("export")
def export_command(
    file: Annotated[Path, typer.Argument(help="File to write, or - for standard output.", allow_dash=True)] = _STDIO,
) -> None:
    """Write all corrections as JSON Lines, oldest first; `import` and `evaluate` read them."""
    from monitor.errors import InputError
    from monitor.storage.engine import reading
    from monitor.storage.labels import list_labels, write_labels

    with reading(open_store(current_settings())) as connection:
        labels = list_labels(connection)[::-1]
    data = write_labels(labels)
    if not labels:
        err.print("There are no corrections to export: make some in the dashboard, or import a file.")
    if file == _STDIO:
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
        return
    try:
        file.write_bytes(data)
    except OSError as error:
        raise InputError(f"The file {file} cannot be written: {error.strerror}.") from error
    if labels:
        err.print(f"{len(labels)} corrections written to {file}.", markup=False)
