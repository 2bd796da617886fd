"""Every test of the store runs on SQLite and, where a server is installed, on PostgreSQL."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import Engine

from monitor.storage.engine import open_engine
from monitor.storage.migrate import upgrade
from tests.postgres import empty_postgres_url, postgres_cluster, postgres_url  # noqa: F401 - fixtures

KINDS = ["sqlite", pytest.param("postgresql", marks=pytest.mark.postgresql)]


@pytest.fixture(params=KINDS)
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Engine]:
    """A migrated, empty store."""
    if request.param == "sqlite":
        engine = open_engine(f"sqlite:///{tmp_path / 'monitor.db'}")
        upgrade(engine)
    else:
        engine = open_engine(request.getfixturevalue("postgres_url"))
    yield engine
    engine.dispose()


@pytest.fixture(params=KINDS)
def empty_store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Engine]:
    """A store without tables."""
    engine = open_engine(
        f"sqlite:///{tmp_path / 'monitor.db'}"
        if request.param == "sqlite"
        else request.getfixturevalue("empty_postgres_url")
    )
    yield engine
    engine.dispose()
