"""Retention of alerts: what is long over goes with everything that hangs on it; nothing open or undelivered does."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, func, select

from monitor.alerts.lifecycle import request_trial, route_outbox
from monitor.jobs.retention import drop_old
from monitor.settings import Settings
from monitor.storage import deliveries
from monitor.storage.alerts import record_decisions
from monitor.storage.engine import open_engine, reading, writing
from monitor.storage.outbox import mark_published
from monitor.storage.silences import add_silence
from monitor.storage.tables import alert_events, audit_log, episodes, outbox, silences
from monitor.storage.tables import deliveries as delivery_table
from tests.monitor.alerts.builders import AT, DASHBOARD, decision, new_store
from tests.monitor.alerts.test_lifecycle import DESK
from tests.postgres import postgres_cluster, postgres_url  # noqa: F401 - fixtures

LATER = AT + timedelta(days=40)


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.postgresql)])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Engine:
    return new_store(tmp_path) if request.param == "sqlite" else open_engine(request.getfixturevalue("postgres_url"))


def settle(store: Engine, *, published: bool = True, delivered: bool = True) -> None:
    """What the notifier does to all there is."""
    with writing(store) as conn:
        route_outbox(conn, DESK, AT)
        if published:
            mark_published(conn, conn.scalars(select(outbox.c.id)).all(), AT)
        if delivered:
            for row in conn.execute(select(delivery_table.c.id).where(delivery_table.c.state == "pending")):
                deliveries.finish(conn, row.id, 200, AT)


def drop(store: Engine, days: float) -> dict[str, int]:
    settings = Settings(data_dir=Path("unused"), retention_alerts_days=days)
    dropped = drop_old(store, settings, LATER, lambda *_: None, lambda: False, batch_rows=2)
    return {name: number for name, number in dropped.items() if number}


def left(store: Engine, table: Any) -> int:
    with reading(store) as conn:
        return int(conn.scalar(select(func.count()).select_from(table)) or 0)


def ended(store: Engine, *names: str) -> None:
    with writing(store) as conn:
        for name in names:
            both = (decision(episode_id=name), decision("resolve", episode_id=name, at=AT + timedelta(hours=1)))
            record_decisions(conn, both, dashboard_url=DASHBOARD)


def test_what_is_long_over_goes_whole_in_batches(store: Engine) -> None:
    ended(store, "a", "b", "c")
    settle(store)
    assert drop(store, 60) == {}
    assert drop(store, 30) == {"deliveries": 6, "alert_events": 12, "outbox": 6, "episodes": 3}
    assert [left(store, table) for table in (episodes, outbox, alert_events, delivery_table)] == [0, 0, 0, 0]


@pytest.mark.parametrize("why", ["open", "unpublished", "unrouted", "pending", "failed", "held"])
def test_what_is_open_or_undelivered_stays_whole(store: Engine, why: str) -> None:
    if why == "open":
        with writing(store) as conn:
            record_decisions(conn, [decision(episode_id="a")], dashboard_url=DASHBOARD)
    else:
        ended(store, "a")
    if why != "unrouted":
        settle(store, published=why != "unpublished", delivered=why not in ("pending", "failed"))
    with writing(store) as conn:
        if why in ("failed", "held"):
            conn.execute(delivery_table.update().values(state=why))
    before = [left(store, table) for table in (episodes, outbox, alert_events, delivery_table)]
    assert drop(store, 1) == {}
    assert [left(store, table) for table in (episodes, outbox, alert_events, delivery_table)] == before


def test_tests_digests_silences_and_the_log_go_by_the_clock(store: Engine) -> None:
    ended(store, "a", "b")
    settle(store, delivered=False)
    with writing(store) as conn:
        rows = deliveries.due(conn, "desk", AT, 10)
        digest = deliveries.bundle(conn, rows, "{}", AT)
        deliveries.finish(conn, digest.id, 200, AT)
        for row in conn.execute(select(delivery_table.c.id).where(delivery_table.c.state == "pending")):
            deliveries.finish(conn, row.id, 200, AT)
        request_trial(conn, "desk", AT, DASHBOARD, by="ada")
        add_silence(conn, key="*", starts_at=AT, ends_at=AT + timedelta(hours=1), comment="known", author="ada")
    dropped = drop(store, 30)
    # Four notices, their digest, and the two of the test.
    assert (dropped["deliveries"], dropped["silences"], dropped["audit_log"]) == (7, 1, 2)
    assert [left(store, table) for table in (episodes, delivery_table, silences, audit_log)] == [0, 0, 0, 0]
