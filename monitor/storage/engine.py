"""Engines and transactions, the same for SQLite and PostgreSQL."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from sqlalchemy import Connection, Engine, create_engine, event, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError, OperationalError

from monitor.errors import ConfigurationError, StorageError

__all__ = ["open_engine", "reading", "writing"]

# How long a transaction waits for another's lock, on both databases.
BUSY_TIMEOUT_S: Final = 30
# PostgreSQL: a bound on statements that never end; migrations are exempt.
STATEMENT_TIMEOUT_S: Final = 300
CONNECT_TIMEOUT_S: Final = 10
# A server that has vanished without a word (power, a cut cable) is noticed within a minute, idle or not.
_NETWORK: Final = {"keepalives_idle": 30, "keepalives_interval": 10, "keepalives_count": 3, "tcp_user_timeout": 60_000}

# Codes of PostgreSQL (its manual, appendix A).
UNDEFINED_TABLE: Final = "42P01"
UNDEFINED_COLUMN: Final = "42703"
DISK_FULL: Final = "53100"
LOCK_NOT_AVAILABLE: Final = "55P03"


def open_engine(url: str) -> Engine:
    """An engine for a SQLAlchemy URL (`sqlite:///...` or `postgresql+psycopg://...`). Does not connect yet.

    SQLite runs in WAL mode with full synchronisation: a transaction that has returned survives a power cut, and
    readers never wait for the writer. On PostgreSQL nothing waits for ever: not to connect, for a lock, for a statement
    or on a connection that is dead; the URL's own parameters (`?connect_timeout=3`) go before those for the network.
    Raises `ConfigurationError` for a URL that cannot be used.
    """
    try:
        parsed = make_url(url)
        if parsed.get_backend_name() == "postgresql" and parsed.drivername == "postgresql":
            parsed = parsed.set(drivername="postgresql+psycopg")
        if parsed.get_backend_name() == "sqlite" and parsed.database:
            Path(parsed.database).parent.mkdir(parents=True, exist_ok=True)
        if parsed.get_backend_name() not in ("sqlite", "postgresql"):
            raise ConfigurationError(
                f"The database {parsed.get_backend_name()} is not supported.", "Use SQLite or PostgreSQL."
            )
        if parsed.get_backend_name() == "postgresql":
            network = {"connect_timeout": CONNECT_TIMEOUT_S} | _NETWORK
            own = {name: value for name, value in network.items() if name not in parsed.query}
            engine = create_engine(parsed, pool_pre_ping=True, connect_args=own)
        else:
            engine = create_engine(parsed)
    except ArgumentError as error:
        raise ConfigurationError("The setting database_url is not a SQLAlchemy URL.") from error
    except (NoSuchModuleError, ImportError) as error:
        raise ConfigurationError(
            "The driver for this database is not installed.", "Install `sentiment-monitor[postgresql]`."
        ) from error
    except OSError as error:
        raise StorageError(
            f"The folder of the database cannot be made: {error.strerror} ({error.filename})."
        ) from error
    if engine.dialect.name == "sqlite":
        _prepare_sqlite(engine)
    else:
        _prepare_postgresql(engine)
    return engine


def _prepare_postgresql(engine: Engine) -> None:
    @event.listens_for(engine, "connect")
    def connected(connection: Any, _record: Any) -> None:
        # Not as start-up options: poolers such as PgBouncer refuse these.
        with connection.cursor() as cursor:
            cursor.execute(
                f"set lock_timeout = {BUSY_TIMEOUT_S * 1000:.0f}; set statement_timeout = {STATEMENT_TIMEOUT_S * 1000}"
            )
        # A roll-back of the first transaction would take the settings back.
        connection.commit()


def _prepare_sqlite(engine: Engine) -> None:
    @event.listens_for(engine, "connect")
    def connected(connection: sqlite3.Connection, _record: Any) -> None:
        # The driver's own implicit BEGIN is switched off: `begin` below says which kind of transaction it is.
        connection.isolation_level = None
        cursor = connection.cursor()
        cursor.execute(f"pragma busy_timeout = {BUSY_TIMEOUT_S * 1000}")
        cursor.execute("pragma journal_mode = wal")
        cursor.execute("pragma synchronous = full")
        # Four times the default: pages that change again and again are copied from the log to the file less often.
        cursor.execute("pragma wal_autocheckpoint = 4000")
        cursor.execute("pragma foreign_keys = on")
        cursor.close()

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        # A writer takes the lock at once: an upgrade in mid-transaction would fail instead of wait.
        immediate = connection.get_execution_options().get("sqlite_immediate", False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if immediate else "BEGIN")


def _said(error: DBAPIError) -> StorageError | None:
    """What the database's own code of an error means; None when it means a mistake of the program.

    The codes, not the words: a message quotes names of tables, hosts and users, in any language.
    """
    primary = getattr(error.orig, "sqlite_errorcode", 0) & 0xFF
    state = getattr(error.orig, "sqlstate", None)
    words = str(error.orig)
    # SQLite has one code for every mistake in a statement.
    lacking = words.startswith(("no such table", "no such column")) and primary == sqlite3.SQLITE_ERROR
    if state in (UNDEFINED_TABLE, UNDEFINED_COLUMN) or lacking:
        return StorageError(
            "The database has no tables yet or is older than the program.", "Run `sentiment-monitor db upgrade`."
        )
    if state == DISK_FULL or primary == sqlite3.SQLITE_FULL:
        return StorageError("The disk that holds the database is full.", "Free some space and start again.")
    if state == LOCK_NOT_AVAILABLE or primary in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return StorageError(f"The database has been locked for over {BUSY_TIMEOUT_S} s.")
    if isinstance(error, OperationalError):
        return StorageError(f"The database cannot be used: {words.splitlines()[0] if words else 'no reason given'}.")
    if error.connection_invalidated:
        return StorageError("The connection to the database was lost.")
    return None


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except DBAPIError as error:
        if (said := _said(error)) is not None:
            raise said from error
        raise


@contextmanager
def writing(engine: Engine) -> Iterator[Connection]:
    """A transaction that writes: committed when the block ends, rolled back when it raises.

    Raises `StorageError` when the database cannot be reached, is locked for too long, full or not migrated.
    """
    with _translated(), engine.connect() as plain:
        connection = plain.execution_options(sqlite_immediate=True)
        with connection.begin():
            yield connection


@contextmanager
def reading(engine: Engine) -> Iterator[Connection]:
    """A transaction that reads one consistent state. Raises `StorageError` as `writing` does."""
    with _translated(), engine.connect() as connection, connection.begin():
        yield connection
