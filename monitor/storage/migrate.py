"""Brings a database to the newest schema with Alembic."""

from __future__ import annotations

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine

from monitor.errors import StorageError
from monitor.storage.engine import reading, writing

__all__ = ["current_revision", "head_revision", "upgrade"]


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    return config


def upgrade(engine: Engine) -> None:
    """Apply all missing migrations in one transaction; does nothing on a database that is up to date.

    Processes that start together may all call it: the database's write lock lets one through at a time.
    Raises `StorageError` when the database cannot be reached or a newer version of the product has upgraded it.
    """
    config = _config()
    with writing(engine) as connection:
        if connection.dialect.name == "postgresql":
            # Rewriting a large table, and waiting for the process that does, takes as long as it takes.
            connection.exec_driver_sql("set local statement_timeout = 0")
            connection.exec_driver_sql("set local lock_timeout = 0")
            connection.exec_driver_sql("select pg_advisory_xact_lock(7342198)")
        _revision(connection)
        config.attributes["connection"] = connection
        command.upgrade(config, "head")


def current_revision(engine: Engine) -> str | None:
    """Revision of the database; None when it has no tables yet.

    Raises `StorageError` when the database cannot be reached or a newer version of the product has upgraded it.
    """
    with reading(engine) as connection:
        return _revision(connection)


def _revision(connection: Connection) -> str | None:
    found = MigrationContext.configure(connection).get_current_revision()
    known = {script.revision for script in ScriptDirectory.from_config(_config()).walk_revisions()}
    if found is not None and found not in known:
        raise StorageError(
            f"The database is newer than this program: it does not know the revision {found}.",
            "Upgrade sentiment-monitor to the version that the other processes run.",
        )
    return found


def head_revision() -> str | None:
    """The newest revision that this version of the product knows."""
    return ScriptDirectory.from_config(_config()).get_current_head()
