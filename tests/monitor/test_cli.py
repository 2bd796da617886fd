"""The command table: every verb is there, explains itself, and fails in one clear sentence."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from monitor.cli import app
from monitor.cli.app import VERBS


def run(*arguments: str, stdin: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "monitor.cli.app", *arguments],
        input=stdin,
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ | environment,
    )


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_explains_itself(
    verb: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["sentiment-monitor", verb, "--help"])
    with pytest.raises(SystemExit) as stopped:
        app.main()
    assert stopped.value.code == 0
    assert f"sentiment-monitor {verb}" in capsys.readouterr().out


def test_the_root_help_lists_every_verb_and_loads_no_torch() -> None:
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            (
                "import sys; from monitor.cli import app\n"
                "try: app.main()\n"
                "finally: print('torch' in sys.modules, 'kafka' in sys.modules)"
            ),
            "--help",
        ],
        capture_output=True,
        text=True,
    )
    assert all(f"  {verb}" in done.stdout for verb in VERBS)
    assert done.stdout.strip().endswith("False False")


@pytest.mark.parametrize(
    ("arguments", "environment", "said"),
    [
        (("nonsense",), {}, "No such command"),
        (("status", "--jsom"), {}, "No such option"),
        (("--data-dir", "/proc/none/x", "db", "upgrade"), {}, "cannot be made"),
        (("db", "upgrade"), {"SENTIMENT_MONITOR_DATABASE_URL": "mysql://x/y"}, "not supported"),
        (("db", "upgrade"), {"SENTIMENT_MONITOR_DATABASE_URL": "nonsense"}, "not a SQLAlchemy URL"),
        (("config", "show"), {"SENTIMENT_MONITOR_LOG_LEVEL": "loud"}, "log_level"),
        (("broker",), {"SENTIMENT_MONITOR_KAFKA_BOOTSTRAP_SERVERS": "k:9092"}, "names a cluster"),
    ],
)
def test_mistakes_are_one_sentence_and_no_traceback(
    arguments: tuple[str, ...], environment: dict[str, str], said: str
) -> None:
    done = run(*arguments, **environment)
    assert done.returncode != 0
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_secrets_are_masked(tmp_path: Path) -> None:
    done = run(
        "config",
        "show",
        SENTIMENT_MONITOR_WEBHOOK_SECRET="whsec_hidden",
        SENTIMENT_MONITOR_DATABASE_URL="postgresql://u:hidden@h/d",
        SENTIMENT_MONITOR_DATA_DIR=str(tmp_path),
    )
    assert done.returncode == 0
    assert "hidden" not in done.stdout
    assert "********" in done.stdout


def test_status_of_an_empty_store_when_nothing_runs(tmp_path: Path) -> None:
    done = run("--data-dir", str(tmp_path), "status", "--json", SENTIMENT_MONITOR_BROKER_PORT="1")
    assert done.returncode == 0
    assert '"items": 0' in done.stdout
    assert "lag unknown" in done.stderr
