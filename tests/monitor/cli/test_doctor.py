"""`doctor` looks at the model that workers take."""

from __future__ import annotations

import io
import shutil
import sys
from pathlib import Path

import pytest
from rich.console import Console

from models.model_file import read_model_file
from models.registry import shipped
from monitor.cli import doctor
from monitor.cli.doctor import Finding, lines_of
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


@pytest.mark.parametrize("room", [60, 80, 120, sys.maxsize])
def test_a_path_is_never_broken(room: int) -> None:
    address = "sqlite:////srv/sentiment-monitor/data-of-the-desk/2026-03/monitor.db"
    for finding in (
        Finding("database", True, address),
        Finding("notifier", False, "The notifier has failed.", f"Look at {address} and start it again."),
    ):
        lines = lines_of(finding, room, [])
        assert sum(address in line for line in lines) == 1
        assert max(map(len, lines)) <= max(room, 4 + len(address))
        assert lines[0].split()[1] == finding.what
        assert [line[:4].strip() for line in lines[1:]] == [""] * (len(lines) - 1)
    assert len(lines_of(finding, sys.maxsize, [])) == 1
    assert " ".join(" ".join(lines).split()) == (
        f"BROKEN notifier The notifier has failed. Look at {address} and start it again."
    )


@pytest.mark.parametrize("room", [60, 80, 120, sys.maxsize])
def test_nor_is_one_with_blanks_in_it(room: int) -> None:
    folder = "/srv/my data folder/with a long name | for the whole  desk"
    address = f"sqlite:///{folder}/monitor.db"
    for finding, place in (
        (Finding("data folder", True, folder), folder),
        (Finding("database", True, address), address),
        (
            Finding("worker", False, "The worker has ended again and again.", f"Look at {folder}/logs/worker.log."),
            folder,
        ),
        (Finding("data folder", False, f"Permission denied ({folder})", "Check the folder's rights."), folder),
    ):
        lines = lines_of(finding, room, [address, folder])
        assert sum(place in line for line in lines) == 1
        if room == sys.maxsize:
            assert len(lines) == 1


@pytest.mark.parametrize(
    ("finding", "shown"),
    [
        (Finding("database", True, ""), "ok      database"),
        (Finding("database", False, ""), "BROKEN  database"),
        (Finding("database", False, "", "Mend it."), "BROKEN  database                Mend it."),
    ],
)
def test_nothing_found_is_a_line_all_the_same(finding: Finding, shown: str) -> None:
    for room in (80, 20):
        assert " ".join(" ".join(lines_of(finding, room, [])).split()) == " ".join(shown.split())
    assert lines_of(finding, 80, []) == [shown]


def test_a_folder_with_blanks_is_shown_whole(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = io.StringIO()
    narrow = Console(width=80, file=shown, force_terminal=True, highlight=False, soft_wrap=True, color_system=None)
    monkeypatch.setattr(doctor, "out", narrow)
    monkeypatch.setattr(doctor, "CHECKS", tuple(check for check in doctor.CHECKS if check[0] != "model"))
    folder = tmp_path / "my data folder" / "with a long name | for the whole desk"
    folder.mkdir(parents=True)
    database = f"sqlite:///{tmp_path}/an other folder/of the desk/monitor.db"
    (tmp_path / "an other folder" / "of the desk").mkdir(parents=True)
    for flags, place in (
        (("--data-dir", str(folder)), f"{folder}/monitor.db"),
        (("--database-url", database), database),
    ):
        assert cli(*flags, "db", "upgrade").code == 0
        assert cli(*flags, "doctor").code == 0
        lines = shown.getvalue().splitlines()
        assert sum(line.endswith(place) for line in lines) == 1
    assert sum(line.strip() == str(folder) for line in lines) == 1


def test_on_a_terminal_no_line_is_longer_than_it(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = io.StringIO()
    narrow = Console(width=80, file=shown, force_terminal=True, highlight=False, soft_wrap=True, color_system=None)
    monkeypatch.setattr(doctor, "out", narrow)
    monkeypatch.setattr(doctor, "CHECKS", tuple(check for check in doctor.CHECKS if check[0] != "model"))
    assert cli("db", "upgrade").code == 0
    assert cli("doctor").code == 0
    (line,) = (line for line in shown.getvalue().splitlines() if "monitor.db" in line)
    assert line.strip().endswith("/data/monitor.db")
    assert all(len(line) <= 80 for line in shown.getvalue().splitlines() if "/" not in line)


def test_without_a_store_it_is_the_shipped_one(cli: Cli) -> None:
    done = cli("doctor")
    assert model_line(done).endswith("(shipped), weights verified")
