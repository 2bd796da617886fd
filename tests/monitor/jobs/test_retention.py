"""Retention: what is older than the settings keep goes, in batches; what is still needed stays."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import JSON, Engine, func, insert, select

from monitor.jobs.retention import drop_old
from monitor.settings import Settings
from monitor.storage import tables
from monitor.storage.engine import reading, writing

NOW = datetime(2026, 3, 8, 12, tzinfo=UTC)
# These have tests of their own.
OF_ALERTS = {"episodes", "alert_events", "outbox", "deliveries", "silences", "audit_log"}
QUIET = lambda done, total, message="": None  # noqa: E731
GOING = lambda: False  # noqa: E731


def item(number: int, at: datetime, **values: Any) -> dict[str, Any]:
    base: dict[str, Any] = {
        "id": f"i{number}",
        "published_at": at,
        "sentiment": "negative",
        "p_negative": 0.8,
        "p_neutral": 0.1,
        "p_positive": 0.1,
        "topic": "earnings",
        "modality": "text",
        "model_version": "v1",
        "scored_at": at,
    }
    for column in tables.items.columns:
        if column.name not in base and not column.nullable:
            base[column.name] = {} if column.name == "topic_probabilities" else [] if column.type is tables.Json else ""
    return base | values


def fill(engine: Engine, ages_days: list[float]) -> None:
    with writing(engine) as connection:
        for number, age in enumerate(ages_days):
            at = NOW - timedelta(days=age)
            minute = int(at.timestamp()) // 60
            connection.execute(insert(tables.items).values(item(number, at)))
            connection.execute(
                insert(tables.item_keys).values(
                    key="ticker:AAPL", item_id=f"i{number}", published_at=at, p_negative=0.8, score=-0.7
                )
            )
            connection.execute(
                insert(tables.charts).values(
                    chart_id=f"c{number}",
                    item_id=f"i{number}",
                    published_at=at,
                    tickers=[],
                    media_type="image/png",
                    width=1,
                    height=1,
                    image=b"x",
                )
            )
            connection.execute(
                insert(tables.ticks).values(
                    key="ticker:AAPL",
                    minute=minute,
                    stories=1,
                    negative_stories=1,
                    items=1,
                    negative_items=1,
                    score_sum=-0.7,
                    late=0,
                )
            )
            connection.execute(insert(tables.ledger).values(partition=0, minute=minute, counted_in=minute, pairs=b""))
            connection.execute(
                insert(tables.stories).values(
                    id=f"s{number}",
                    key="ticker:AAPL",
                    first_at=minute * 60_000,
                    last_at=minute * 60_000,
                    minute=minute,
                    sign=-1,
                    items=1,
                    source="",
                    item_id=f"i{number}",
                    copies=JSON.NULL,
                    p_negative=0.8,
                    score=-0.7,
                )
            )


def count(engine: Engine, table: Any) -> int:
    with reading(engine) as connection:
        return int(connection.execute(select(func.count()).select_from(table)).scalar_one())


def test_each_table_loses_what_its_setting_says(store: Engine, make_settings: Callable[..., Settings]) -> None:
    fill(store, [0, 10, 20, 40, 70, 100, 101])
    settings = make_settings(retention_items_days=90, retention_charts_days=30, retention_ticks_days=60)
    dropped = drop_old(store, settings, NOW + timedelta(hours=1), QUIET, GOING, batch_rows=2)
    assert {name: number for name, number in dropped.items() if name not in OF_ALERTS} == {
        "charts": 4, "item_keys": 2, "items": 2, "awaited_charts": 0, "ticks": 3, "rollups": 0, "ledger": 3,
        "stories": 3, "dead_letters": 0, "job_runs": 0, "retracted_keys": 0, "pending": 0,
    }  # fmt: skip
    assert [count(store, t) for t in (tables.items, tables.charts, tables.ticks, tables.stories)] == [5, 3, 4, 4]
    assert sum(drop_old(store, settings, NOW + timedelta(hours=1), QUIET, GOING).values()) == 0


def test_charts_that_never_came_and_old_sums_go(store: Engine, make_settings: Callable[..., Settings]) -> None:
    def sums(width: int, age_days: float) -> dict[str, Any]:
        minute = int((NOW - timedelta(days=age_days)).timestamp()) // 60
        base = dict.fromkeys(("stories", "negative_stories", "items", "negative_items", "score_sum", "late"), 1)
        return {"width": width, "key": "ticker:AAPL", "minute": minute - minute % width, **base}

    fill(store, [0])
    with writing(store) as connection:
        for age in (10, 29, 31, 400):
            waited = {"chart_id": f"c{age}", "item_id": "i0", "published_at": NOW - timedelta(days=age)}
            connection.execute(insert(tables.awaited_charts).values(waited))
        for width in (60, 1440):
            for age in (10, 98, 102, 400):
                connection.execute(insert(tables.rollups).values(sums(width, age)))
    settings = make_settings(retention_charts_days=30, retention_ticks_days=60, retention_rollups_days=100)
    dropped = drop_old(store, settings, NOW, QUIET, GOING, batch_rows=3)
    assert (dropped["awaited_charts"], dropped["rollups"]) == (2, 4)
    # Sums are never dropped before the minutes that they are made of.
    longer = make_settings(retention_ticks_days=99, retention_rollups_days=1)
    assert drop_old(store, longer, NOW, QUIET, GOING)["rollups"] == 0


def test_a_replay_of_history_is_kept_whatever_the_clock_says(
    store: Engine, make_settings: Callable[..., Settings]
) -> None:
    fill(store, [0, 1, 2])
    dropped = drop_old(store, make_settings(), NOW + timedelta(days=4000), QUIET, GOING)
    assert sum(dropped.values()) == 0


def test_counts_stay_as_long_as_an_item_may_come_again_and_the_judge_needs_them(
    store: Engine, make_settings: Callable[..., Settings]
) -> None:
    fill(store, [0, 2, 4, 6, 8])
    settings = make_settings(retention_ticks_days=0.01, max_late_h=24, story_window_h=24)
    minute = int((NOW - timedelta(days=7)).timestamp()) // 60
    with writing(store) as connection:
        connection.execute(
            insert(tables.judge).values(
                name="judge",
                judged_to=minute + 9999,
                version=1,
                lease_holder="",
                lease_until=NOW,
                snapshot=b"",
                snapshot_minute=minute,
            )
        )
    assert drop_old(store, settings, NOW, QUIET, GOING)["ticks"] == 1
    with writing(store) as connection:
        connection.execute(tables.judge.update().values(snapshot_minute=None))
    # 24 h late + 24 h of story window + a day: three days are kept whatever the setting says.
    assert drop_old(store, settings, NOW, QUIET, GOING)["ticks"] == 2


def test_it_stops_between_two_batches_when_cancelled(store: Engine, make_settings: Callable[..., Settings]) -> None:
    fill(store, [0, *([200.0 + n for n in range(9)])])
    asked = iter([False, False, True])
    dropped = drop_old(store, make_settings(), NOW, QUIET, lambda: next(asked, True), batch_rows=3)
    assert dropped == {"charts": 6}


@pytest.mark.parametrize("age", [5, 95])
def test_finished_runs_go_and_unfinished_ones_stay(
    age: int, store: Engine, make_settings: Callable[..., Settings]
) -> None:
    at = NOW - timedelta(days=age)
    with writing(store) as connection:
        for finished in (at, None):
            connection.execute(
                insert(tables.job_runs).values(
                    job="drift",
                    state="succeeded",
                    started_at=at,
                    finished_at=finished,
                    heartbeat_at=at,
                    process="",
                    cancel_requested=False,
                )
            )
    assert drop_old(store, make_settings(), NOW, QUIET, GOING)["job_runs"] == (1 if age > 90 else 0)
