"""Topics of a user's own: in the titles of alerts, and held against the model's."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from monitor.alerts.records import key_title
from monitor.errors import ConfigurationError
from monitor.settings import load_settings
from monitor.taxonomy import bundled_taxonomy, taxonomy_of
from tests.monitor.cli.conftest import Cli
from tests.monitor.cli.test_why import fill

OWN = {"name": "own", "topics": [{"name": "gossip", "title": "Talk of the town"}, {"name": "facts", "title": "Facts"}]}


@pytest.fixture
def own(tmp_path: Path) -> Path:
    file = tmp_path / "topics.json"
    file.write_text(json.dumps(OWN))
    return file


def test_the_topics_are_those_of_the_file_else_the_bundled_ones(own: Path, tmp_path: Path) -> None:
    assert taxonomy_of(load_settings()) is bundled_taxonomy()
    taxonomy = taxonomy_of(load_settings(taxonomy_file=str(own)))
    assert taxonomy.labels == ("gossip", "facts")
    assert key_title("topic:gossip", taxonomy) == "Talk of the town"
    assert key_title("topic:gossip") == "gossip"
    with pytest.raises(ConfigurationError, match="cannot be read"):
        taxonomy_of(load_settings(taxonomy_file=str(tmp_path / "none.json")))


def test_alerts_bear_the_titles_of_the_file(cli: Cli, own: Path, tmp_path: Path) -> None:
    fill(tmp_path / "data", "topic:gossip", taxonomy_file=str(own))
    # What the judge has logged comes before.
    alert = json.loads(cli("alerts", "list", "--json").out.splitlines()[-1])
    assert (alert["key"], alert["title"]) == ("topic:gossip", "Talk of the town")


def test_doctor_holds_the_file_against_the_model(
    cli: Cli, own: Path, small_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SENTIMENT_MONITOR_MODEL", str(small_model))
    assert cli("db", "upgrade").code == 0
    assert cli("doctor").code == 0
    monkeypatch.setenv("SENTIMENT_MONITOR_TAXONOMY_FILE", str(own))
    done = cli("doctor")
    assert done.code == 1
    (line,) = (line for line in done.out.splitlines() if line.startswith("BROKEN"))
    assert "topics " in line
