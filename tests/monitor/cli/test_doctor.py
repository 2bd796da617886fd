"""`doctor` looks at the model that workers take."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from rich.console import Console

from models.bundle import read_model_file
from models.registry import shipped
from monitor.cli import doctor
from tests.monitor.cli.conftest import Cli, Done


@pytest.fixture(autouse=True)
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    """A line for every finding."""
    monkeypatch.setattr(doctor, "out", Console(width=400, highlight=False))


def model_line(done: Done) -> str:
    """What is said about the model."""
    (line,) = (line for line in done.out.splitlines() if line.split()[1:2] == ["model"])
    return " ".join(line.split())


def test_the_promoted_model_is_the_one_that_is_looked_at(cli: Cli, tmp_path: Path, small_model: Path) -> None:
    assert cli("db", "upgrade").code == 0
    version = read_model_file(small_model).version
    assert cli("models", "promote", str(small_model)).code == 0
    assert model_line(cli("doctor")) == f"ok model {version} (promoted), weights verified"
    folder = tmp_path / "data" / "models" / version
    for weights in folder.glob("*.safetensors"):
        weights.write_bytes(weights.read_bytes()[:-1])
    done = cli("doctor")
    assert done.code == 1
    assert model_line(done).startswith("BROKEN model ")
    shutil.rmtree(folder)
    done = cli("doctor")
    assert done.code == 1
    assert f"registered model {version} is missing" in model_line(done)


def test_a_shipped_name_a_path_and_a_wrong_name(cli: Cli, small_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cli("db", "upgrade").code == 0
    version = read_model_file(shipped()["research"]).version
    for name, told in (("research", version), (str(small_model), read_model_file(small_model).version)):
        monkeypatch.setenv("SENTIMENT_MONITOR_MODEL", name)
        assert model_line(cli("doctor")) == f"ok model {told} (named by the setting model), weights verified"
    monkeypatch.setenv("SENTIMENT_MONITOR_MODEL", "nobody")
    done = cli("doctor")
    assert done.code == 1
    assert "There is no model nobody." in model_line(done)


def test_without_a_store_it_is_the_shipped_one(cli: Cli) -> None:
    done = cli("doctor")
    assert model_line(done).endswith("(shipped), weights verified")
