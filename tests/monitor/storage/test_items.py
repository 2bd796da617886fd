"""Items, keys, charts and dead letters in the store: idempotent, and pairs found from either side."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import msgspec
import pytest
from sqlalchemy import Engine, select

from monitor.errors import InputError
from monitor.pairing import Group, stand_in
from monitor.records import (
    AppliedRule,
    Chart,
    ChartScore,
    Modality,
    NewsItem,
    ScoredItem,
    SentimentScore,
    TopicScore,
    Trend,
)
from monitor.storage.articles import article
from monitor.storage.dead_letters import (
    DeadLetter,
    LetterId,
    dead_letter_list,
    find_dead_letters,
    mark_replayed,
    store_dead_letters,
)
from monitor.storage.engine import reading, writing
from monitor.storage.items import Picture, join_stored, lock_pairing, store_scored
from monitor.storage.tables import awaited_charts, charts, item_keys, items, retracted_keys
from monitor.surges.keys import contributions

AT = datetime(2024, 1, 8, 9, tzinfo=UTC)


def item(item_id: str, *chart_ids: str, title: str = "A title", tickers: tuple[str, ...] = ("AAPL",)) -> NewsItem:
    return NewsItem(id=item_id, published_at=AT, title=title, chart_ids=chart_ids, tickers=tickers)


def chart(chart_id: str, item_id: str = "", image: bytes = b"image") -> Chart:
    return Chart(chart_id=chart_id, image=image, published_at=AT, item_id=item_id, tickers=("AAPL",))


def scored(group: Group[int], topic: str = "macro") -> ScoredItem:
    news, pictures = group.to_score()
    both = Modality.BOTH if news.text else Modality.CHART
    return ScoredItem(
        id=news.id,
        published_at=news.published_at,
        sentiment=SentimentScore.of((0.7, 0.2, 0.1)),
        topic=TopicScore(label=topic, probabilities={topic: 1.0}),
        modality=both if pictures else Modality.TEXT,
        model_version="m",
        scored_at=AT,
        title=news.title,
        tickers=news.tickers,
        chart_ids=news.chart_ids,
        flags=("f",),
        rules=(
            AppliedRule(
                name="r", effect="not_positive", why="w", words="found", before=SentimentScore.of((0.2, 0.2, 0.6))
            ),
        ),
        chart=ChartScore(chart_id=pictures[0].chart_id, label=Trend.UP, down=0.1, flat=0.1, up=0.8, p_chart=0.9)
        if pictures
        else None,
    )


def put(store: Engine, *groups: Group[int], topic: str = "macro", new: bool = True) -> list[tuple[str, str]]:
    entries = [(group, scored(group, topic), contributions(scored(group, topic))) for group in groups]
    pictures = {chart_id: Picture("image/png", 3, 2) for group in groups for chart_id in group.charts} if new else {}
    with writing(store) as connection:
        lock_pairing(connection, exclusive=True)
        return [row[:2] for row in store_scored(connection, entries, pictures)]


def join(store: Engine, *groups: Group[int]) -> tuple[list[tuple[str, list[str]]], set[str]]:
    with reading(store) as connection:
        found, changed = join_stored(connection, groups)
    return sorted((group.key, sorted(group.charts)) for group in found), changed


def test_writing_twice_leaves_one_of_each_and_the_newer_keys(store: Engine) -> None:
    group = Group(item("a", "c"), {"c": chart("c")}, [1])
    put(store, group)
    put(store, group, topic="earnings")
    with reading(store) as connection:
        assert article(connection, "a") == scored(group, "earnings")
        assert {tuple(row)[:2] for row in connection.execute(select(item_keys))} == {
            ("ticker:AAPL", "a"),
            ("topic:earnings", "a"),
        }
        (row,) = connection.execute(select(charts))
        assert (row.chart_id, row.item_id, bytes(row.image), row.width) == ("c", "a", b"image", 3)
        assert connection.execute(select(awaited_charts)).all() == []


def test_keys_that_an_item_has_lost_are_told_until_it_has_them_again(store: Engine) -> None:
    before, after = Group(item("a"), tokens=[1]), Group(item("a", tickers=("MSFT",)), tokens=[1])
    others = [Group(item(f"b{n}"), tokens=[1]) for n in range(3)]
    assert put(store, before, *others) == []
    assert put(store, before, *others) == []
    assert put(store, after, *others, topic="earnings") == [
        ("a", "ticker:AAPL"), ("a", "topic:macro"), *((f"b{n}", "topic:macro") for n in range(3))
    ]  # fmt: skip
    # Written once more, as after a crash between the store and the broker, it tells the same; and other items nothing.
    assert put(store, after, topic="earnings") == [("a", "ticker:AAPL"), ("a", "topic:macro")]
    assert put(store, Group(item("new"), tokens=[1])) == []
    assert put(store, after, topic="politics") == [
        ("a", "ticker:AAPL"), ("a", "topic:earnings"), ("a", "topic:macro")
    ]  # fmt: skip
    assert put(store, before) == [("a", "ticker:MSFT"), ("a", "topic:earnings"), ("a", "topic:politics")]
    assert put(store, before) == [("a", "ticker:MSFT"), ("a", "topic:earnings"), ("a", "topic:politics")]


def test_an_item_that_has_moved_to_another_minute_is_taken_back_from_the_first(store: Engine) -> None:
    def at(seconds: float) -> Group[int]:
        moved = msgspec.structs.replace(item("a", tickers=()), published_at=AT + timedelta(seconds=seconds))
        return Group(moved, tokens=[1])

    assert put(store, at(0)) == []
    assert put(store, at(59)) == []
    assert put(store, at(61)) == [("a", "topic:macro")]
    assert put(store, at(0)) == [("a", "topic:macro")]
    with reading(store) as connection:
        assert [row.published_at for row in connection.execute(select(retracted_keys))] == [AT + timedelta(seconds=61)]


def test_a_chart_that_gives_up_its_own_place_is_taken_back(store: Engine) -> None:
    assert put(store, Group(None, {"c": chart("c")}, [1])) == []
    paired = Group(item("a", "c"), {"c": chart("c")}, [2])
    for _ in range(2):
        assert put(store, paired) == [("chart:c", "ticker:AAPL"), ("chart:c", "topic:macro")]


@pytest.mark.parametrize(("names", "header"), [(("c",), ""), ((), "a"), (("c",), "a")])
def test_a_late_chart_finds_its_item(store: Engine, names: tuple[str, ...], header: str) -> None:
    put(store, Group(item("a", *names), tokens=[1]))
    assert join(store, Group(None, {"c": chart("c", header)}, [2])) == ([("a", ["c"])], {"a"})


@pytest.mark.parametrize(("names", "header"), [(("c",), ""), ((), "a"), (("c",), "a")])
def test_a_late_item_finds_its_chart_which_gives_up_its_own_place(
    store: Engine, names: tuple[str, ...], header: str
) -> None:
    put(store, Group(None, {"c": chart("c", header)}, [1]))
    with reading(store) as connection:
        assert [row.id for row in connection.execute(select(items))] == ["chart:c"]
        found, changed = join_stored(connection, [Group(item("a", *names), tokens=[2])])
    assert changed == {"a"}
    assert found[0].charts["c"].image == b"image"
    put(store, found[0], new=False)
    with reading(store) as connection:
        assert [row.id for row in connection.execute(select(items))] == ["a"]
        assert {row.item_id for row in connection.execute(select(item_keys))} == {"a"}
        assert connection.execute(select(charts.c.item_id)).scalar_one() == "a"
    # Once together, each brings the other along.
    assert join(store, Group(item("a", *names), tokens=[3])) == ([("a", ["c"])], {"a"})
    assert join(store, Group(None, {"c": chart("c", header)}, [4]))[0] == [("a", ["c"])]


def test_what_the_store_has_nothing_for_is_left_alone(store: Engine) -> None:
    groups: list[Group[int]] = [Group(item("a", "c"), tokens=[1]), Group(None, {"d": chart("d", "b")}, [2])]
    assert join(store, *groups) == ([("a", []), ("chart:d", ["d"])], set())
    put(store, *groups)
    assert join(store, *groups) == ([("a", []), ("chart:d", ["d"])], set())


def test_the_groups_that_are_given_are_not_changed(store: Engine) -> None:
    put(store, Group(None, {"c": chart("c", "a")}, [1]))
    group: Group[int] = Group(item("a"), tokens=[2])
    assert join(store, group)[1] == {"a"}
    assert group.charts == {}


def test_a_version_in_the_batch_is_newer_than_the_stored_one(store: Engine) -> None:
    put(store, Group(item("a", "c", title="old"), tokens=[1]))
    with reading(store) as connection:
        found, _ = join_stored(
            connection, [Group(item("a", title="new"), tokens=[2]), Group(None, {"c": chart("c")}, [3])]
        )
    assert [(g.item.title if g.item else "", sorted(g.charts), sorted(g.tokens)) for g in found] == [
        ("new", ["c"], [2, 3])
    ]


def test_a_refused_chart_is_not_brought_back(store: Engine) -> None:
    put(store, Group(None, {"c": chart("c", "a")}, [1]))
    assert join(store, Group(item("a", "c"), tokens=[2], refused={"c"})) == ([("a", [])], set())


def test_long_batches(store: Engine) -> None:
    groups: list[Group[int]] = [Group(item(f"i{n}", f"c{n}"), tokens=[n]) for n in range(400)]
    put(store, *groups)
    put(store, *groups)
    assert join(store, *groups)[1] == set()
    late: list[Group[int]] = [Group(None, {f"c{n}": chart(f"c{n}")}, [n]) for n in range(400)]
    assert len(join(store, *late)[1]) == 400


def test_the_stand_in_of_the_longest_chart_id_fits(store: Engine) -> None:
    group: Group[int] = Group(None, {"c" * 250: chart("c" * 250)}, [1])
    put(store, group)
    with reading(store) as connection:
        assert article(connection, stand_in(group.charts["c" * 250]).id) is not None


def test_dead_letters_are_entered_once_and_found_again(store: Engine) -> None:
    def letter(offset: int, code: str = "bad_json") -> DeadLetter:
        return DeadLetter(
            id=LetterId("news", 0, offset), code=code, reason="x\x00y", failed_at=AT + timedelta(seconds=offset)
        )

    with writing(store) as connection:
        store_dead_letters(connection, [letter(1), letter(2), letter(1)])
        store_dead_letters(connection, [letter(2, "other"), letter(3, "empty")])
        assert [x.id.offset for x in dead_letter_list(connection)] == [3, 2, 1]
        assert [x.id.offset for x in dead_letter_list(connection, limit=1)] == [3]
        assert [x.id.offset for x in dead_letter_list(connection, code="bad_json")] == [2, 1]
        mark_replayed(connection, [LetterId("news", 0, 2), LetterId("news", 9, 9)])
        assert [x.id.offset for x in dead_letter_list(connection, waiting=True)] == [3, 1]
        assert set(find_dead_letters(connection, [LetterId("news", 0, 1), LetterId("x", 0, 1)])) == {
            LetterId("news", 0, 1)
        }
        assert dead_letter_list(connection)[2].reason == "xy"


@pytest.mark.parametrize("text", ["", "news", "news:1", "news:a:1", "news:1:-1", ":1:1", "news:1:1:1", "news:²:1"])
def test_bad_letter_ids_are_told(text: str) -> None:
    with pytest.raises(InputError):
        LetterId.parse(text)


def test_letter_ids_read_back() -> None:
    assert LetterId.parse(str(LetterId("a.b-news", 3, 12))) == LetterId("a.b-news", 3, 12)
