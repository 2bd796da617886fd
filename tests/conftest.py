"""Fixtures for the whole suite: a broker, settings that point to it, a migrated store."""

from __future__ import annotations

import logging
import os
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine

from consumers.broker.process import running_broker
from monitor.settings import Settings
from monitor.storage.engine import open_engine
from monitor.storage.migrate import upgrade

BOOTSTRAP_SERVERS = "SENTIMENT_MONITOR_TEST_BOOTSTRAP_SERVERS"


@pytest.fixture(scope="session", autouse=True)
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A home folder of the suite's own: what the product, its libraries and the browser keep there (the measured
    precision, caches, crash reports, ids) is none of the contributor's."""
    folder = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(folder))
        for name in ("CONFIG", "CACHE", "DATA", "STATE"):
            patch.delenv(f"XDG_{name}_HOME", raising=False)
        yield folder


@pytest.fixture(autouse=True)
def logging_as_before() -> Iterator[None]:
    """Takes away what a command has set up to log: it writes to an output that ends with the test."""
    root = logging.getLogger()
    level = root.level
    yield
    for handler in [one for one in root.handlers if type(one) is logging.StreamHandler]:
        root.removeHandler(handler)
    root.setLevel(level)


@pytest.fixture(scope="session")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Bootstrap servers: of the cluster named in the environment, else of an embedded broker of this session."""
    named = os.environ.get(BOOTSTRAP_SERVERS, "")
    if named:
        yield named
        return
    with running_broker(tmp_path_factory.mktemp("broker")) as address:
        yield address


@pytest.fixture
def make_settings(tmp_path: Path) -> Callable[..., Settings]:
    """Settings with a folder, a SQLite file and a topic prefix of this test's own; takes any setting."""

    def make(**values: Any) -> Settings:
        defaults: dict[str, Any] = {"data_dir": tmp_path / "data", "topic_prefix": f"t{uuid.uuid4().hex[:12]}."}
        return Settings(**{**defaults, **values})

    return make


@pytest.fixture
def kafka_settings(broker: str, make_settings: Callable[..., Settings]) -> Settings:
    """Settings on the session's broker. Sessions are as short as Apache Kafka allows unless configured otherwise."""
    return make_settings(kafka_bootstrap_servers=broker, kafka_session_timeout_s=6.0)


@pytest.fixture
def store(make_settings: Callable[..., Settings]) -> Iterator[Engine]:
    """A migrated, empty SQLite store in the test's folder (the one that `kafka_settings` names)."""
    engine = open_engine(make_settings().database)
    upgrade(engine)
    yield engine
    engine.dispose()
