"""The command table: every verb is there, explains itself, and fails in one clear sentence."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from monitor.cli import app
from monitor.cli.app import VERBS
from monitor.cli.processes import MEASURED, free_dashboard_port, process_specs
from monitor.datadir import owned
from monitor.settings import load_settings


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
    shown = capsys.readouterr().out
    # Plain, without boxes, as every other verb.
    assert shown.startswith(f"Usage: sentiment-monitor {verb} ")
    assert "╭" not in shown


def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, said in (("silence",), "error: Missing argument 'KEY'."), ((), "Usage: sentiment-monitor alerts "):
        monkeypatch.setattr(sys, "argv", ["sentiment-monitor", "alerts", *arguments])
        with pytest.raises(SystemExit) as stopped:
            app.main()
        assert stopped.value.code == 2
        assert capsys.readouterr().err.startswith(said)


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
        (("config", "show"), {"SENTIMENT_MONITOR_KAFKA_SECURITY_PROTOCOL": "TLS"}, "'SASL_PLAINTEXT' or 'SASL_SSL'."),
        (("status",), {"SENTIMENT_MONITOR_KAFKA_SASL_MECHANISM": "GSSAPI"}, "'SCRAM-SHA-256' or 'SCRAM-SHA-512'."),
        (
            ("status",),
            {"SENTIMENT_MONITOR_KAFKA_SECURITY_PROTOCOL": "sasl_ssl"},
            "kafka_sasl_mechanism is wrong: must be",
        ),
        (("status",), {"SENTIMENT_MONITOR_KAFKA_SASL_MECHANISM": "plain"}, "needs kafka_security_protocol SASL_"),
        (("status",), {"SENTIMENT_MONITOR_KAFKA_BOOTSTRAP_SERVERS": "kafka-1"}, "which 'kafka-1' is not."),
        (("worker",), {"SENTIMENT_MONITOR_KAFKA_BOOTSTRAP_SERVERS": "a:9092,b:99999"}, "which 'b:99999' is not."),
        (("--kafka-bootstrap-servers", "PLAINTEXT://k:9092", "status"), {}, "must be host:port, several of them"),
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
        SENTIMENT_MONITOR_WEBHOOK_URLS="https://a.example/hidden, https://u:hidden@b.example:8443/x?t=hidden",
        SENTIMENT_MONITOR_DATABASE_URL="postgresql://u:hidden@h/d",
        SENTIMENT_MONITOR_DATA_DIR=str(tmp_path),
    )
    assert done.returncode == 0
    assert "hidden" not in done.stdout
    assert "webhook_urls = 'https://a.example/…, https://b.example:8443/…'" in done.stdout
    assert "********" in done.stdout


def test_status_of_an_empty_store_when_nothing_runs(tmp_path: Path) -> None:
    # Whoever listens on the port is not the broker of this folder.
    with socket.create_server(("127.0.0.1", 0)) as stranger:
        port = stranger.getsockname()[1]
        done = run("--data-dir", str(tmp_path), "status", "--json", SENTIMENT_MONITOR_BROKER_PORT=str(port))
    assert done.returncode == 0
    assert '"items": 0' in done.stdout
    assert done.stderr.startswith(f"lag unknown: No embedded broker runs in {tmp_path}. Start one (")
    assert len(done.stderr.splitlines()) == 1


def test_status_without_its_broker_says_so_in_its_place(tmp_path: Path) -> None:
    folder = tmp_path / ("long-name-" * 9)
    cluster = ("--kafka-bootstrap-servers", "127.0.0.1:1")
    for flags, said, hint in (
        ((), "unknown: no broker runs", []),
        (
            cluster,
            "unknown: No Kafka broker answers at 127.0.0.1:1.",
            ["Check kafka_bootstrap_servers, and that the cluster runs."],
        ),
    ):
        done = run("--data-dir", str(folder), *flags, "status", COLUMNS="80")
        assert (done.returncode, done.stderr) == (0, "")
        lines = [line.strip() for line in done.stdout.splitlines()]
        (at,) = (i for i, line in enumerate(lines) if "unknown" in line)
        assert " ".join(lines[at].split()) == f"lag {said}"
        # What to do about it stands right below.
        following = lines[at + 1 :]
        assert following[: len(hint)] == hint
        assert following[len(hint)].startswith("watermark")
        assert max(map(len, lines)) <= 80


def test_a_taken_port_of_the_http_feed_is_one_sentence(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = run("--data-dir", str(tmp_path), "feed", "http", "--no-token", "--port", str(port))
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: `feed http` cannot listen on 127.0.0.1:{port}: ")
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("verb", ["demo", "up"])
def test_a_folder_in_which_another_one_runs_is_left_alone(verb: str, tmp_path: Path) -> None:
    (tmp_path / "monitor.db").write_bytes(b"theirs")
    if verb == "demo":
        (tmp_path / "demo.json").write_text("{}")
    # The other one listens on the dashboard's port, too: that is no news.
    with owned(tmp_path), socket.create_server(("127.0.0.1", 0)) as dashboard:
        port = str(dashboard.getsockname()[1])
        done = run("--data-dir", str(tmp_path), verb, SENTIMENT_MONITOR_DASHBOARD_PORT=port)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: Another `demo` or `up` runs in {tmp_path}.")
    assert (tmp_path / "monitor.db").read_bytes() == b"theirs"


def test_processes_of_one_machine_serve_their_metrics_on_different_ports(tmp_path: Path) -> None:
    settings = load_settings(data_dir=tmp_path, metrics_port=9100)
    specs = {spec.name: spec.environment for spec in process_specs(settings)}
    served = {name: specs[name]["SENTIMENT_MONITOR_METRICS_PORT"] for name in MEASURED}
    assert served == {"worker": "9100", "aggregator": "9101", "notifier": "9102", "scheduler": "9103"}


def test_the_dashboard_port_is_known_and_free_before_anything_starts(tmp_path: Path) -> None:
    chosen = free_dashboard_port(load_settings(data_dir=tmp_path, dashboard_port=0))["dashboard_port"]
    assert free_dashboard_port(load_settings(data_dir=tmp_path, dashboard_port=chosen)) == {"dashboard_port": chosen}
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        for verb in ("demo", "up"):
            done = run("--data-dir", str(tmp_path / verb), verb, SENTIMENT_MONITOR_DASHBOARD_PORT=str(port), DISPLAY="")
            assert done.returncode == 2
            assert f"127.0.0.1:{port}: Address already in use." in done.stderr
            assert "Traceback" not in done.stderr
            assert not (tmp_path / verb / "logs").exists()
