"""Connections: nothing waits for ever, and what the database refuses is told in its own terms."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, event
from sqlalchemy.exc import IntegrityError

from monitor.errors import StorageError
from monitor.storage import engine as engines
from monitor.storage.engine import open_engine, reading, writing
from monitor.storage.migrate import upgrade


def test_a_server_that_takes_the_call_and_says_nothing_is_given_up() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        # Two seconds is the least that libpq waits.
        store = open_engine(f"postgresql+psycopg://u@127.0.0.1:{port}/d?connect_timeout=2")
        with pytest.raises(StorageError, match="timeout"), reading(store):
            pass


def test_the_network_is_bounded_unless_the_address_says_otherwise() -> None:
    store = open_engine("postgresql+psycopg://u@127.0.0.1:1/d?keepalives_idle=7")
    seen: dict[str, Any] = {}

    @event.listens_for(store, "do_connect")
    def connecting(_dialect: Any, _record: Any, _arguments: Any, parameters: dict[str, Any]) -> None:
        seen.update(parameters)

    with pytest.raises(StorageError), reading(store):
        pass
    assert seen["connect_timeout"] == engines.CONNECT_TIMEOUT_S
    assert seen["tcp_user_timeout"] == 60_000
    assert (str(seen["keepalives_idle"]), seen["keepalives_interval"], seen["keepalives_count"]) == ("7", 10, 3)


@pytest.mark.postgresql
def test_statements_and_locks_are_bounded_and_stay_so_after_a_roll_back(postgres_url: str) -> None:
    store = open_engine(postgres_url)
    for _ in range(2):
        with writing(store) as connection:
            assert connection.exec_driver_sql("show lock_timeout").scalar_one() == "30s"
            assert connection.exec_driver_sql("show statement_timeout").scalar_one() == "5min"
            connection.rollback()
    store.dispose()


@pytest.mark.postgresql
def test_a_migration_may_take_its_time(empty_postgres_url: str) -> None:
    store = open_engine(empty_postgres_url)
    seen: list[str] = []

    @event.listens_for(store, "before_cursor_execute")
    def executing(_connection: Any, cursor: Any, statement: str, *_: Any) -> None:
        if statement.lstrip().upper().startswith("CREATE TABLE"):
            cursor.execute("select current_setting('statement_timeout') || current_setting('lock_timeout')")
            seen.append(cursor.fetchone()[0])

    upgrade(store)
    assert set(seen) == {"00"}
    with reading(store) as connection:
        assert connection.exec_driver_sql("show statement_timeout").scalar_one() == "5min"
    store.dispose()


@pytest.mark.postgresql
def test_a_transaction_waits_for_a_lock_only_so_long(postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "BUSY_TIMEOUT_S", 0.1)
    holder, other = open_engine(postgres_url), open_engine(postgres_url)
    with writing(holder) as held:
        held.exec_driver_sql("lock table receivers in exclusive mode")
        with pytest.raises(StorageError, match=r"locked for over 0\.1 s"), writing(other) as waits:
            waits.exec_driver_sql("lock table receivers in exclusive mode")
    holder.dispose()
    other.dispose()


def test_a_server_whose_name_holds_full_or_locked_is_neither() -> None:
    store = open_engine("postgresql+psycopg://fully.locked@127.0.0.1:1/fulltext_locked")
    with pytest.raises(StorageError, match="The database cannot be used: connection failed"), reading(store):
        pass


def _fill_a_small_disk(store: Engine) -> None:
    with writing(store) as connection:
        connection.exec_driver_sql("create table locked (text)")
        connection.exec_driver_sql("pragma max_page_count = 3")
        connection.exec_driver_sql("insert into locked values (zeroblob(100000))")


def test_a_full_disk_is_told(tmp_path: Path) -> None:
    store = open_engine(f"sqlite:///{tmp_path / 'a.db'}")
    with pytest.raises(StorageError, match="The disk that holds the database is full"):
        _fill_a_small_disk(store)
    store.dispose()


def test_a_locked_file_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "BUSY_TIMEOUT_S", 0)
    holder, other = (open_engine(f"sqlite:///{tmp_path / 'a.db'}") for _ in range(2))
    with writing(holder), pytest.raises(StorageError, match="locked for over 0 s"), writing(other):
        pass
    holder.dispose()
    other.dispose()


def test_a_missing_table_or_column_asks_for_the_upgrade(store: Engine) -> None:
    for statement in ("select * from fulltext", "select fulltext from items"):
        with pytest.raises(StorageError, match="older than the program") as told, reading(store) as connection:
            connection.exec_driver_sql(statement)
        assert "db upgrade" in str(told.value)


def test_a_mistake_of_the_program_stays_one(store: Engine) -> None:
    with pytest.raises(IntegrityError), writing(store) as connection:
        connection.exec_driver_sql("insert into items (id) values (null)")
