"""Insert-or-update statements, which SQLite and PostgreSQL spell alike but SQLAlchemy keeps per dialect."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, Table
from sqlalchemy.dialects import postgresql, sqlite

__all__ = ["insert_missing", "upsert"]

# SQLite allows 32,766 bound values in a statement, PostgreSQL's protocol 65,535.
MAX_VALUES = 30_000


def _chunks(rows: Sequence[Mapping[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    size = max(1, MAX_VALUES // max(1, len(rows[0]))) if rows else 1
    for start in range(0, len(rows), size):
        yield [dict(row) for row in rows[start : start + size]]


def _insert(connection: Connection, table: Table) -> Any:
    return (postgresql if connection.dialect.name == "postgresql" else sqlite).insert(table)


def upsert(
    connection: Connection,
    table: Table,
    rows: Iterable[Mapping[str, Any]],
    *,
    add: Iterable[str] = (),
    keep: Iterable[str] = (),
) -> None:
    """Insert rows; where the primary key is there already, overwrite the other columns.

    Rows have the same columns each and distinct keys. Columns in `add` are added up instead of overwritten, those in
    `keep` are left as they are.
    """
    key = [column.name for column in table.primary_key]
    added, kept = set(add), set(keep)
    for chunk in _chunks(list(rows)):
        statement = _insert(connection, table).values(chunk)
        changes = {
            name: table.c[name] + statement.excluded[name] if name in added else statement.excluded[name]
            for name in chunk[0]
            if name not in key and name not in kept
        }
        connection.execute(
            statement.on_conflict_do_update(index_elements=key, set_=changes)
            if changes
            else statement.on_conflict_do_nothing(index_elements=key)
        )


def insert_missing(connection: Connection, table: Table, rows: Iterable[Mapping[str, Any]]) -> list[tuple[Any, ...]]:
    """Insert the rows whose primary key is not there yet; returns the primary keys of those inserted."""
    key = [column.name for column in table.primary_key]
    inserted: list[tuple[Any, ...]] = []
    for chunk in _chunks(list(rows)):
        statement = (
            _insert(connection, table)
            .values(chunk)
            .on_conflict_do_nothing(index_elements=key)
            .returning(*(table.c[name] for name in key))
        )
        inserted.extend(tuple(row) for row in connection.execute(statement))
    return inserted
