"""What the pages on webhooks and alerting say is what happens."""

from __future__ import annotations

import json
import re
import tomllib
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest
import typer

from monitor.alerts.config import load_notifications
from monitor.alerts.demo_receiver import new_secret
from monitor.alerts.lifecycle import notice_body
from monitor.alerts.receivers import Receiver, ReceiverKind
from monitor.alerts.records import Alert, Digest, DigestContent, DigestEntry, Notice
from monitor.alerts.rules import load_rules
from monitor.alerts.schedule import ATTEMPTS, DELAYS_S
from monitor.alerts.senders import WebhookSender
from monitor.cli.alerts import app as alerts_app
from monitor.cli.rules import app as rules_app
from monitor.egress.policy import EgressPolicy
from monitor.settings import Settings
from tests.monitor.alerts.builders import AT, an_alert

DOCS = Path(__file__).parents[3] / "docs"
WEBHOOKS = (DOCS / "webhooks.md").read_text(encoding="utf-8")
ALERTING = (DOCS / "alerting.md").read_text(encoding="utf-8")


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page, re.DOTALL)


def test_the_code_for_verifying_works(capsys: pytest.CaptureFixture[str]) -> None:
    (code,) = blocks(WEBHOOKS, "python")
    names: dict[str, Any] = {}
    exec(code, names)
    secret = new_secret()
    sender = WebhookSender(Receiver("r", ReceiverKind.WEBHOOK, "https://x.example/", (secret,)), EgressPolicy())
    body = notice_body(an_alert())
    headers = sender.headers("msg_1", body, datetime.now(UTC))
    seen: set[str] = set()
    assert names["handle"](secret, headers, body.encode(), seen) == 204
    assert names["handle"](secret, headers, body.encode(), seen) == 204
    assert capsys.readouterr().out == "alert.firing a-1 ticker:AAPL 12\n"
    assert names["handle"](new_secret(), headers, body.encode(), set()) == 401
    assert names["handle"](secret, headers, body.replace("12", "13").encode(), set()) == 401
    assert names["handle"](secret, headers | {"webhook-signature": "nonsense"}, body.encode(), set()) == 401

    entry = DigestEntry.of("msg_1", msgspec.json.decode(body, type=Notice))
    digest = msgspec.json.encode(Digest(timestamp=AT, data=DigestContent(notices=(entry,)))).decode()
    assert names["handle"](secret, sender.headers("msg_2", digest, datetime.now(UTC)), digest.encode(), seen) == 204
    assert capsys.readouterr().out == "alert.firing a-1 ticker:AAPL\n"


def test_the_example_is_a_notice_with_every_field() -> None:
    (example,) = blocks(WEBHOOKS, "json")
    shown = json.loads(example)
    notice = msgspec.convert(shown, Notice)
    assert notice.type == "alert.firing"
    assert set(shown["data"]) == set(Alert.__struct_fields__)
    assert set(shown["data"]["stories"][0]) == set(type(notice.data.stories[0]).__struct_fields__)


def test_the_schedule_is_the_one_told() -> None:
    told = "after 5 s, 5 min, 30 min, 2 h, 5 h, 10 h, 14 h, 20 h and 24 h"
    assert told in WEBHOOKS.replace("\n", " ")
    units = {"s": 1, "min": 60, "h": 3600}
    seconds = [int(number) * units[unit] for number, unit in re.findall(r"(\d+) (s|min|h)\b", told)]
    assert seconds == list(DELAYS_S[1:])
    assert "After the tenth failure" in WEBHOOKS
    assert ATTEMPTS == 10


def test_the_files_shown_are_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    receivers, rules = blocks(ALERTING, "toml")
    (tmp_path / "receivers.toml").write_text(receivers)
    (tmp_path / "rules.toml").write_text(rules)
    monkeypatch.setenv("DESK_SECRET", new_secret())
    monkeypatch.setenv("SLACK_URL", "https://hooks.slack.com/services/T1JJ3T3L2/A1BRTD4JD/TIiajkdnlazkcOXrIdevi7FQ")
    monkeypatch.setenv("PAGER_URL", "pagerduty://AAAA@bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb")
    settings = Settings(
        data_dir=tmp_path,
        receivers_file=str(tmp_path / "receivers.toml"),
        rules_file=str(tmp_path / "rules.toml"),
    )
    config = load_notifications(settings)
    assert len(config.routes) == len(tomllib.loads(receivers)["routes"]) == 2
    found = load_rules(settings)
    assert [rule.name for rule in found.rules] == ["tickers", "wide", "good news", "much talked of"]
    assert found.watched == ("negative", "positive", "volume")


@pytest.mark.parametrize(("verb", "app"), [("alerts", alerts_app), ("rules", rules_app)])
def test_every_command_is_told_of(verb: str, app: typer.Typer) -> None:
    commands = {
        command.name or str(command.callback.__name__) for command in app.registered_commands if command.callback
    }
    told = set(re.findall(rf"{verb} (\w+)", ALERTING + WEBHOOKS))
    assert commands <= told, commands - told
