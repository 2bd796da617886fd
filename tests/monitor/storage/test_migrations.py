from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Engine

from monitor.errors import StorageError
from monitor.storage.engine import reading, writing
from monitor.storage.migrate import current_revision, head_revision, upgrade
from monitor.storage.tables import metadata


def test_upgrade_from_nothing_gives_the_tables_of_the_code(empty_store: Engine) -> None:
    assert current_revision(empty_store) is None
    upgrade(empty_store)
    with empty_store.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, metadata) == []
    assert current_revision(empty_store) == head_revision()


def test_upgrade_again_changes_nothing(store: Engine) -> None:
    upgrade(store)
    with reading(store) as connection:
        assert connection.exec_driver_sql("select count(*) from alembic_version").scalar_one() == 1


def test_processes_that_start_together_may_all_upgrade(empty_store: Engine) -> None:
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: upgrade(empty_store), range(4)))
    assert current_revision(empty_store) == head_revision()


def test_a_database_of_a_newer_program_is_left_alone(empty_store: Engine) -> None:
    upgrade(empty_store)
    with writing(empty_store) as connection:
        connection.exec_driver_sql("update alembic_version set version_num = 'from_the_future'")
    for look in (upgrade, current_revision):
        with pytest.raises(StorageError, match=r"newer than this program.*from_the_future") as told:
            look(empty_store)
        assert "Upgrade sentiment-monitor" in str(told.value)
    with reading(empty_store) as connection:
        found = connection.exec_driver_sql("select version_num from alembic_version").scalar_one()
    assert found == "from_the_future"
