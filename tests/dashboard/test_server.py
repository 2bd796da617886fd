from __future__ import annotations

import os
import signal
import socket
from pathlib import Path

import pytest
from pydantic import SecretStr

from dashboard.server import environment, run_dashboard
from monitor.errors import ConfigurationError
from monitor.settings import Settings, load_settings
from tests.dashboard.process import free_port, start, wait_until_healthy


def test_settings_survive_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("SENTIMENT_MONITOR_")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    settings = Settings(data_dir=tmp_path, dashboard_port=1234, log_json=True, webhook_secret=SecretStr("whsec_x"))
    for name, value in environment(settings).items():
        monkeypatch.setenv(name, value)
    assert load_settings() == settings.model_copy(update={"webhook_secret": SecretStr("")})


def test_a_port_in_use_is_one_sentence(make_settings: object) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ConfigurationError, match=f"cannot listen on 127.0.0.1:{port}"):
            run_dashboard(make_settings(dashboard_port=port))  # type: ignore[operator]


def test_an_unknown_address_is_one_sentence(make_settings: object) -> None:
    with pytest.raises(ConfigurationError, match="is not known"):
        run_dashboard(make_settings(dashboard_host="no.such.host.invalid"))  # type: ignore[operator]


def test_it_serves_stops_at_sigterm_and_writes_nothing(tmp_path: Path) -> None:
    port = free_port()
    process = start(tmp_path, port, f"sqlite:///{tmp_path / 'data' / 'monitor.db'}")
    try:
        wait_until_healthy(process, f"http://127.0.0.1:{port}", tmp_path)
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=20)
    finally:
        process.kill()
    assert process.returncode in (0, -signal.SIGTERM)
    said = (tmp_path / "dashboard.txt").read_text()
    assert f"http://127.0.0.1:{port}" in said
    assert "Traceback" not in said
    assert {path.name for path in tmp_path.iterdir()} <= {"dashboard.txt", "data"}
