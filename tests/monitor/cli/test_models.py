"""`models`: what the gate said is told, and holds unless somebody insists."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from models import registry
from models.model_file import read_model_file
from monitor.cli import context
from monitor.settings import Settings
from monitor.storage.engine import open_engine
from monitor.storage.migrate import upgrade
from tests.models.tiny import tiny_model
from tests.monitor.cli.conftest import Cli

REASON = "Worse on topic (topic: accuracy 0.900 to 0.700)."
HEAD = {
    "n": 500, "before": 0.9, "after": 0.7, "lower": -0.22, "ece_before": 0.02, "ece_after": 0.04, "ece_upper": 0.05,
}  # fmt: skip
METRICS = {
    "gate": "rejected",
    "heads": {"topic": HEAD},
    "held_out_corrections": {"n": 12, "before": 0.25, "after": 0.5},
    "job": "retraining",
}


@pytest.fixture
def rejected(tmp_path: Path, small_backbone: Path) -> str:
    """A version in the registry of the test's data folder that the gate has rejected."""
    settings = Settings(data_dir=tmp_path / "data")
    engine = open_engine(settings.database)
    upgrade(engine)
    tiny_model(tmp_path / "bad", small_backbone, name="bad", seed=3)
    return registry.register(settings, engine, tmp_path / "bad", metrics=METRICS, reason=REASON, state="rejected")


def test_a_rejected_version_is_promoted_only_by_force(cli: Cli, rejected: str, small_model: Path) -> None:
    assert cli("models", "promote", str(small_model)).code == 0
    first = read_model_file(small_model).version
    refused = cli("models", "promote", rejected)
    assert refused.code != 0
    assert refused.err.startswith(f"error: The gate rejected {rejected}: {REASON}\n")
    assert "--force" in refused.err
    assert json.loads(cli("models", "show", "--json").out)["version"] == first

    forced = cli("models", "promote", rejected, "--force", "--reason", "a try")
    assert forced.code == 0
    assert f"{rejected} is in force." in forced.out
    assert f"The gate: rejected. {REASON}" in forced.out
    back = cli("models", "rollback")
    assert f"{first} is in force again." in back.out
    # Having been in force does not make it a version that has passed.
    assert cli("models", "promote", rejected).code != 0
    shown = json.loads(cli("models", "show", rejected, "--json").out)
    assert (shown["state"], shown["gate"]) == ("retired", "rejected")
    assert [promotion["reason"] for promotion in shown["promotions"]] == ["against the gate: a try"]


def test_list_and_show_tell_what_the_gate_measured(cli: Cli, rejected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(context.out, "width", 200)
    listed = cli("models", "list").out
    assert "Accuracy: topic 0.900 > 0.700, held-out corrections 0.250 > 0.500." in listed
    rows = {row["version"]: row for row in json.loads(cli("models", "list", "--json").out)}
    assert (rows[rejected]["gate"], rows[rejected]["reason"]) == ("rejected", REASON)
    default = next(row for row in rows.values() if row["name"] == "default")
    assert (default["state"], default["gate"], default["in_force"]) == ("active", "", True)
    assert default["metrics"]["twitter_topic.topic.accuracy"] > 0.5

    shown = cli("models", "show", rejected).out
    assert "gate: rejected" in shown
    assert ["topic", "500", "0.900", ">", "0.700", "-0.220", "0.020", ">", "0.040", "+0.050"] in [
        line.split() for line in shown.splitlines()
    ]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("models", "promote", "nowhere"), "There is no model nowhere."),
        (("models", "show", "nowhere"), "There is no model nowhere."),
        (("models", "rollback"), "There is no promotion to roll back."),
    ],
)
def test_mistakes_are_one_sentence(cli: Cli, arguments: tuple[str, ...], said: str) -> None:
    done = cli(*arguments)
    assert done.code != 0
    assert done.err.startswith(f"error: {said}")
