from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import Engine, delete, event, func, select

from monitor.storage.engine import reading, writing
from monitor.storage.tables import item_keys, retracted_keys, rollups, stories, ticks
from monitor.storage.upsert import bulk_select, bulk_upsert, delete_rows, insert_missing, upsert
from tests.monitor.storage.rows import AT, tick_row

COUNTS = ("stories", "negative_stories", "items", "negative_items", "score_sum", "late", "positive_stories")


def test_upsert_inserts_then_overwrites(store: Engine) -> None:
    with writing(store) as connection:
        upsert(connection, ticks, [tick_row("market", 1, items=3)])
        upsert(connection, ticks, [tick_row("market", 1, items=5), tick_row("market", 2, items=1)])
        rows = connection.execute(select(ticks.c.minute, ticks.c["items"]).order_by(ticks.c.minute)).all()
    assert [tuple(row) for row in rows] == [(1, 5), (2, 1)]


def test_upsert_adds_up_and_keeps(store: Engine) -> None:
    with writing(store) as connection:
        upsert(connection, ticks, [tick_row("a", 1, stories=2, items=3, score_sum=0.5)])
        row = tick_row("a", 1, stories=1, items=4, score_sum=0.25)
        upsert(connection, ticks, [row], add=("items", "score_sum"), keep=("stories",))
        found = connection.execute(select(ticks)).one()
    assert (found.stories, found._mapping["items"], found.score_sum) == (2, 7, 0.75)


def test_upsert_of_a_key_alone_and_of_nothing(store: Engine) -> None:
    with writing(store) as connection:
        upsert(connection, ticks, [])
        upsert(connection, ticks, [tick_row("a", 1, items=1)], keep=COUNTS)
        upsert(connection, ticks, [tick_row("a", 1, items=9)], keep=COUNTS)
        assert connection.scalar(select(ticks.c["items"])) == 1


def test_more_rows_than_a_statement_may_hold(store: Engine) -> None:
    rows = [tick_row(f"ticker:T{number}", 7, items=1) for number in range(9_000)]
    with writing(store) as connection:
        upsert(connection, ticks, rows, add=("items",))
        upsert(connection, ticks, rows, add=("items",))
        total = connection.execute(select(func.count(), func.sum(ticks.c["items"]))).one()
    assert tuple(total) == (9_000, 18_000)


def test_insert_missing_names_what_was_new(store: Engine) -> None:
    def row(key: str, item: str, p: float) -> dict[str, object]:
        return {"key": key, "item_id": item, "published_at": AT, "p_negative": p, "score": 0.0}

    with writing(store) as connection:
        assert insert_missing(connection, item_keys, [row("a", "1", 0.1)]) == [("a", "1")]
        new = insert_missing(connection, item_keys, [row("a", "1", 0.9), row("a", "2", 0.2), row("b", "1", 0.3)])
        assert sorted(new) == [("a", "2"), ("b", "1")]
        assert insert_missing(connection, item_keys, []) == []
    with reading(store) as connection:
        kept = connection.scalar(
            select(item_keys.c.p_negative).where(item_keys.c.item_id == "1", item_keys.c.key == "a")
        )
    assert kept == pytest.approx(0.1)


def test_a_failed_transaction_leaves_nothing(store: Engine) -> None:
    def fails() -> None:
        with writing(store) as connection:
            upsert(connection, ticks, [tick_row("a", 1)])
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fails()
    with reading(store) as connection:
        assert connection.scalar(select(func.count()).select_from(ticks)) == 0


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 3), st.integers(0, 9)), max_size=30))
def test_adding_in_any_portions_gives_the_sum(store: Engine, changes: list[tuple[str, int, int]]) -> None:
    expected: dict[tuple[str, int], int] = {}
    with writing(store) as connection:
        connection.execute(delete(rollups))
        for key, minute, added in changes:
            expected[key, minute] = expected.get((key, minute), 0) + added
            row = tick_row(key, minute, items=added) | {"width": 60}
            upsert(connection, rollups, [row], add=COUNTS)
        rows = connection.execute(select(rollups.c.key, rollups.c.minute, rollups.c["items"])).all()
    assert {(key, minute): n for key, minute, n in rows} == expected


def test_rows_are_read_and_deleted_by_their_keys(store: Engine) -> None:
    rows = [(n // 3, f"k{n % 3}", f"id{n}", n, n, 2, -1, 0.5, 0.0, "i", "s", '{"a":1}') for n in range(1200)]
    # One is not there; JSON comes as text.
    wanted = [(5_000, "k0", "id0"), *(row[:3] for row in rows[:1100])]
    with writing(store) as connection:
        bulk_upsert(connection, stories, rows)
        found = bulk_select(connection, stories, ("id", "first_at", "copies"), wanted)
        assert sorted((id_, at) for id_, at, _ in found) == sorted((row[2], row[3]) for row in rows[:1100])
        assert {text.replace(" ", "") for _, _, text in found} == {'{"a":1}'}
        delete_rows(connection, stories, wanted)
        assert sorted(connection.scalars(select(stories.c.id))) == sorted(row[2] for row in rows[1100:])
        upsert(connection, retracted_keys, [{"item_id": "1", "key": "a", "published_at": AT}])
        delete_rows(connection, retracted_keys, [("1", "a", AT), ("2", "a", AT)])
        delete_rows(connection, retracted_keys, [])
        assert connection.scalar(select(func.count()).select_from(retracted_keys)) == 0


def test_sqlite_reads_no_table_to_its_end_for_that(store: Engine) -> None:
    if store.dialect.name != "sqlite":
        pytest.skip("the planner of PostgreSQL reads small tables to their end")
    statements: list[tuple[str, Any]] = []
    event.listen(store, "before_cursor_execute", lambda _c, _k, text, values, *_: statements.append((text, values)))
    with writing(store) as connection:
        bulk_select(connection, stories, ("id",), [(1, "a", "x"), (2, "b", "y")])
        delete_rows(connection, stories, [(1, "a", "x")])
        looked_up = [(text, values) for text, values in statements if "stories" in text]
        plans = [connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {text}", values).all() for text, values in looked_up]
    steps = [row[3] for plan in plans for row in plan]
    assert sum("PRIMARY KEY (minute=? AND key=? AND id=?)" in step for step in steps) == 2
    assert not any(step.startswith(("SCAN stories", "SCAN t")) for step in steps)
