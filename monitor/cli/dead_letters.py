"""`dead-letters`: records that could not be processed."""

from __future__ import annotations

from typing import Annotated

import typer

from monitor.cli.context import current_settings, err, open_store, out

app = typer.Typer(no_args_is_help=True, add_completion=False)

SHOWN_BYTES = 4096


@app.callback()
def root() -> None:
    """Look at what could not be processed; send it again."""


@app.command("list")
def list_letters(
    json: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False,
    limit: Annotated[int, typer.Option(min=1, help="How many at the most, the newest first.")] = 50,
    code: Annotated[str, typer.Option(help="Only those with this code.")] = "",
) -> None:
    """Print the dead letters, the newest first, each record once however often it was delivered."""
    from monitor.records import encode
    from monitor.storage.dead_letters import dead_letter_list
    from monitor.storage.engine import reading

    store = open_store(current_settings())
    with reading(store) as connection:
        found = dead_letter_list(connection, limit=limit, code=code)
    for letter in found:
        if json:
            line = {
                "id": str(letter.id),
                "code": letter.code,
                "reason": letter.reason,
                "failed_at": letter.failed_at,
                "replayed_at": letter.replayed_at,
            }
            typer.echo(encode(line).decode())
        else:
            again = f"  (sent again {letter.replayed_at:%Y-%m-%d %H:%M:%S})" if letter.replayed_at else ""
            typer.echo(f"{letter.failed_at:%Y-%m-%d %H:%M:%S}  {letter.id}  {letter.code}  {letter.reason!r}{again}")
    if not found and not json:
        err.print("No dead letters.")


@app.command()
def show(
    id: Annotated[str, typer.Argument(help="topic:partition:offset, as `list` prints it.")],
    raw: Annotated[bool, typer.Option("--raw", help="Write the bytes as they are to standard output.")] = False,
) -> None:
    """Print one dead letter: where it came from, why it was refused, its headers and its bytes, shown safely."""
    import sys

    from consumers.dead_letters import read_original
    from monitor.errors import InputError
    from monitor.storage.dead_letters import LetterId, find_dead_letters
    from monitor.storage.engine import reading

    settings = current_settings()
    wanted = LetterId.parse(id)
    with reading(open_store(settings)) as connection:
        letter = find_dead_letters(connection, [wanted]).get(wanted)
    record = read_original(settings, wanted, letter.failed_at if letter is not None else None)
    if letter is None and record is None:
        raise InputError(f"There is no dead letter {wanted}.", "`dead-letters list` shows them.")
    if raw:
        if record is None:
            raise InputError(f"The bytes of {wanted} are no longer on the topic.")
        sys.stdout.buffer.write(record.value or b"")
        return
    typer.echo(f"id         {wanted}")
    if letter is not None:
        typer.echo(f"code       {letter.code}")
        typer.echo(f"reason     {letter.reason!r}")
        typer.echo(f"failed at  {letter.failed_at.isoformat()}")
        typer.echo(f"sent again {letter.replayed_at.isoformat() if letter.replayed_at else 'no'}")
    if record is None:
        typer.echo("The bytes are no longer on the topic.")
        return
    typer.echo(f"key        {record.key!r}")
    for name, value in record.headers:
        typer.echo(f"header     {name!r} = {value[:200]!r}")
    if record.cut_from is not None:
        kept = len(record.value or b"")
        what = f"{kept} of its {record.cut_from} bytes" if kept < record.cut_from else "its bytes"
        typer.echo(f"It was too large as a whole: kept are {what} and the beginning of its key, but no headers.")
    value = record.value or b""
    typer.echo(f"value      {len(value)} bytes")
    # repr of bytes: nothing in a hostile record reaches the terminal as a control sequence.
    typer.echo(repr(value[:SHOWN_BYTES])[2:-1] + (" ..." if len(value) > SHOWN_BYTES else ""))


@app.command()
def replay(
    id: Annotated[str | None, typer.Argument(help="topic:partition:offset, as `list` prints it.")] = None,
    all: Annotated[bool, typer.Option("--all", help="All that were not sent again yet.")] = False,
    code: Annotated[str, typer.Option(help="With --all: only those with this code.")] = "",
) -> None:
    """Send records to the topics they came from, with their bytes, keys and headers as they were."""
    from consumers.dead_letters import replay as send_again
    from monitor.errors import ConfigurationError
    from monitor.storage.dead_letters import LetterId

    if (id is None) == (not all):
        raise ConfigurationError("Name one dead letter, or give --all.", "`dead-letters list` shows them.")
    settings = current_settings()
    wanted = LetterId.parse(id) if id is not None else None
    sent, gone = send_again(settings, open_store(settings), wanted, code=code)
    out.print(f"Sent {sent} record{'' if sent == 1 else 's'} again.")
    if gone:
        err.print(f"{len(gone)} not sent: their bytes are not on the topic {settings.topic('dead-letters')}.")
        for letter in gone[:20]:
            err.print(f"  {letter}", markup=False)
        raise typer.Exit(1)
