"""The whole product on the bundled stream: undisturbed, and with its processes killed again and again."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from importlib import resources
from pathlib import Path

import pytest

from tests.end_to_end.pipeline import Outcome, run_pipeline

STREAM = Path(str(resources.files("monitor") / "data" / "demo" / "stream.jsonl"))
# What scripts/build_demo_stream.py plants.
SURGE_KEY = "ticker:INFY"
SURGE_START = datetime(2026, 3, 6, 14, 2, tzinfo=UTC)
KILLS = (
    (0.1, "worker"),
    (0.3, "aggregator"),
    (0.45, "worker"),
    (0.6, "notifier"),
    (0.75, "aggregator"),
)
# The two days before the surge are history enough for the judge.
REPLAYED_FROM = datetime(2026, 3, 5, 0, tzinfo=UTC)

pytestmark = [pytest.mark.kafka, pytest.mark.slow, pytest.mark.timeout(400)]


@pytest.fixture(scope="module")
def replayed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The end of the bundled stream, so that two runs of it fit into the suite's time."""
    path = tmp_path_factory.mktemp("stream") / "stream.jsonl"
    lines = []
    for line in map(json.loads, STREAM.read_text(encoding="utf-8").splitlines()):
        if datetime.fromisoformat(line["published_at"]) >= REPLAYED_FROM:
            if "chart" in line:
                line["chart"] = str(STREAM.parent / line["chart"])
            lines.append(json.dumps(line))
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, replayed: Path) -> Outcome:
    return run_pipeline(tmp_path_factory.mktemp("undisturbed"), replayed)


def test_every_replayed_item_is_stored_and_counted_once(undisturbed: Outcome, replayed: Path) -> None:
    lines = [json.loads(line) for line in replayed.read_text(encoding="utf-8").splitlines()]
    assert set(undisturbed.items) == {line["id"] for line in lines}
    assert undisturbed.counted == undisturbed.item_keys
    assert sum(items for _, _, items, _ in undisturbed.ticks.values()) == len(undisturbed.counted)
    assert not undisturbed.dead_letters


def test_charts_are_read_with_their_items(undisturbed: Outcome, replayed: Path) -> None:
    with_chart = {
        line["id"] for line in map(json.loads, replayed.read_text(encoding="utf-8").splitlines()) if line.get("chart")
    }
    assert with_chart
    assert {i for i, (_, _, modality) in undisturbed.items.items() if modality == "both"} == with_chart


def test_the_planted_surge_alerts_and_resolves(undisturbed: Outcome) -> None:
    fired = [e for e in undisturbed.episodes.values() if e[1] == SURGE_KEY]
    assert len(fired) == 1
    _, _, started_at, fired_at, resolved_at = fired[0]
    assert SURGE_START <= started_at <= fired_at <= SURGE_START + timedelta(minutes=30)
    assert resolved_at > fired_at
    kinds = [kind for episode, kind in undisturbed.received if episode in _ids(undisturbed)]
    assert kinds == ["alert.firing", "alert.resolved"]


def _ids(outcome: Outcome) -> set[str]:
    return {id_ for id_, episode in outcome.episodes.items() if episode[1] == SURGE_KEY}


def test_kills_change_nothing(undisturbed: Outcome, replayed: Path, tmp_path: Path) -> None:
    assert_as_undisturbed(run_pipeline(tmp_path, replayed, kills=KILLS), undisturbed)


@pytest.mark.postgresql
def test_kills_change_nothing_on_postgresql(
    undisturbed: Outcome, replayed: Path, tmp_path: Path, empty_postgres_url: str
) -> None:
    killed = run_pipeline(tmp_path, replayed, kills=KILLS, database_url=empty_postgres_url)
    assert not (tmp_path / "monitor.db").exists()
    assert_as_undisturbed(killed, undisturbed)


def assert_as_undisturbed(killed: Outcome, undisturbed: Outcome) -> None:
    """Everything that a run leaves behind, though its processes were killed."""
    assert killed.items == undisturbed.items
    # Other batches after a kill: the last bits of a score may differ, nothing else.
    assert killed.scores == pytest.approx(undisturbed.scores, abs=1e-4)
    assert killed.item_keys == undisturbed.item_keys
    assert killed.counted == undisturbed.counted
    assert killed.ticks == undisturbed.ticks
    assert killed.episodes == undisturbed.episodes
    assert set(killed.received) == set(undisturbed.received)
    # A notice may arrive twice after a kill, but under one id: a receiver that looks at the id acts once.
    assert len(set(killed.webhook_ids)) == len(set(killed.received))


@pytest.mark.skipif(
    bool(os.environ.get("SENTIMENT_MONITOR_TEST_BOOTSTRAP_SERVERS")), reason="the demo is about the embedded broker"
)
def test_demo_ends_well_once_the_alert_is_delivered(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "monitor.cli.app", "--data-dir", str(tmp_path / "demo")]
    environment = os.environ | {"SENTIMENT_MONITOR_BROKER_PORT": "0", "SENTIMENT_MONITOR_DASHBOARD_PORT": "18599"}
    done = subprocess.run(
        [*command, "demo", "--headless", "--until-alert"], capture_output=True, text=True, timeout=300, env=environment
    )
    assert done.returncode == 0, done.stderr
    assert "signature verified" in done.stdout
    status = subprocess.run([*command, "status", "--json"], capture_output=True, text=True, timeout=60)
    assert status.returncode == 0, status.stderr
    found = json.loads(status.stdout)
    assert found["items"] == len(STREAM.read_text(encoding="utf-8").splitlines())
    assert found["undelivered"] == 0
    assert found["dead_letters"] == 0
    # The planted surge is not buried among others.
    assert 1 <= sum(found["alerts"].values()) <= 6
    assert done.stdout.count("[alert.resolved] ticker:INFY (critical): over after ") == 1
