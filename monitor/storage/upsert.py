"""Insert-or-update statements, which SQLite and PostgreSQL spell alike but SQLAlchemy keeps per dialect."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from sqlalchemy import Connection, Table
from sqlalchemy.dialects import postgresql, sqlite

__all__ = ["insert_missing", "upsert"]


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
    given = [dict(row) for row in rows]
    if not given:
        return
    key = [column.name for column in table.primary_key]
    added, kept = set(add), set(keep)
    # One statement for a row, executed for many: a statement with all rows' values takes longer to compile than to run.
    statement = _insert(connection, table)
    changes = {
        name: table.c[name] + statement.excluded[name] if name in added else statement.excluded[name]
        for name in given[0]
        if name not in key and name not in kept
    }
    connection.execute(
        statement.on_conflict_do_update(index_elements=key, set_=changes)
        if changes
        else statement.on_conflict_do_nothing(index_elements=key),
        given,
    )


def insert_missing(connection: Connection, table: Table, rows: Iterable[Mapping[str, Any]]) -> list[tuple[Any, ...]]:
    """Insert the rows whose primary key is not there yet; returns the primary keys of those inserted."""
    given = [dict(row) for row in rows]
    if not given:
        return []
    key = [column.name for column in table.primary_key]
    statement = (
        _insert(connection, table)
        .on_conflict_do_nothing(index_elements=key)
        .returning(*(table.c[name] for name in key))
    )
    return [tuple(row) for row in connection.execute(statement, given)]
