"""Insert-or-update statements, which SQLite and PostgreSQL spell alike but SQLAlchemy keeps per dialect."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from typing import Any

from sqlalchemy import JSON, Column, Connection, Dialect, Table
from sqlalchemy.dialects import postgresql, sqlite

__all__ = ["bulk_update", "bulk_upsert", "insert_missing", "upsert"]


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


def bulk_upsert(
    connection: Connection, table: Table, rows: Sequence[tuple[Any, ...]], *, add: tuple[str, ...] = ()
) -> None:
    """`upsert` for the hot path: rows are tuples of all columns in the table's order, values as the driver takes them.

    That is, no type of the table converts them: JSON is text, times are epoch milliseconds. Preparing many rows by the
    types takes several times as long as writing them.
    """
    if rows:
        connection.exec_driver_sql(_bulk_statement(table, connection.dialect, add), list(rows))


def bulk_update(
    connection: Connection, table: Table, columns: tuple[str, ...], rows: Sequence[tuple[Any, ...]]
) -> None:
    """Overwrite `columns` of rows that are there: each of `rows` has their values, then the primary key's.

    Values are as the driver takes them (see `bulk_upsert`).
    """
    if not rows:
        return
    dialect = connection.dialect
    quote = dialect.identifier_preparer.quote
    changes = ", ".join(f"{quote(name)} = {_place(table.c[name], dialect)}" for name in columns)
    places = " AND ".join(f"{quote(c.name)} = {_place(c, dialect)}" for c in table.primary_key)
    # Names of our own tables and columns; values are bound.
    statement = f"UPDATE {quote(table.name)} SET {changes} WHERE {places}"  # noqa: S608
    connection.exec_driver_sql(statement, list(rows))


def _place(column: Column[Any], dialect: Dialect) -> str:
    if dialect.name != "postgresql":
        return "?"
    return "%s::jsonb" if isinstance(column.type, JSON) else "%s"


@cache
def _bulk_statement(table: Table, dialect: Dialect, add: tuple[str, ...]) -> str:
    quote = dialect.identifier_preparer.quote
    values = [_place(c, dialect) for c in table.columns]
    key = {column.name for column in table.primary_key}
    name = quote(table.name)
    changes = ", ".join(
        f"{quote(c.name)} = {name}.{quote(c.name)} + excluded.{quote(c.name)}"
        if c.name in add
        else f"{quote(c.name)} = excluded.{quote(c.name)}"
        for c in table.columns
        if c.name not in key
    )
    columns = ", ".join(quote(c.name) for c in table.columns)
    keys = ", ".join(quote(column.name) for column in table.primary_key)
    # Names of our own tables and columns; values are bound.
    return f"INSERT INTO {name} ({columns}) VALUES ({', '.join(values)}) ON CONFLICT ({keys}) DO UPDATE SET {changes}"  # noqa: S608


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
