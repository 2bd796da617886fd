"""The command line in this process: fast enough to try every mistake."""

from __future__ import annotations

import io
import logging
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import structlog

from monitor.cli import app
from monitor.cli.context import root_flags
from tests.models.conftest import small_backbone, small_model

__all__ = ["Cli", "Done", "small_backbone", "small_model"]


class Done(NamedTuple):
    code: int
    out: str
    err: str


Cli = Callable[..., Done]


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Iterator[Cli]:
    """`cli("models", "list")` as a shell would run it, on a data folder of this test's own."""
    handlers, level = logging.getLogger().handlers[:], logging.getLogger().level

    def run(*arguments: str, stdin: bytes = b"") -> Done:
        monkeypatch.setattr(sys, "argv", ["sentiment-monitor", "--data-dir", str(tmp_path / "data"), *arguments])
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        token = root_flags.set(None)
        try:
            with pytest.raises(SystemExit) as stopped:
                app.main()
        finally:
            root_flags.reset(token)
        told = capsys.readouterr()
        return Done(int(stopped.value.code or 0), told.out, told.err)

    yield run
    structlog.reset_defaults()
    structlog.contextvars.clear_contextvars()
    logging.getLogger().handlers[:] = handlers
    logging.getLogger().setLevel(level)
