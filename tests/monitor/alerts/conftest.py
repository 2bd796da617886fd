"""Stores for the tests of alerts: SQLite, and where a server is installed PostgreSQL as well."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from sqlalchemy import Engine

from monitor.storage.engine import open_engine
from tests.monitor.alerts.builders import new_store
from tests.monitor.alerts.delivering import ScriptedReceiver
from tests.postgres import postgres_cluster, postgres_url  # noqa: F401 - fixtures


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Engine]:
    """A migrated, empty SQLite store."""
    engine = new_store(tmp_path)
    yield engine
    engine.dispose()


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.postgresql)])
def any_store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Engine]:
    """A migrated, empty store of either kind."""
    engine = new_store(tmp_path) if request.param == "sqlite" else open_engine(request.getfixturevalue("postgres_url"))
    yield engine
    engine.dispose()


@pytest.fixture
def scripted() -> Iterator[Callable[..., ScriptedReceiver]]:
    made: list[ScriptedReceiver] = []

    def make(answer: Callable[[int], tuple[int, dict[str, str]] | None]) -> ScriptedReceiver:
        made.append(ScriptedReceiver(answer))
        return made[-1]

    yield make
    for receiver in made:
        receiver.close()
