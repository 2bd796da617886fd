"""What `status` and `doctor` say of processes that do not stay up, and of codecs that are missing."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import aiokafka.codec
import kafka.codec
import pytest

from monitor import supervisor as supervisor_module
from monitor.cli import doctor
from monitor.datadir import owned
from monitor.errors import MonitorError
from monitor.supervisor import ProcessSpec, Supervisor
from tests.monitor.cli.conftest import Cli
from tests.monitor.test_supervisor import until

BAD = (sys.executable, "-c", "print('error: No lz4 here.'); raise SystemExit(3)")


@pytest.fixture
def light(monkeypatch: pytest.MonkeyPatch) -> None:
    """`doctor` without loading the model, which is no part of these tests."""
    monkeypatch.setattr(doctor, "CHECKS", tuple(check for check in doctor.CHECKS if check[0] != "model"))


def test_a_process_that_ends_again_and_again_is_seen(
    cli: Cli, light: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor_module, "RESTART_FIRST_S", 0.01)
    folder = tmp_path / "data"
    assert cli("db", "upgrade").code == 0
    assert "processes" not in cli("status").out
    supervisor = Supervisor([ProcessSpec("aggregator", BAD)], {}, folder / "logs", 1)
    with owned(folder):
        supervisor.start()
        assert "aggregator running" in " ".join(cli("status").out.split())

        def gives_up() -> bool:
            try:
                supervisor.check()
            except MonitorError:
                return True
            return False

        assert until(gives_up, 30)
        supervisor.stop()
    # The supervisor has ended because of it: that is told until another one begins.
    done = cli("status", "--json")
    assert done.code == 0
    found = json.loads(done.out)["processes"]["aggregator"]
    assert (found["state"], found["restarts"], found["last_code"]) == ("gave_up", 2, 3)
    assert (found["last_words"], found["log"]) == ("No lz4 here.", str(folder / "logs" / "aggregator.log"))
    assert f"code 3: No lz4 here. Its output is in {found['log']}." in cli("status").err
    done = cli("doctor")
    assert done.code == 1
    (line,) = (line for line in done.out.splitlines() if line.startswith("BROKEN"))
    assert "aggregator" in line
    assert "aggregator.log" in "".join(done.out.split())


@pytest.mark.parametrize(
    ("module", "package"), [(aiokafka.codec, "cramjam"), (kafka.codec, "lz4")], ids=["aggregator", "worker"]
)
def test_a_missing_codec_is_broken_and_what_to_install_is_said(
    cli: Cli, light: None, monkeypatch: pytest.MonkeyPatch, module: object, package: str
) -> None:
    assert cli("db", "upgrade").code == 0
    assert cli("doctor").code == 0
    monkeypatch.setattr(module, "has_lz4", lambda: False)
    done = cli("doctor")
    assert done.code == 1
    (line,) = (line for line in done.out.splitlines() if line.startswith("BROKEN"))
    assert f"Install {package}." in line


def test_a_missing_crc32c_is_broken(cli: Cli, light: None, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cli("db", "upgrade").code == 0
    monkeypatch.setitem(sys.modules, "crc32c", None)
    done = cli("doctor")
    assert done.code == 1
    assert "Install crc32c." in done.out
