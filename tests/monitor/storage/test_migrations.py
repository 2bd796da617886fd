from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Engine

from monitor.storage.engine import reading
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
