"""The deployment files stay in step with the command line and the settings, as far as that shows without an engine."""

from __future__ import annotations

import dataclasses
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import pytest
import yaml

from monitor.cli.app import VERBS
from monitor.cli.processes import MEASURED, process_specs
from monitor.settings import ENV_PREFIX, Settings
from monitor.storage.engine import open_engine
from monitor.storage.migrate import upgrade
from monitor.supervisor import Supervisor
from tests.models.tiny import tiny_backbone, tiny_model

ROOT = Path(__file__).resolve().parent.parent
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
OWN = {name: service for name, service in COMPOSE["services"].items() if "sentiment-monitor" in service["image"]}


def test_compose_follows_the_specification() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", "docker-compose.yml"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("name", OWN)
def test_every_command_is_a_verb(name: str) -> None:
    assert OWN[name]["command"][0] in VERBS


@pytest.mark.parametrize("name", OWN)
def test_every_variable_is_a_setting(name: str) -> None:
    known = {f"{ENV_PREFIX}{field.upper()}" for field in Settings.model_fields}
    given = set(OWN[name]["environment"])
    assert given <= known
    assert {f"{ENV_PREFIX}KAFKA_BOOTSTRAP_SERVERS", f"{ENV_PREFIX}DATABASE_URL"} <= given


def test_every_role_is_there_in_both_profiles() -> None:
    for profile in ("cpu", "gpu"):
        roles = {s["command"][0] for s in OWN.values() if profile in s.get("profiles", [])}
        assert {"worker", "aggregator", "notifier", "scheduler", "dashboard", "feed"} <= roles


def test_every_lasting_service_has_a_health_check_and_restarts() -> None:
    for name, service in COMPOSE["services"].items():
        if service["restart"] != "no":
            assert "healthcheck" in service, name
            assert service["restart"] == "unless-stopped", name


@pytest.mark.kafka
@pytest.mark.slow
def test_every_probe_of_the_metrics_port_is_answered(
    make_settings: Callable[..., Settings], broker: str, tmp_path: Path
) -> None:
    """The roles side by side as `up` runs them, each asked what the compose file asks its container."""
    probes = {
        service["command"][0]: service["healthcheck"]["test"]
        for service in OWN.values()
        if ":9100/ready" in str(service.get("healthcheck"))
    }
    assert set(probes) == set(MEASURED)
    tiny_model(tmp_path / "model", tiny_backbone(tmp_path / "backbone"), vision=False)
    settings = make_settings(
        kafka_bootstrap_servers=broker,
        metrics_port=_free_ports(len(MEASURED)),
        model=str(tmp_path / "model"),
        device="cpu",
    )
    upgrade(open_engine(settings.database))
    supervisor = Supervisor((), settings.environment(), tmp_path / "logs")
    try:
        specs = {spec.name: spec for spec in process_specs(settings, MEASURED)}
        for spec in specs.values():
            # Not one after the other: they start within the same seconds.
            supervisor.add(dataclasses.replace(spec, ready=lambda: True))
        deadline = time.monotonic() + 120
        for role, spec in specs.items():
            port = spec.environment[f"{ENV_PREFIX}METRICS_PORT"]
            command = [sys.executable, *probes[role][2:-1], probes[role][-1].replace(":9100", f":{port}")]
            while (asked := subprocess.run(command, capture_output=True, text=True)).returncode:
                log = (tmp_path / "logs" / f"{role}.log").read_text()
                assert time.monotonic() < deadline, (role, asked.stderr, log)
                time.sleep(0.2)
    finally:
        supervisor.stop()


def _free_ports(count: int) -> int:
    """The first of `count` ports in a row that nobody listens on."""
    while True:
        with ExitStack() as held:
            first = held.enter_context(socket.create_server(("127.0.0.1", 0))).getsockname()[1]
            with suppress(OSError, OverflowError):
                for port in range(first + 1, first + count):
                    held.enter_context(socket.create_server(("127.0.0.1", port)))
                return int(first)


def test_what_must_outlive_a_container_lies_on_its_volume() -> None:
    services = COMPOSE["services"]
    image = (ROOT / "Dockerfile").read_text()
    places = {
        "kafka": services["kafka"]["environment"]["KAFKA_LOG_DIRS"],
        # Where PostgreSQL's image keeps the database unless PGDATA says otherwise.
        "postgres": services["postgres"]["environment"].get("PGDATA", "/var/lib/postgresql/data"),
        "data": re.findall(rf"{ENV_PREFIX}DATA_DIR=(\S+)", image)[0],
    }
    assert set(places) == set(COMPOSE["volumes"])
    mounted = {volume for service in services.values() for volume in service["volumes"]}
    assert mounted == {f"{volume}:{place}" for volume, place in places.items()}


def test_no_password_stands_in_the_file_and_ports_are_loopback() -> None:
    for name, service in COMPOSE["services"].items():
        for variable, value in service.get("environment", {}).items():
            if "PASSWORD" in variable or "TOKEN" in variable or "SECRET" in variable:
                assert str(value).startswith("${"), (name, variable)
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", [])), name


def test_every_variable_of_the_compose_file_is_in_the_example() -> None:
    wanted = set(re.findall(r"\$\{([A-Z_]+)", (ROOT / "docker-compose.yml").read_text()))
    given = set(re.findall(r"^([A-Z_]+)=", (ROOT / "deploy" / "env.example").read_text(), re.MULTILINE))
    assert wanted == given


def test_the_image_copies_what_exists_and_runs_a_verb() -> None:
    text = (ROOT / "Dockerfile").read_text()
    for sources in re.findall(r"^COPY (?!--from)(.+)$", text, re.MULTILINE):
        for source in sources.split()[:-1]:
            assert (ROOT / source).exists(), source
    command = re.search(r'^CMD \["([a-z-]+)"', text, re.MULTILINE)
    assert command is not None
    assert command[1] in VERBS
    assert re.search(r"^USER monitor$", text, re.MULTILINE)


def test_the_image_installs_with_the_constraints() -> None:
    pins = dict(
        line.split("==")
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if "==" in line and " " not in line
    )
    assert pins["faust-streaming"] == "0.15.3"
    assert "-c constraints.txt" in (ROOT / "Dockerfile").read_text()
