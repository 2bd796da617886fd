"""What reaches a process's log."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from monitor import telemetry
from monitor.settings import load_settings
from monitor.telemetry import configure_logging, get_logger


@pytest.fixture
def put_back() -> Iterator[None]:
    """The root logger as it was."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


@pytest.mark.usefixtures("put_back")
def test_a_client_that_repeats_itself_is_heard_once_in_a_while(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    configure_logging(load_settings(data_dir=tmp_path), "worker")
    client, own = logging.getLogger("aiokafka.conn"), get_logger("consumers.worker")

    def outage() -> list[str]:
        for attempt in range(5):
            client.error("Unable to connect to node %d", attempt)
            own.warning("trying again")
        client.error("Something else")
        return capsys.readouterr().err.splitlines()

    first, second = outage(), outage()
    assert [sum(words in line for line in first) for words in ("Unable", "Something", "again")] == [1, 1, 5]
    assert [sum(words in line for line in second) for words in ("Unable", "Something", "again")] == [0, 0, 5]
    now += telemetry.SELDOM_S
    (line,) = [line for line in outage() if "Unable" in line]
    assert "node 0 (and 9 more of this kind)" in line
