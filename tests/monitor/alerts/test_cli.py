"""The verb `alerts`, against a real store and a real receiver."""

from __future__ import annotations

import io
import json
import re
import socket
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from rich.console import Console
from sqlalchemy import Engine
from typer.testing import CliRunner

from monitor.alerts.demo_receiver import DemoReceiver, new_secret
from monitor.cli import alert_tables, alerts, rules
from monitor.cli.alerts import app
from monitor.cli.context import root_flags
from monitor.errors import ConfigurationError, DeliveryError
from monitor.storage import deliveries
from monitor.storage.alerts import acknowledge, record_decisions
from monitor.storage.deliveries import Delivery
from monitor.storage.engine import writing
from monitor.storage.pending import end_pending
from monitor.storage.receivers import disable, sync
from monitor.storage.rules import rule_actor, save_rule
from monitor.storage.silences import list_silences
from monitor.storage.tables import alert_events, pending
from tests.monitor.alerts.builders import AT, DASHBOARD, decision, new_store, put_story

ID = decision().episode_id


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Engine]:
    token = root_flags.set({"data_dir": tmp_path})
    engine = new_store(tmp_path)
    with writing(engine) as conn:
        put_story(conn, "ticker:AAPL", 1, title="Apple [bold]sinks[/bold]")
        record_decisions(conn, [decision(), decision(key="topic:macro", episode_id="m")], dashboard_url=DASHBOARD)
        record_decisions(conn, [decision("resolve", key="topic:macro", episode_id="m")], dashboard_url=DASHBOARD)
    yield engine
    root_flags.reset(token)


def run(*args: str) -> str:
    result = CliRunner().invoke(app, args)
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.output


def test_list_filters_and_speaks_json(store: Engine) -> None:
    assert {json.loads(line)["id"] for line in run("list", "--json").splitlines()} == {ID, "m"}
    assert [json.loads(line)["id"] for line in run("list", "--state", "firing", "--json").splitlines()] == [ID]
    assert [json.loads(line)["id"] for line in run("list", "--key", "topic:macro", "--json").splitlines()] == ["m"]


def test_what_is_pending_is_listed_when_asked_for_and_shown(store: Engine) -> None:
    fields = {"rule": "negative-surge", "surge": "negative", "window_minutes": 60, "bar": 4.0}
    times = {"started_at": AT, "seen_at": AT + timedelta(minutes=2)}
    with writing(store) as conn:
        for name, key, score in (("p1", "ticker:IBM", 1.6), ("p2", "ticker:SAP", 3.6)):
            conn.execute(pending.insert().values(id=name, key=key, score=score, **fields, **times))
    assert {json.loads(line)["id"] for line in run("list", "--json").splitlines()} == {ID, "m"}
    rows = [json.loads(line) for line in run("list", "--state", "pending", "--json").splitlines()]
    assert [(row["id"], row["state"]) for row in rows] == [("p2", "pending"), ("p1", "pending")]
    both = run("list", "--state", "pending", "--state", "firing", "--json", "--key", "ticker:IBM").splitlines()
    assert [json.loads(line)["id"] for line in both] == ["p1"]
    assert "3.60 /" in run("list", "--state", "pending")
    assert "nobody was told of it" in run("show", "p1")
    with writing(store) as conn:
        end_pending(conn, "negative-surge", AT + timedelta(hours=1))
    shown = json.loads(run("show", "p1", "--json"))
    assert [event["event"] for event in shown["events"]] == ["pending", "ended"]
    assert "Nothing is pending" in run("list", "--state", "pending")
    for nothing in ("p", "q"):
        with pytest.raises(ConfigurationError, match="More than one" if nothing == "p" else "no alert q"):
            run("show", nothing)


class Terminal(Console):
    """Looks like a terminal of some width; `lines` is what was printed."""

    def __init__(self, width: int) -> None:
        self.shown = io.StringIO()
        super().__init__(
            file=self.shown, width=width, force_terminal=True, color_system=None, highlight=False, soft_wrap=True
        )

    @property
    def lines(self) -> list[str]:
        return [line.rstrip() for line in self.shown.getvalue().splitlines()]


def listed(monkeypatch: pytest.MonkeyPatch, width: int, *arguments: str) -> list[str]:
    terminal = Terminal(width)
    for module in (alerts, alert_tables):
        monkeypatch.setattr(module, "out", terminal)
    run("list", *arguments)
    return terminal.lines


def test_a_row_of_the_list_is_one_line(store: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    with writing(store) as conn:
        long = [decision(key="topic:treasuries_corporate_debt", episode_id="long" * 8, expected=0.04, observed=123)]
        record_decisions(conn, long, dashboard_url=DASHBOARD)
        acknowledge(conn, "long" * 8, by="ada", at=AT)
    # In a pipe all of it, whatever COLUMNS says.
    monkeypatch.setenv("COLUMNS", "40")
    head, *rows = run("list").splitlines()
    assert re.split("  +", head.strip()) == [
        *("id", "state", "severity", "key", "surge", "stories", "expected", "fired (UTC)", "resolved (UTC)")
    ]
    assert len(rows) == 3
    (whole,) = (row for row in rows if row.startswith("longlong "))
    assert re.split("  +", whole.strip())[:7] == [
        *("longlong", "acknowledged", "warning", "topic:treasuries_corporate_debt", "negative", "123", "under 0.1")
    ]
    assert listed(monkeypatch, 200) == [line.rstrip() for line in (head, *rows)]
    head, *rows = listed(monkeypatch, 80, "--key", "ticker:AAPL")
    assert re.split("  +", head) == ["id", "state", "severity", "key", "stories", "expected", "fired (UTC)"]
    assert len(rows) == 1
    # What is needed least goes first; a key may lose its end, an id and a time may not.
    head, *rows = listed(monkeypatch, 80)
    assert re.split("  +", head) == ["id", "state", "key", "stories", "fired (UTC)"]
    assert len(rows) == 3
    assert max(map(len, rows)) == 80
    (narrow,) = (row for row in rows if row.startswith("longlong "))
    assert "topic:treasuries_corporate_d…  123 " in narrow
    assert narrow.endswith(f"{AT:%Y-%m-%d %H:%M}")


def test_a_row_of_what_is_pending_is_one_line(store: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    fields = {"rule": "negative-surge", "surge": "negative", "window_minutes": 480, "bar": 4.0, "score": 3.6}
    with writing(store) as conn:
        name = {"id": "c" * 32, "key": "topic:company_product_news"}
        conn.execute(pending.insert().values(**name, **fields, started_at=AT, seen_at=AT))
    for width, columns in ((80, 5), (200, 8)):
        head, row = listed(monkeypatch, width, "--state", "pending")
        assert len(re.split("  +", head)) == len(re.split("  +", row)) == columns
        assert row.startswith("cccccccc  pending  topic:company_product_news  ")
        assert "3.60 / 4.00" in row


def test_a_row_of_a_rules_history_is_one_line(store: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    key, now = "topic:treasuries_corporate_debt", datetime.now(UTC)
    author = "somebody.with.a.long.name@a-department.of-a-company-with-a-long-name.example.org"
    with writing(store) as conn:
        save_rule(conn, {"name": "mine"}, author=author, now=now)
        fired = [decision(key=key, episode_id="long" * 8, expected=0.04, observed=123)]
        record_decisions(conn, fired, dashboard_url=DASHBOARD)
        acknowledge(conn, "long" * 8, by="ada", at=AT)
        taken = {"episode_id": "long" * 8, "event": "taken", "actor": rule_actor("mine"), "at": now, "detail": {}}
        conn.execute(alert_events.insert().values(**taken))
    monkeypatch.setenv("COLUMNS", "40")
    result = CliRunner().invoke(rules.app, ["history", "mine"])
    head, row, _, change = result.stdout.splitlines()
    assert re.split("  +", head.strip()) == ["alert", "key", "severity", "state", "fired (UTC)", "stories / expected"]
    when = f"{AT:%Y-%m-%d %H:%M}"
    figures = "123 negative / under 0.1"
    assert re.split("  +", row.strip()) == ["longlong", key, "warning", "acknowledged", when, figures]
    assert change.strip().endswith(f"  {author}")
    terminal = Terminal(80)
    monkeypatch.setattr(rules, "out", terminal)
    assert CliRunner().invoke(rules.app, ["history", "mine"]).exit_code == 0
    head, row, _, change = terminal.lines
    assert re.split("  +", head) == ["alert", "key", "state", "fired (UTC)"]
    assert re.split("  +", row) == ["longlong", key, "acknowledged", when]
    assert len(change) == 80
    assert change.endswith("…")


def test_a_notice_of_an_alert_is_one_line(store: Engine) -> None:
    notice = {"episode_id": ID, "receiver": "webhook-1", "position": 0, "payload": "{}", "created_at": AT}
    rows = [
        Delivery(id=f"msg_{letter * 40}", event=event, state="delivered", attempts=1, **notice)
        for letter, event in (("a", "firing"), ("b", "acknowledged"))
    ]
    terminal = Terminal(82)
    terminal.print(alert_tables.deliveries_table(rows, with_alert=False))
    assert [line.split() for line in terminal.lines[1:]] == [
        ["msg_aaaaaaaa", "webhook-1", "firing", "delivered", "1"],
        ["msg_bbbbbbbb", "webhook-1", "acknowledged", "delivered", "1"],
    ]


def test_ack_is_seen_in_show(store: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    run("ack", ID, "--by", "ada")
    shown = json.loads(run("show", ID, "--json"))
    assert (shown["alert"]["state"], shown["alert"]["acknowledged_by"]) == ("acknowledged", "ada")
    assert [event["event"] for event in shown["events"]] == ["pending", "firing", "acknowledged"]
    with pytest.raises(ConfigurationError, match="no alert nope"):
        run("show", "nope")
    with pytest.raises(ConfigurationError, match="resolved already"):
        run("ack", "m")


def test_the_beginning_of_an_id_is_enough_while_it_is_the_only_one(store: Engine) -> None:
    with writing(store) as conn:
        twins = [decision(key=f"ticker:{name}", episode_id=f"feed{name}") for name in ("A", "B", "AB")]
        record_decisions(conn, twins, dashboard_url=DASHBOARD)
    assert json.loads(run("show", ID[:12], "--json"))["alert"]["id"] == ID
    # The whole of one id is the beginning of another.
    assert json.loads(run("show", "feedA", "--json"))["alert"]["key"] == "ticker:A"
    run("ack", "feedB", "--by", "ada")
    for verb in ("show", "ack"):
        with pytest.raises(ConfigurationError) as told:
            run(verb, "feed")
        assert told.value.message == (
            "More than one alert begins with feed: feedA (ticker:A), feedAB (ticker:AB), feedB (ticker:B)."
        )
    # No wildcard of the database.
    for nothing in ("%", "f__d", "B"):
        with pytest.raises(ConfigurationError, match=f"There is no alert {nothing}"):
            run("show", nothing)
    run("silence", "market", "--for", "1h", "--comment", "known")
    (line,) = run("silences", "--json").splitlines()
    assert "has ended" in run("unsilence", json.loads(line)["id"][:6])
    with pytest.raises(ConfigurationError, match="is empty"):
        run("show", "")


def test_headlines_are_printed_as_they_are(store: Engine) -> None:
    assert "Apple [bold]sinks[/bold]" in run("show", ID)


def test_silence_and_its_end(store: Engine) -> None:
    run("silence", "topic:*", "--for", "2h", "--comment", "known", "--by", "ada")
    (line,) = run("silences", "--json").splitlines()
    silence = json.loads(line)
    assert (silence["key"], silence["rule"], silence["author"]) == ("topic:*", "*", "ada")
    assert datetime.fromisoformat(silence["ends_at"]) - datetime.fromisoformat(silence["starts_at"]) == timedelta(
        hours=2
    )
    run("unsilence", silence["id"])
    assert run("silences", "--json") == ""
    with writing(store) as conn:
        assert len(list_silences(conn)) == 1
    with pytest.raises(ConfigurationError, match="length of time"):
        run("silence", "market", "--for", "soon", "--comment", "known")
    with pytest.raises(ConfigurationError, match="needs a comment"):
        run("silence", "market", "--for", "1h", "--comment", " ")
    assert CliRunner().invoke(app, ["silence", "market", "--for", "1h"]).exit_code == 2


def test_undelivered_is_listed_and_replayed(store: Engine) -> None:
    row = Delivery(
        id="msg_1",
        episode_id=ID,
        event="firing",
        receiver="desk",
        position=1,
        payload="{}",
        created_at=AT,
        state="failed",
    )
    with writing(store) as conn:
        deliveries.add(conn, [row])
    assert [json.loads(line)["id"] for line in run("undelivered", "--json").splitlines()] == ["msg_1"]
    with pytest.raises(ConfigurationError, match="no notice msg_2"):
        run("replay", "msg_2")
    with pytest.raises(ConfigurationError, match="Name the ids"):
        run("replay")
    for chosen in ("--all", "msg_1"):
        assert "1 for desk left alone" in run("replay", chosen)
    assert run("undelivered", "--json") != ""
    with writing(store) as conn:
        sync(conn, {"desk": {"kind": "webhook", "address": "https://x/…", "rate_per_minute": 1}}, AT)
    run("replay", "msg_1")
    with writing(store) as conn:
        (due,) = deliveries.due(conn, "desk", datetime.now(UTC), 10)
    assert (due.id, due.attempts) == ("msg_1", 0)
    assert run("undelivered", "--json") == ""


def test_a_receiver_is_switched_on_again(store: Engine) -> None:
    with writing(store) as conn:
        sync(conn, {"desk": {"kind": "webhook", "address": "https://x/…", "rate_per_minute": 1}}, AT)
        disable(conn, "desk", "It answered 410 (gone).", AT)
    assert json.loads(run("receivers", "--json"))["enabled"] is False
    run("enable", "desk")
    assert json.loads(run("receivers", "--json"))["enabled"] is True
    with pytest.raises(ConfigurationError, match="no receiver nope"):
        run("enable", "nope")


def test_test_sends_a_signed_notice(store: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    with DemoReceiver() as receiver:
        monkeypatch.setenv("SENTIMENT_MONITOR_WEBHOOK_URLS", receiver.url)
        monkeypatch.setenv("SENTIMENT_MONITOR_WEBHOOK_SECRET", receiver.secret)
        with pytest.raises(ConfigurationError, match="private address"):
            run("test")
        monkeypatch.setenv("SENTIMENT_MONITOR_EGRESS_ALLOW", f"127.0.0.1:{receiver.port}")
        run("test")
        got, over = receiver.received
        assert (got.type, got.payload["data"]["rule"]) == ("alert.firing", "test")
        # Nothing stays open at the receiver.
        assert (over.type, over.payload["data"]["id"]) == ("alert.resolved", got.payload["data"]["id"])
        with pytest.raises(ConfigurationError, match="no receiver desk"):
            run("test", "desk")
    with pytest.raises(DeliveryError, match="webhook-1"):
        run("test", "webhook-1")


def test_test_refuses_a_name_that_leads_to_a_private_address(store: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SENTIMENT_MONITOR_WEBHOOK_URLS", "https://10.0.0.7.nip.example/")
    monkeypatch.setenv("SENTIMENT_MONITOR_WEBHOOK_SECRET", new_secret())
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: [(0, 0, 0, "", ("10.0.0.7", 443))])
    with pytest.raises(ConfigurationError, match=r"receiver webhook-1 is refused: .* the private address 10\.0\.0\.7"):
        run("test")
