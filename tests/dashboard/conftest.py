"""A filled store, and the dashboard's settings pointed to it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from sqlalchemy import Engine

from monitor.storage.engine import open_engine
from monitor.storage.migrate import upgrade
from tests.dashboard import sample


@pytest.fixture(scope="session")
def sample_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SQLite file with the sample in it; tests work on copies."""
    path = tmp_path_factory.mktemp("sample") / "monitor.db"
    engine = open_engine(f"sqlite:///{path}")
    upgrade(engine)
    sample.fill(engine, count=600)
    with engine.connect() as connection:
        connection.exec_driver_sql("commit")
        connection.exec_driver_sql("pragma wal_checkpoint(truncate)")
    engine.dispose()
    return path


@pytest.fixture
def filled(sample_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Engine:
    """A copy of the sample, named by the environment."""
    path = tmp_path / "filled.db"
    shutil.copyfile(sample_file, path)
    monkeypatch.setenv("SENTIMENT_MONITOR_DATABASE_URL", f"sqlite:///{path}")
    return open_engine(f"sqlite:///{path}")
