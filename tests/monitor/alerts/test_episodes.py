"""What the judge's decisions leave in the store."""

from __future__ import annotations

from datetime import timedelta

import pytest
from sqlalchemy import Engine, func, select

from monitor.alerts.records import AlertState
from monitor.errors import ConfigurationError
from monitor.storage.alerts import (
    acknowledge,
    audit_trail,
    get_alert,
    list_alerts,
    record_decisions,
)
from monitor.storage.engine import reading, writing
from monitor.storage.outbox import claim_unpublished, mark_published, mark_routed, unrouted
from monitor.storage.tables import alert_events, outbox
from monitor.surges.decisions import Decision
from tests.monitor.alerts.builders import AT, DASHBOARD, decision, put_story

ID = "negative-surge-ticker:AAPL-1"


@pytest.fixture
def store(any_store: Engine) -> Engine:
    return any_store


def record(store: Engine, *decisions: Decision) -> None:
    with writing(store) as conn:
        record_decisions(conn, decisions, dashboard_url=DASHBOARD)


def events(store: Engine) -> list[str]:
    with reading(store) as conn:
        return list(conn.scalars(select(outbox.c.event).order_by(outbox.c.id)))


def test_firing_carries_the_stories_of_its_window(store: Engine) -> None:
    with writing(store) as conn:
        put_story(conn, "ticker:AAPL", 1, items=4, sources=["a", "b", "c"], source="a", model_version="v7")
        strange = {"url": "javascript:x", "model_version": "v7"}
        put_story(conn, "ticker:AAPL", 2, items=9, sources=["d", "a"], source="d", **strange)
        put_story(conn, "ticker:AAPL", 3, sign=0)
        put_story(conn, "ticker:AAPL", 4, at=AT - timedelta(minutes=16))
        put_story(conn, "ticker:AAPL", 5, at=AT)
        put_story(conn, "ticker:MSFT", 6)
    record(store, decision())
    with reading(store) as conn:
        alert = get_alert(conn, ID)
    assert alert is not None
    assert [(s.item_id, s.copies, s.url) for s in alert.stories] == [
        ("item-2", 9, ""),
        ("item-1", 4, "https://news.example/1"),
    ]
    assert alert.sources == 4
    assert alert.model_version == "v7"
    assert (alert.window.start, alert.window.end) == (AT - timedelta(minutes=15), AT)
    assert alert.link == f"{DASHBOARD}/?alert=negative-surge-ticker%3AAAPL-1"


def test_market_takes_its_stories_from_all_topics_once(store: Engine) -> None:
    with writing(store) as conn:
        put_story(conn, "topic:earnings", 1)
        put_story(conn, "topic:macro", 2)
        put_story(conn, "topic:macro", 3, item_id="item-1")
        put_story(conn, "ticker:AAPL", 4, item_id="item-1")
    record(store, decision(key="market", episode_id="m"))
    with reading(store) as conn:
        alert = get_alert(conn, "m")
    assert alert is not None
    assert sorted(s.item_id for s in alert.stories) == ["item-1", "item-2"]


def test_what_waits_is_found_without_reading_all_that_was_announced(store: Engine) -> None:
    if store.dialect.name != "sqlite":
        pytest.skip("the planner of PostgreSQL takes the index when there is much to skip")
    with reading(store) as conn:
        for column in ("routed_at", "published_at"):
            plan = conn.exec_driver_sql(f"explain query plan select 1 from outbox where {column} is null limit 1")
            assert f"ix_outbox_waits_{column}" in str(plan.all())


def test_recording_again_changes_nothing(store: Engine) -> None:
    everything = [
        decision(),
        decision("update", p_value=1e-9, severity="critical", at=AT + timedelta(minutes=1)),
        decision("resolve", at=AT + timedelta(minutes=30)),
    ]
    record(store, *everything)
    with reading(store) as conn:
        first = (list_alerts(conn), audit_trail(conn, ID))
    record(store, *everything)
    record(store, everything[0])
    with reading(store) as conn:
        assert (list_alerts(conn), audit_trail(conn, ID)) == first
    assert events(store) == ["firing", "raised:critical", "resolved"]
    assert [entry["event"] for entry in first[1]] == ["pending", "firing", "raised", "resolved"]


def test_figures_move_only_when_they_get_worse(store: Engine) -> None:
    record(
        store, decision(), decision("update", observed=3, p_value=0.2), decision("update", observed=30, p_value=1e-9)
    )
    with reading(store) as conn:
        alert = get_alert(conn, ID)
    assert alert is not None
    assert (alert.observed, alert.p_value, alert.state) == (30, 1e-9, AlertState.FIRING)
    assert events(store) == ["firing"]


def test_resolution_keeps_the_worst_figures_and_the_name_of_who_took_it(store: Engine) -> None:
    record(store, decision())
    with writing(store) as conn:
        acknowledge(conn, ID, by="ada", at=AT + timedelta(minutes=2))
        acknowledge(conn, ID, by="bob", at=AT + timedelta(minutes=3))
    record(store, decision("update", p_value=1e-8), decision("resolve", observed=0, at=AT + timedelta(hours=1)))
    with reading(store) as conn:
        alert = get_alert(conn, ID)
        assert list_alerts(conn, states=["firing"]) == []
        assert list_alerts(conn, states=["resolved"], key="ticker:AAPL") == [alert]
    assert alert is not None
    assert (alert.state, alert.observed, alert.p_value) == (AlertState.RESOLVED, 12, 1e-8)
    assert (alert.acknowledged_by, alert.resolved_at) == ("ada", AT + timedelta(hours=1))
    assert events(store) == ["firing", "acknowledged", "resolved"]


def test_decisions_about_unknown_or_finished_episodes_are_ignored(store: Engine) -> None:
    record(store, decision("update"), decision("resolve"))
    assert events(store) == []
    record(store, decision(), decision("resolve"), decision("update", p_value=0.0), decision("fire"))
    assert events(store) == ["firing", "resolved"]


def test_what_cannot_be_acknowledged_says_why(store: Engine) -> None:
    with pytest.raises(ConfigurationError, match="no alert nope"), writing(store) as conn:
        acknowledge(conn, "nope", by="ada", at=AT)
    record(store, decision(), decision("resolve"))
    with pytest.raises(ConfigurationError, match="resolved already"), writing(store) as conn:
        acknowledge(conn, ID, by="ada", at=AT)


def test_a_failed_transaction_leaves_nothing(store: Engine) -> None:
    with pytest.raises(AttributeError), writing(store) as conn:
        record_decisions(conn, [decision(), None], dashboard_url=DASHBOARD)  # type: ignore[list-item]
    with reading(store) as conn:
        assert conn.scalar(select(func.count()).select_from(alert_events)) == 0
    assert events(store) == []


def test_outbox_is_worked_off_in_order(store: Engine) -> None:
    record(store, decision(), decision("update", severity="critical"), decision("resolve"))
    later = AT + timedelta(seconds=15)
    with writing(store) as conn:
        waiting = claim_unpublished(conn, "one", AT, later)
        assert [entry.event for entry in waiting] == ["firing", "resolved"]
        assert claim_unpublished(conn, "two", AT, later) == []
        mark_published(conn, [waiting[0].position], AT)
        assert claim_unpublished(conn, "two", AT, later) == []
        assert [entry.event for entry in claim_unpublished(conn, "two", later, later)] == ["resolved"]
        assert [entry.event for entry in unrouted(conn)] == ["firing", "raised:critical", "resolved"]
        mark_routed(conn, [entry.position for entry in unrouted(conn)], AT)
        assert unrouted(conn) == []
