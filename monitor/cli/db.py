"""`db upgrade`: migrations."""

from __future__ import annotations

import typer

from monitor.cli.context import current_settings, out

app = typer.Typer(no_args_is_help=True, add_completion=False)


@app.callback()
def root() -> None:
    """Database migrations."""


@app.command()
def upgrade() -> None:
    """Bring the database to the newest schema; safe to run at any time."""
    from monitor.storage.engine import open_engine
    from monitor.storage.migrate import current_revision, upgrade

    engine = open_engine(current_settings().database)
    before = current_revision(engine)
    upgrade(engine)
    after = current_revision(engine)
    out.print(
        f"The database is at revision {after}." if before == after else f"Upgraded from {before or 'empty'} to {after}."
    )
