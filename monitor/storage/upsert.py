"""Insert-or-update statements, which SQLite and PostgreSQL spell alike but SQLAlchemy keeps per dialect."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cache, lru_cache
from typing import Any, Final

from sqlalchemy import JSON, Column, Connection, Dialect, Table, bindparam, delete
from sqlalchemy.dialects import postgresql, sqlite

__all__ = ["bulk_select", "bulk_update", "bulk_upsert", "delete_rows", "insert_missing", "upsert"]

# Rows looked up in one statement.
TOGETHER: Final = 500


def _insert(dialect: str, table: Table) -> Any:
    return (postgresql if dialect == "postgresql" else sqlite).insert(table)


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
    # One statement for a row, executed for many: a statement with all rows' values takes longer to compile than to run.
    connection.execute(
        _upsert_statement(table, connection.dialect.name, tuple(given[0]), frozenset(add), frozenset(keep)), given
    )


@cache
def _upsert_statement(
    table: Table, dialect: str, columns: tuple[str, ...], add: frozenset[str], keep: frozenset[str]
) -> Any:
    """Made once: `excluded` is a copy of the whole table, which takes longer to make than a few rows to write."""
    key = [column.name for column in table.primary_key]
    statement = _insert(dialect, table)
    changes = {
        name: table.c[name] + statement.excluded[name] if name in add else statement.excluded[name]
        for name in columns
        if name not in key and name not in keep
    }
    if changes:
        return statement.on_conflict_do_update(index_elements=key, set_=changes)
    return statement.on_conflict_do_nothing(index_elements=key)


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


def bulk_select(
    connection: Connection, table: Table, columns: tuple[str, ...], places: Sequence[tuple[Any, ...]]
) -> list[tuple[Any, ...]]:
    """`columns` of the rows with these primary keys, in any order; those that are not there are left out.

    Values are as the driver gives them, JSON as text. Each key is sought by itself: SQLite reads the whole table for
    `(a, b) IN (...)`.
    """
    found: list[tuple[Any, ...]] = []
    for start in range(0, len(places), TOGETHER):
        part = places[start : start + TOGETHER]
        statement = _select_statement(table, connection.dialect, columns, len(part))
        values = tuple(value for place in part for value in place)
        found += [tuple(row) for row in connection.exec_driver_sql(statement, values)]
    return found


@lru_cache(maxsize=2 * TOGETHER)
def _select_statement(table: Table, dialect: Dialect, columns: tuple[str, ...], count: int) -> str:
    quote = dialect.identifier_preparer.quote
    keys = [quote(column.name) for column in table.primary_key]
    place = f"({', '.join(_place(column, dialect) for column in table.primary_key)})"
    json = "::text" if dialect.name == "postgresql" else ""
    wanted = ", ".join(f"t.{quote(name)}{json if isinstance(table.c[name].type, JSON) else ''}" for name in columns)
    same = " AND ".join(f"t.{key} = wanted.{key}" for key in keys)
    # Names of our own tables and columns; values are bound.
    return (
        f"WITH wanted ({', '.join(keys)}) AS (VALUES {', '.join([place] * count)}) "  # noqa: S608
        f"SELECT {wanted} FROM wanted JOIN {quote(table.name)} t ON {same}"
    )


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
        _insert(connection.dialect.name, table)
        .on_conflict_do_nothing(index_elements=key)
        .returning(*(table.c[name] for name in key))
    )
    return [tuple(row) for row in connection.execute(statement, given)]


def delete_rows(connection: Connection, table: Table, places: Iterable[tuple[Any, ...]]) -> None:
    """Delete the rows with these primary keys, each sought by itself (see `bulk_select`)."""
    names = [f"of_{column.name}" for column in table.primary_key]
    given = [dict(zip(names, place, strict=True)) for place in places]
    if given:
        same = (column == bindparam(name) for column, name in zip(table.primary_key, names, strict=True))
        connection.execute(delete(table).where(*same), given)
