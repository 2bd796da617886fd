"""Pairing of items and charts: whatever the order, nothing is lost and nothing waits longer than it may."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from monitor.pairing import MAX_CHARTS, Group, Pairing, merge
from monitor.records import Chart, NewsItem

AT = datetime(2024, 5, 1, tzinfo=UTC)


def item(item_id: str, *charts: str) -> NewsItem:
    return NewsItem(id=item_id, published_at=AT, title=item_id, chart_ids=charts)


def chart(chart_id: str, item_id: str = "", size: int = 10) -> Chart:
    return Chart(chart_id=chart_id, image=b"x" * size, published_at=AT, item_id=item_id)


def room(wait_s: float = 2.0, held: int = 100, size: int = 10_000) -> Pairing[int]:
    return Pairing(wait_s, held, size)


def shape(groups: list[Group[int]]) -> list[tuple[str, list[str], list[int]]]:
    return [(g.key, sorted(g.charts), sorted(g.tokens)) for g in groups]


def test_an_item_that_names_no_chart_is_let_through_at_once() -> None:
    assert shape(room().add_item(item("a"), 1, 0.0)) == [("a", [], [1])]


@pytest.mark.parametrize("header", ["", "a"])
@pytest.mark.parametrize("names", [(), ("c",)])
def test_a_chart_that_came_first_is_found_by_either_name(header: str, names: tuple[str, ...]) -> None:
    pairing = room()
    assert pairing.add_chart(chart("c", header), 1, 0.0) == []
    found = pairing.add_item(item("a", *names), 2, 1.9)
    linked = bool(header or names)
    assert shape(found) == [("a", ["c"] if linked else [], [1, 2] if linked else [2])]
    assert len(pairing) == (0 if linked else 1)


@pytest.mark.parametrize("header", ["", "a"])
def test_an_item_waits_for_the_chart_that_it_names(header: str) -> None:
    pairing = room()
    assert pairing.add_item(item("a", "c"), 1, 0.0) == []
    assert shape(pairing.add_chart(chart("c", header), 2, 1.0)) == [("a", ["c"], [1, 2])]
    assert len(pairing) == 0
    assert pairing.held_bytes == 0


def test_the_wait_ends_for_items_and_charts_alike() -> None:
    pairing = room()
    pairing.add_item(item("a", "c"), 1, 0.0)
    pairing.add_chart(chart("d", "b"), 2, 0.5)
    assert pairing.expire(1.99) == []
    assert shape(pairing.expire(2.0)) == [("a", [], [1])]
    assert shape(pairing.expire(2.5)) == [("chart:d", ["d"], [2])]


def test_what_may_still_come_is_waited_for() -> None:
    pairing = room()
    pairing.add_item(item("a", "c"), 1, 0.0)
    pairing.add_chart(chart("d", "b"), 2, 0.0)
    assert pairing.expire(9.0, lambda group: True) == []
    assert (pairing.items, pairing.charts) == (1, 1)
    assert shape(pairing.expire(9.0, lambda group: group.item is None)) == [("a", [], [1])]
    assert shape(pairing.expire(9.0)) == [("chart:d", ["d"], [2])]


def test_an_item_with_two_charts_leaves_with_what_has_come() -> None:
    pairing = room()
    pairing.add_item(item("a", "c", "d"), 1, 0.0)
    assert pairing.add_chart(chart("d"), 2, 1.0) == []
    assert shape(pairing.expire(2.0)) == [("a", ["d"], [1, 2])]


def test_a_second_version_of_a_waiting_item_takes_its_place_but_not_more_time() -> None:
    pairing = room()
    pairing.add_item(item("a", "c"), 1, 0.0)
    newer = NewsItem(id="a", published_at=AT, title="newer", chart_ids=("c",))
    assert pairing.add_item(newer, 2, 1.0) == []
    (group,) = pairing.expire(2.0)
    assert group.item == newer
    assert sorted(group.tokens) == [1, 2]


def test_a_redelivered_chart_is_held_once() -> None:
    pairing = room()
    pairing.add_chart(chart("c", "a"), 1, 0.0)
    pairing.add_chart(chart("c", "a"), 2, 0.1)
    assert pairing.held_bytes == 10
    assert shape(pairing.add_item(item("a"), 3, 0.2)) == [("a", ["c"], [1, 2, 3])]


def test_a_broken_chart_frees_its_item() -> None:
    pairing = room()
    pairing.add_item(item("a", "c", "d"), 1, 0.0)
    assert pairing.give_up("c", "") == []
    assert pairing.give_up("zzz", "a") == []
    assert shape(pairing.give_up("d", "a")) == [("a", [], [1])]


def test_no_wait_pairs_only_what_is_there() -> None:
    pairing = room(wait_s=0.0)
    assert shape(pairing.add_chart(chart("c", "a"), 1, 0.0)) == [("chart:c", ["c"], [1])]
    assert shape(pairing.add_item(item("a", "c"), 2, 0.0)) == [("a", [], [2])]


def test_full_rooms_send_the_oldest_away() -> None:
    pairing = room(held=2)
    assert pairing.add_item(item("a", "x"), 1, 0.0) == []
    assert pairing.add_item(item("b", "y"), 2, 0.1) == []
    assert shape(pairing.add_item(item("c", "z"), 3, 0.2)) == [("a", [], [1])]
    small = room(size=25)
    small.add_chart(chart("c1"), 1, 0.0)
    small.add_chart(chart("c2"), 2, 0.0)
    assert shape(small.add_chart(chart("c3"), 3, 0.0)) == [("chart:c1", ["c1"], [1])]
    assert small.held_bytes == 20


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("item"), st.sampled_from("abc"), st.lists(st.sampled_from("pqr"), max_size=3)),
            st.tuples(st.just("chart"), st.sampled_from("pqr"), st.sampled_from(["", "a", "b", "z"])),
            st.tuples(st.just("broken"), st.sampled_from("pqr"), st.sampled_from(["", "a"])),
            st.tuples(st.just("tick"), st.floats(0, 3), st.none()),
        ),
        max_size=40,
    ),
    st.integers(1, 4),
)
def test_every_record_comes_out_once_and_in_time(events: list[tuple[str, object, object]], held: int) -> None:
    pairing: Pairing[int] = Pairing(2.0, held, 35)
    now, out, came = 0.0, [], {}
    for token, (kind, what, link) in enumerate(events):
        if kind == "item":
            groups = pairing.add_item(item(str(what), *link), token, now)  # type: ignore[misc]
        elif kind == "chart":
            groups = pairing.add_chart(chart(str(what), str(link)), token, now)
        elif kind == "broken":
            groups = pairing.give_up(str(what), str(link))
        else:
            now += float(what)  # type: ignore[arg-type]
            groups = pairing.expire(now)
            left = {t for g, until in (*pairing._items.values(), *pairing._charts.values()) for t in g.tokens if g}
            # An item that was there first lends its deadline to later versions, a chart waits from its last copy on.
            assert all(until > now for _, until in (*pairing._items.values(), *pairing._charts.values()))
            assert left <= set(came)
        if kind in ("item", "chart"):
            came[token] = now
        out += [t for group in groups for t in group.tokens]
        assert len(pairing) <= held
        assert pairing.held_bytes <= 35
    out += [t for group in pairing.expire(now + 2.0) for t in group.tokens]
    assert sorted(out) == sorted(came)
    assert len(pairing) == 0
    assert pairing.held_bytes == 0
    assert pairing._wanted == {}
    assert pairing._by_item == {}


def test_merging_joins_versions_and_halves() -> None:
    newer = NewsItem(id="a", published_at=AT, title="newer", chart_ids=("c",))
    groups = merge(
        [
            Group(item("a"), tokens=[1]),
            Group(None, {"c": chart("c")}, [2]),
            Group(newer, tokens=[3]),
            Group(None, {"d": chart("d", "a")}, [4]),
            Group(None, {"e": chart("e", "zz")}, [5]),
            Group(None, {"e": chart("e", "zz")}, [6]),
        ]
    )
    assert shape(groups) == [("a", ["c", "d"], [1, 2, 3, 4]), ("chart:e", ["e"], [5, 6])]
    assert groups[0].item == newer


def test_charts_are_ordered_by_the_item_not_by_arrival_and_bounded() -> None:
    names = [f"c{i}" for i in range(12)]
    group: Group[int] = Group(item("a", "c3", "c1"), {n: chart(n) for n in reversed(names)})
    _, charts = group.to_score()
    assert [c.chart_id for c in charts[:2]] == ["c3", "c1"]
    assert len(charts) == MAX_CHARTS
    assert len(Group(item("a", *names)).missing) == MAX_CHARTS


def test_a_lone_chart_gets_a_stand_in() -> None:
    stand, charts = Group(None, {"c": chart("c")}, [1]).to_score()
    assert (stand.id, stand.text, stand.chart_ids) == ("chart:c", "", ("c",))
    assert charts == (chart("c"),)
