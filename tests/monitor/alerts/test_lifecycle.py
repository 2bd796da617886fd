"""From events in the outbox to notices: what is held back, let go, dropped, repeated and escalated."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import msgspec
import pytest
from sqlalchemy import Connection, Engine, select

from monitor.alerts.config import NotificationConfig
from monitor.alerts.lifecycle import NOT_CONFIGURED, announce_again, release_held, request_trial, route_outbox
from monitor.alerts.receivers import Receiver, ReceiverKind
from monitor.alerts.routing import Mute, Route
from monitor.alerts.rules import BUILT_IN, Rule, Rules
from monitor.egress.policy import EgressPolicy
from monitor.storage import deliveries, undelivered
from monitor.storage.alerts import acknowledge, audit_trail, firing_ids, record_decisions
from monitor.storage.audit import changes
from monitor.storage.engine import writing
from monitor.storage.receivers import disable, enable, sync
from monitor.storage.rules import alerts_taken, mute_rule, save_rule, sync_rules, taken_counts
from monitor.storage.silences import add_silence
from monitor.storage.tables import deliveries as delivery_table
from monitor.storage.tables import episodes, items, stories
from monitor.surges.judge import JudgeConfig
from tests.monitor.alerts.builders import AT, DASHBOARD, decision, put_story

ID = decision().episode_id
NOW = AT + timedelta(minutes=1)


@pytest.fixture
def store(any_store: Engine) -> Engine:
    return any_store


def config_of(
    *routes: Route, rules: tuple[Rule, ...] = (Rule("negative-surge"),), pager: str = ""
) -> NotificationConfig:
    names = {name for route in routes for name in (*route.receivers, *route.escalate_to)}
    receivers = {
        name: Receiver(name, ReceiverKind.PAGERDUTY if name == pager else ReceiverKind.WEBHOOK, "https://x.example/")
        for name in names
    }
    return NotificationConfig(receivers, routes, EgressPolicy(), Rules(JudgeConfig(), rules))


def record(conn: Connection, *decisions: Any) -> None:
    record_decisions(conn, decisions, dashboard_url=DASHBOARD)


def notices(conn: Connection) -> dict[tuple[str, str, str], str]:
    """(receiver, episode, event) -> state of every notice."""
    rows = conn.execute(select(delivery_table)).all()
    return {(row.receiver, row.episode_id, row.event): row.state for row in rows}


def arrived(conn: Connection, at: datetime) -> None:
    """Every pending notice has been delivered."""
    for row in conn.execute(select(delivery_table).where(delivery_table.c.state == "pending")).all():
        deliveries.finish(conn, row.id, 200, at)


def trail(conn: Connection) -> list[str]:
    return [entry["event"] for entry in audit_trail(conn, ID)]


def crowd(conn: Connection, number: int) -> None:
    """So many younger alerts that fire."""
    columns = dict(conn.execute(select(episodes).where(episodes.c.id == ID)).one()._mapping)
    for one in range(number):
        alert = columns["evidence"] | {"id": f"t{one}", "key": f"ticker:T{one}"}
        at = AT + timedelta(minutes=1 + one)
        row = {"id": f"t{one}", "key": f"ticker:T{one}", "evidence": alert, "fired_at": at}
        conn.execute(episodes.insert().values(**(columns | row)))


DESK = config_of(Route(("desk",)))


def test_routing_again_adds_nothing(store: Engine) -> None:
    with writing(store) as conn:
        record(conn, decision(), decision("resolve"))
        assert route_outbox(conn, DESK, NOW) == 2
        before = conn.execute(select(delivery_table)).all()
        conn.exec_driver_sql("update outbox set routed_at = null")
        assert route_outbox(conn, DESK, NOW + timedelta(hours=1)) == 2
        assert conn.execute(select(delivery_table)).all() == before
        assert route_outbox(conn, DESK, NOW) == 0


def test_a_silence_holds_back_and_its_end_lets_go_with_what_is_known_then(store: Engine) -> None:
    with writing(store) as conn:
        end = NOW + timedelta(hours=1)
        add_silence(conn, key="ticker:*", starts_at=AT, ends_at=end, comment="known", author="ada")
        record(conn, decision())
        route_outbox(conn, DESK, NOW)
        assert notices(conn) == {("desk", ID, "firing"): "held"}
        record(conn, decision("update", observed=40, p_value=1e-12))
        assert release_held(conn, DESK, end - timedelta(seconds=1)) == 0
        assert release_held(conn, DESK, end) == 1
        (row,) = deliveries.due(conn, "desk", end, 10)
        assert msgspec.json.decode(row.payload)["data"]["observed"] == 40
        assert trail(conn) == ["pending", "firing", "taken", "held", "released"]


@pytest.mark.parametrize("end", ["resolve", "acknowledge"])
def test_what_ends_while_it_is_held_back_is_never_announced(store: Engine, end: str) -> None:
    with writing(store) as conn:
        add_silence(conn, key="*", starts_at=AT, ends_at=NOW + timedelta(hours=1), comment="known", author="ada")
        record(conn, decision())
        route_outbox(conn, DESK, NOW)
        if end == "resolve":
            record(conn, decision("resolve"))
        else:
            acknowledge(conn, ID, by="bob", at=NOW)
        route_outbox(conn, DESK, NOW)
        assert release_held(conn, DESK, NOW + timedelta(hours=2)) == 0
        assert notices(conn) == {("desk", ID, "firing"): "dropped"}
        assert trail(conn)[-1] == "dropped"


def test_a_tickers_alert_waits_while_its_topics_alert_explains_it(store: Engine) -> None:
    with writing(store) as conn:
        put_story(conn, "ticker:AAPL", 1)
        record(conn, decision(key="topic:earnings", episode_id="wide"))
        route_outbox(conn, DESK, NOW)
        record(conn, decision())
        route_outbox(conn, DESK, NOW)
        assert notices(conn) == {("desk", "wide", "firing"): "pending", ("desk", ID, "firing"): "held"}
        record(conn, decision("resolve", key="topic:earnings", episode_id="wide"))
        route_outbox(conn, DESK, NOW)
        assert release_held(conn, DESK, NOW) == 1
        assert notices(conn)[("desk", ID, "firing")] == "pending"


def test_a_ticker_waits_for_no_alert_that_its_receiver_is_not_told_of(store: Engine) -> None:
    config = config_of(Route(("desk",), keys=("ticker:*",)), Route(("boss",), keys=("market", "ticker:*")))
    with writing(store) as conn:
        # In one transaction, the ticker's first: the market's is not in the list of notices yet.
        record(conn, decision(), decision(key="market", episode_id="wide"))
        route_outbox(conn, config, NOW)
        assert notices(conn) == {
            ("desk", ID, "firing"): "pending",
            ("boss", ID, "firing"): "held",
            ("boss", "wide", "firing"): "pending",
        }
        add_silence(conn, key="market", starts_at=AT, ends_at=NOW + timedelta(days=1), comment="known", author="ada")
        record(conn, decision(key="market", episode_id="other", rule="other"))
        record(conn, decision(key="ticker:MSFT", episode_id="m", rule="other"))
        route_outbox(conn, config, NOW)
        # Who does not hear of the market because of a silence hears of the ticker.
        assert notices(conn)["boss", "other", "firing"] == "held"
        assert notices(conn)["boss", "m", "firing"] == "pending"


def test_a_ticker_with_a_story_of_its_own_is_not_explained_by_a_topic(store: Engine) -> None:
    with writing(store) as conn:
        put_story(conn, "ticker:AAPL", 1)
        conn.execute(items.update().values(topic="legal_regulation"))
        record(conn, decision(key="topic:earnings", episode_id="wide"), decision())
        route_outbox(conn, DESK, NOW)
        assert set(notices(conn).values()) == {"pending"}


def test_rules_hold_back_until_the_evidence_suffices(store: Engine) -> None:
    config = config_of(
        Route(("desk",)), rules=(Rule("many", min_negative_stories=20), Rule("market", keys=("market",)))
    )
    with writing(store) as conn:
        record(conn, decision())
        route_outbox(conn, config, NOW)
        (row,) = deliveries.of_episode(conn, ID)
        assert row.state == "held"
        assert row.last_error == "rule many wants 20 negative stories; market is not about ticker:AAPL"
        record(conn, decision("update", observed=25, p_value=1e-9))
        assert release_held(conn, config, NOW) == 1


def test_one_publishers_headlines_wait_until_another_takes_them_over(store: Engine) -> None:
    config = config_of(Route(("desk",)), rules=(replace(BUILT_IN, min_sources=2),))
    with writing(store) as conn:
        for number in range(3):
            put_story(conn, "ticker:AAPL", number, source="wire", url="https://wire.example/")
        record(conn, decision(observed=3))
        route_outbox(conn, config, NOW)
        assert notices(conn) == {("desk", ID, "firing"): "held"}
        assert release_held(conn, config, NOW) == 0
        # A copy: no story more, so that the judge has nothing new to say.
        told = {"sources": ["wire", "post"], "item_ids": ["item-1", "copy"]}
        conn.execute(stories.update().where(stories.c.item_id == "item-1").values(copies=told, items=2))
        assert release_held(conn, config, NOW) == 1
        (row,) = deliveries.due(conn, "desk", NOW, 10)
        told_of = msgspec.json.decode(row.payload)["data"]
        assert (told_of["sources"], told_of["observed"]) == (2, 3)
        assert [story["copies"] for story in told_of["stories"]] == [2, 1, 1]


def test_a_rule_with_receivers_of_its_own_counts_later_publishers_too(store: Engine) -> None:
    # No route leads there for a ticker: without the rule nothing is held for the desk.
    config = config_of(Route(("desk",), keys=("market",)), rules=(Rule("three", min_sources=3, receivers=("desk",)),))
    with writing(store) as conn:
        for number in range(3):
            put_story(conn, "ticker:AAPL", number, source="wire", url="https://wire.example/")
        record(conn, decision(observed=3))
        route_outbox(conn, config, NOW)
        assert notices(conn) == {}
        told = {"sources": ["wire", "post", "times"], "item_ids": ["item-1", "copy", "another"]}
        conn.execute(stories.update().where(stories.c.item_id == "item-1").values(copies=told, items=3))
        assert release_held(conn, config, NOW) == 1
        assert notices(conn) == {("desk", ID, "firing"): "pending"}


def test_a_muted_rule_holds_back(store: Engine) -> None:
    with writing(store) as conn:
        sync_rules(conn, {"negative-surge": Rule("negative-surge").definition}, AT)
        mute_rule(conn, "negative-surge", NOW + timedelta(hours=1), AT, by="ada")
        record(conn, decision())
        route_outbox(conn, DESK, NOW)
        assert notices(conn) == {("desk", ID, "firing"): "held"}
        sync_rules(conn, {"negative-surge": Rule("negative-surge").definition}, NOW)
        assert release_held(conn, DESK, NOW) == 0
        assert release_held(conn, DESK, NOW + timedelta(hours=1)) == 1


def test_a_route_for_grave_alerts_is_told_when_it_gets_grave_and_the_others_not_again(store: Engine) -> None:
    config = config_of(Route(("desk",)), Route(("pager",), severities=("critical",)))
    with writing(store) as conn:
        record(conn, decision())
        route_outbox(conn, config, NOW)
        record(conn, decision("update", severity="critical", p_value=1e-9))
        route_outbox(conn, config, NOW)
        assert notices(conn) == {("desk", ID, "firing"): "pending", ("pager", ID, "firing"): "pending"}
        (row,) = deliveries.due(conn, "pager", NOW, 10)
        assert msgspec.json.decode(row.payload)["data"]["severity"] == "critical"


def test_who_was_told_is_told_the_rest_as_the_route_says(store: Engine) -> None:
    config = config_of(
        Route(("all",)), Route(("short",), events=("firing", "resolved")), Route(("pager",)), pager="pager"
    )
    with writing(store) as conn:
        record(conn, decision())
        route_outbox(conn, config, NOW)
        acknowledge(conn, ID, by="ada", at=NOW)
        record(conn, decision("resolve"))
        route_outbox(conn, config, NOW)
        told: dict[str, list[str]] = {}
        for receiver, _, event in notices(conn):
            told.setdefault(receiver, []).append(event)
        assert {name: set(events) for name, events in told.items()} == {
            "all": {"firing", "acknowledged", "resolved"},
            "short": {"firing", "resolved"},
            "pager": {"firing", "resolved"},
        }
        assert [row.event for row in deliveries.due(conn, "all", NOW, 10)] == ["firing"]


def test_repeats_until_acknowledged(store: Engine) -> None:
    config = config_of(Route(("desk",), repeat=timedelta(hours=4)))
    with writing(store) as conn:
        record(conn, decision())
        route_outbox(conn, config, NOW)
        assert announce_again(conn, config, NOW + timedelta(hours=5)) == 0
        arrived(conn, NOW)
        assert announce_again(conn, config, NOW + timedelta(hours=3)) == 0
        for number in (1, 2):
            later = NOW + timedelta(hours=4 * number)
            assert announce_again(conn, config, later) == 1
            assert announce_again(conn, config, later) == 0
            arrived(conn, later)
        acknowledge(conn, ID, by="ada", at=NOW)
        assert announce_again(conn, config, NOW + timedelta(days=1)) == 0
        assert [row.event for row in deliveries.of_episode(conn, ID)] == ["firing", "repeat:1", "repeat:2"]
        assert trail(conn).count("repeated") == 2
        assert len({row.id for row in deliveries.of_episode(conn, ID)}) == 3


def test_escalates_once_what_nobody_takes_on(store: Engine) -> None:
    config = config_of(Route(("desk",), escalate_after=timedelta(minutes=15), escalate_to=("boss",)))
    with writing(store) as conn:
        record(conn, decision(), decision(key="ticker:MSFT", episode_id="taken"))
        route_outbox(conn, config, NOW)
        acknowledge(conn, "taken", by="ada", at=NOW)
        assert announce_again(conn, config, NOW + timedelta(minutes=14)) == 0
        assert announce_again(conn, config, NOW + timedelta(minutes=15)) == 1
        assert announce_again(conn, config, NOW + timedelta(hours=2)) == 0
        record(conn, decision("resolve"))
        route_outbox(conn, config, NOW + timedelta(hours=2))
        mine = {event for receiver, episode, event in notices(conn) if receiver == "boss" and episode == ID}
        assert mine == {"firing", "resolved"}
        assert ("boss", "taken", "firing") not in notices(conn)


def test_nothing_held_back_is_escalated(store: Engine) -> None:
    config = config_of(Route(("desk",), escalate_after=timedelta(minutes=15), escalate_to=("boss",)))
    with writing(store) as conn:
        add_silence(conn, key="*", starts_at=AT, ends_at=NOW + timedelta(days=1), comment="known", author="ada")
        record(conn, decision())
        route_outbox(conn, config, NOW)
        assert announce_again(conn, config, NOW + timedelta(hours=1)) == 0


def test_what_was_held_back_is_escalated_from_when_it_was_let_go(store: Engine) -> None:
    config = config_of(Route(("desk",), escalate_after=timedelta(minutes=15), escalate_to=("boss",)))
    with writing(store) as conn:
        end = NOW + timedelta(hours=1)
        add_silence(conn, key="*", starts_at=AT, ends_at=end, comment="known", author="ada")
        record(conn, decision())
        route_outbox(conn, config, NOW)
        assert release_held(conn, config, end) == 1
        assert announce_again(conn, config, end) == 0
        assert announce_again(conn, config, end + timedelta(minutes=14)) == 0
        assert announce_again(conn, config, end + timedelta(minutes=15)) == 1
        assert notices(conn)[("boss", ID, "firing")] == "pending"


def test_escalation_reaches_whom_another_route_does_not_tell_at_this_hour(store: Engine) -> None:
    quiet = Mute("always")
    first = Route(("desk",), escalate_after=timedelta(minutes=15), escalate_to=("boss",))
    config = config_of(first, Route(("boss",), mutes=(quiet,)))
    with writing(store) as conn:
        record(conn, decision())
        route_outbox(conn, config, NOW)
        assert notices(conn) == {("desk", ID, "firing"): "pending", ("boss", ID, "firing"): "held"}
        assert announce_again(conn, config, NOW + timedelta(minutes=14)) == 0
        assert announce_again(conn, config, NOW + timedelta(minutes=15)) == 1
        assert announce_again(conn, config, NOW + timedelta(minutes=16)) == 0
        assert notices(conn)[("boss", ID, "firing")] == "pending"
        assert trail(conn)[-1] == "escalated"


def test_no_alert_is_too_many_to_be_looked_at_again(store: Engine) -> None:
    config = config_of(Route(("desk",), repeat=timedelta(hours=4)))
    with writing(store) as conn:
        end = NOW + timedelta(hours=1)
        add_silence(conn, key="*", starts_at=AT, ends_at=end, comment="known", author="ada")
        record(conn, decision(key="market", episode_id="wide"), decision())
        route_outbox(conn, config, NOW)
        assert set(notices(conn).values()) == {"held"}
        crowd(conn, 1_001)
        held = firing_ids(conn, held=True)
        assert held == ["wide", ID]
        assert len(firing_ids(conn)) == 1_003
        # The market's goes out, and still explains the ticker's.
        assert release_held(conn, config, end) == 1
        assert notices(conn) == {("desk", "wide", "firing"): "pending", ("desk", ID, "firing"): "held"}
        arrived(conn, end)
        assert announce_again(conn, config, end + timedelta(hours=4)) == 1


def test_what_a_switched_off_receiver_misses_is_listed(store: Engine) -> None:
    with writing(store) as conn:
        sync(conn, {"desk": DESK.receivers["desk"].definition}, AT)
        disable(conn, "desk", "It answered 410 (gone).", AT)
        record(conn, decision())
        route_outbox(conn, DESK, NOW)
        (row,) = undelivered.undelivered(conn)
        assert (row.state, row.last_error) == ("failed", "The receiver is switched off: It answered 410 (gone).")
        # Nobody would send it: it stays listed until the receiver is back.
        assert undelivered.replay(conn, NOW) == 0
        assert undelivered.stranded(conn) == undelivered.stranded(conn, [row.id]) == {"desk": 1}
        assert undelivered.undelivered(conn) == [row]
        assert not deliveries.any_due(conn, NOW)
        enable(conn, "desk", NOW, by="ada")
        assert undelivered.replay(conn, NOW) == 1
        assert undelivered.stranded(conn) == {}
        assert deliveries.any_due(conn, NOW)


def test_what_waits_for_a_receiver_that_is_switched_off_takes_no_lock(store: Engine) -> None:
    with writing(store) as conn:
        sync(conn, {"desk": DESK.receivers["desk"].definition}, AT)
        record(conn, decision())
        route_outbox(conn, DESK, NOW)
        assert deliveries.any_due(conn, NOW)
        disable(conn, "desk", "ada is away", NOW)
        assert not deliveries.any_due(conn, NOW)
        request_trial(conn, "desk", NOW, DASHBOARD, by="ada")
        assert deliveries.any_due(conn, NOW)


def test_the_end_of_an_alert_is_listed_for_a_receiver_that_is_gone(store: Engine) -> None:
    with writing(store) as conn:
        record(conn, decision())
        route_outbox(conn, DESK, NOW)
        record(conn, decision("resolve"))
        route_outbox(conn, config_of(Route(("other",))), NOW)
        (row,) = undelivered.undelivered(conn)
        assert (row.event, row.state, row.last_error) == ("resolved", "failed", NOT_CONFIGURED)


def test_which_rules_took_an_alert_is_in_its_trail_and_can_be_looked_back_on(store: Engine) -> None:
    config = config_of(Route(("desk",)), rules=(Rule("all"), Rule("grave", severities=("critical",))))
    with writing(store) as conn:
        record(conn, decision(), decision(key="ticker:MSFT", episode_id="other"))
        route_outbox(conn, config, NOW)
        assert [alert.id for alert in alerts_taken(conn, "all", since=AT)] == [ID, "other"]
        assert alerts_taken(conn, "grave", since=AT) == []
        record(conn, decision("update", severity="critical", p_value=1e-9))
        route_outbox(conn, config, NOW)
        assert [alert.id for alert in alerts_taken(conn, "grave", since=AT)] == [ID]
        assert taken_counts(conn, NOW, 1) == {"all": 2, "grave": 1}
        assert alerts_taken(conn, "all", since=AT + timedelta(days=1)) == []


def test_a_rule_that_takes_an_alert_later_tells_its_own_receivers_then(store: Engine) -> None:
    boss = Rule("own", min_negative_stories=20, receivers=("boss", "nobody"))
    config = config_of(Route(("desk",)), Route(("boss",), keys=("market",)), rules=(Rule("all"), boss))
    with writing(store) as conn:
        record(conn, decision())
        route_outbox(conn, config, NOW)
        assert release_held(conn, config, NOW) == 0
        assert notices(conn) == {("desk", ID, "firing"): "pending"}
        record(conn, decision("update", observed=25, p_value=1e-9))
        assert release_held(conn, config, NOW) == 1
        assert release_held(conn, config, NOW) == 0
        record(conn, decision("resolve"))
        route_outbox(conn, config, NOW)
        assert {event for receiver, _, event in notices(conn) if receiver == "boss"} == {"firing", "resolved"}


def test_a_rule_made_in_the_store_holds_at_once(store: Engine) -> None:
    config = config_of(Route(("desk",)), rules=(Rule("market", keys=("market",)),))
    with writing(store) as conn:
        record(conn, decision())
        route_outbox(conn, config, NOW)
        assert notices(conn) == {("desk", ID, "firing"): "held"}
        save_rule(conn, Rule("tickers", keys=("ticker:*",)).definition, author="ada", now=NOW)
        assert release_held(conn, config, NOW) == 1


def test_a_test_notice_is_asked_for_and_noted(store: Engine) -> None:
    with writing(store) as conn:
        webhook_id = request_trial(conn, "desk", NOW, DASHBOARD, by="ada")
        # Its end waits for it.
        (row,) = deliveries.due(conn, "desk", NOW, 10)
        assert (row.id, row.event) == (webhook_id, "test")
        assert undelivered.undelivered(conn) == []
        deliveries.give_up(conn, row.id, 500, "The receiver answered 500.")
        assert undelivered.undelivered(conn) == []
        assert undelivered.replay(conn, NOW) == 0
        assert deliveries.tests_of_receivers(conn)["desk"].last_error == "The receiver answered 500."
        (over,) = deliveries.due(conn, "desk", NOW, 10)
        deliveries.finish(conn, over.id, 200, NOW)
        assert deliveries.tests_of_receivers(conn)["desk"].last_error == "The receiver answered 500."
        later = NOW + timedelta(minutes=1)
        request_trial(conn, "desk", later, DASHBOARD, by="ada")
        assert deliveries.tests_of_receivers(conn)["desk"].state == "pending"
        arrived(conn, later)
        assert deliveries.tests_of_receivers(conn)["desk"].state == "delivered"
        assert [(change.actor, change.event) for change in changes(conn)] == [("ada", "test requested")] * 2


def test_without_receivers_events_are_routed_to_nobody(store: Engine) -> None:
    with writing(store) as conn:
        record(conn, decision())
        assert route_outbox(conn, config_of(), NOW) == 1
        assert notices(conn) == {}
