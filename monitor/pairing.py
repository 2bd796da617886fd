"""Brings an item and its charts together within a bounded wait.

Pure: time comes in as an argument (seconds on any clock that never goes back) and nothing here touches the world. An
item names its charts (`chart_ids`) or a chart names its item (`item_id`); either may come first. An item that names a
chart waits for it; one that names none is let through at once, and a chart that comes later is paired with the stored
item by the caller. Nothing is ever lost: what has waited long enough, or has to make room, comes out unpaired.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from monitor.records import Chart, NewsItem

__all__ = ["LONE_CHART", "MAX_CHARTS", "Group", "Pairing", "merge", "stand_in"]

T = TypeVar("T")

LONE_CHART = "chart:"
# An item shows a handful of charts; a sender that attaches thousands must not fill the memory with them.
MAX_CHARTS = 8


@dataclass(slots=True, eq=False)
class Group(Generic[T]):
    """What is scored together: an item with the charts found so far, or (`item` None) a chart without an item.

    `tokens` are the caller's, one for each record that went in. `refused` are ids of charts that this item must do
    without, because the classifier cannot digest them. `borrowed`: the item is the stored one, none has come in.
    """

    item: NewsItem | None
    charts: dict[str, Chart] = field(default_factory=dict)
    tokens: list[T] = field(default_factory=list)
    refused: set[str] = field(default_factory=set)
    borrowed: bool = False

    def copy(self) -> Group[T]:
        """A group that can be changed without changing this one."""
        return Group(self.item, dict(self.charts), list(self.tokens), set(self.refused), self.borrowed)

    @property
    def key(self) -> str:
        """Id of the item that this becomes in the store."""
        return self.item.id if self.item else f"{LONE_CHART}{next(iter(self.charts))}"

    @property
    def missing(self) -> set[str]:
        """Charts that the item names and that have not come."""
        if self.item is None:
            return set()
        return set(self.item.chart_ids[:MAX_CHARTS]) - self.charts.keys() - self.refused

    def to_score(self) -> tuple[NewsItem, tuple[Chart, ...]]:
        """The item (a stand-in for a lone chart) and its charts, in an order that does not depend on their arrival."""
        if self.item is None:
            chart = next(iter(self.charts.values()))
            return stand_in(chart), (chart,)
        named = {chart_id: place for place, chart_id in enumerate(self.item.chart_ids)}
        order = sorted(self.charts.values(), key=lambda c: (named.get(c.chart_id, len(named)), c.chart_id))
        return self.item, tuple(order[:MAX_CHARTS])


def stand_in(chart: Chart) -> NewsItem:
    """The item that a chart is stored under when it is scored by itself."""
    return NewsItem(
        id=f"{LONE_CHART}{chart.chart_id}",
        published_at=chart.published_at,
        tickers=chart.tickers,
        kind="chart",
        chart_ids=(chart.chart_id,),
    )


def merge(groups: Iterable[Group[T]]) -> list[Group[T]]:
    """Groups that belong together made one: the same item twice (the later version counts), a chart and its item."""
    items: dict[str, Group[T]] = {}
    lone: dict[str, Group[T]] = {}
    for group in groups:
        pool = lone if group.item is None else items
        earlier = pool.get(group.key)
        if earlier is None:
            pool[group.key] = group
        else:
            _absorb(earlier, group)
            if not group.borrowed:
                earlier.item, earlier.borrowed = group.item, False
    wanted = {chart_id: group for group in items.values() for chart_id in group.missing}
    left: list[Group[T]] = []
    for group in lone.values():
        chart = next(iter(group.charts.values()))
        target = items.get(chart.item_id) or wanted.get(chart.chart_id)
        if target is None:
            left.append(group)
        else:
            _absorb(target, group)
    return [*items.values(), *left]


def _absorb(group: Group[T], other: Group[T]) -> None:
    group.charts.update((k, v) for k, v in other.charts.items() if k not in group.refused)
    group.tokens.extend(other.tokens)
    group.refused |= other.refused


def _image_bytes(group: Group[Any]) -> int:
    return sum(len(chart.image) for chart in group.charts.values())


def _over(held: dict[str, tuple[Group[T], float]], now: float, may_come: Callable[[Group[T]], bool]) -> list[str]:
    return [key for key, (group, until) in held.items() if until <= now and not may_come(group)]


class Pairing(Generic[T]):
    """The waiting room.

    Parameters
    ----------
    wait_s : how long an item waits for a chart that it names, and a chart for its item.
    max_held : items and charts that may wait at the same time; the oldest makes room.
    max_bytes : bytes of what waits.
    weigh : bytes of a group; its images unless said otherwise.
    """

    def __init__(
        self, wait_s: float, max_held: int, max_bytes: int, weigh: Callable[[Group[T]], int] | None = None
    ) -> None:
        self._wait_s = wait_s
        self._max_held = max_held
        self._max_bytes = max_bytes
        self._weigh = weigh or _image_bytes
        # By item id and by chart id, oldest first; the float is when the wait ends.
        self._items: dict[str, tuple[Group[T], float]] = {}
        self._charts: dict[str, tuple[Group[T], float]] = {}
        self._wanted: dict[str, str] = {}
        self._by_item: dict[str, set[str]] = {}
        self._bytes = 0

    def __len__(self) -> int:
        """Items and charts that wait."""
        return len(self._items) + len(self._charts)

    @property
    def held_bytes(self) -> int:
        """Bytes of what waits."""
        return self._bytes

    def clear(self) -> None:
        """Forget everything that waits (its records will be read again)."""
        self._items.clear()
        self._charts.clear()
        self._wanted.clear()
        self._by_item.clear()
        self._bytes = 0

    def add_item(self, item: NewsItem, token: T, now: float) -> list[Group[T]]:
        """Take an item; returns what is complete, or had to make room, with it."""
        group: Group[T] = Group(item, tokens=[token])
        until = now + self._wait_s
        if item.id in self._items:
            earlier, until = self._items[item.id]
            self._take_item(item.id)
            earlier.item = item
            earlier.tokens.append(token)
            group = earlier
        for chart_id in sorted(self._by_item.get(item.id, set()) | (group.missing & self._charts.keys())):
            _absorb(group, self._take_chart(chart_id))
        if not group.missing or self._wait_s <= 0:
            return [group]
        self._hold_item(group, until)
        return self._make_room()

    def add_chart(self, chart: Chart, token: T, now: float) -> list[Group[T]]:
        """Take a chart; returns what is complete, or had to make room, with it."""
        group: Group[T] = Group(None, {chart.chart_id: chart}, [token])
        target = chart.item_id if chart.item_id in self._items else self._wanted.get(chart.chart_id)
        if target is not None:
            item, until = self._items[target]
            self._take_item(target)
            _absorb(item, group)
            if not item.missing:
                return [item]
            self._hold_item(item, until)
            return self._make_room()
        if chart.chart_id in self._charts:
            _absorb(group, self._take_chart(chart.chart_id))
            group.charts[chart.chart_id] = chart
        if self._wait_s <= 0:
            return [group]
        self._charts[chart.chart_id] = (group, now + self._wait_s)
        self._bytes += self._weigh(group)
        if chart.item_id:
            self._by_item.setdefault(chart.item_id, set()).add(chart.chart_id)
        return self._make_room()

    def give_up(self, chart_id: str, item_id: str) -> list[Group[T]]:
        """A chart has come but is no picture: the item that waits for it need not wait any longer."""
        target = item_id if item_id in self._items else self._wanted.get(chart_id)
        if target is None or chart_id not in self._items[target][0].missing:
            return []
        group, until = self._items[target]
        self._take_item(target)
        group.refused.add(chart_id)
        if not group.missing:
            return [group]
        self._hold_item(group, until)
        return []

    @property
    def items(self) -> int:
        """Items that wait for a chart."""
        return len(self._items)

    @property
    def charts(self) -> int:
        """Charts that wait for their item."""
        return len(self._charts)

    def expire(self, now: float, may_come: Callable[[Group[T]], bool] = lambda _: False) -> list[Group[T]]:
        """What has waited long enough by `now`, but for what the caller knows to be still on its way (`may_come`)."""
        out = [self._take_item(key) for key in _over(self._items, now, may_come)]
        out += [self._take_chart(key) for key in _over(self._charts, now, may_come)]
        return out

    def _hold_item(self, group: Group[T], until: float) -> None:
        assert group.item is not None
        self._items[group.item.id] = (group, until)
        self._bytes += self._weigh(group)
        for chart_id in group.missing:
            self._wanted.setdefault(chart_id, group.item.id)

    def _take_item(self, item_id: str) -> Group[T]:
        group, _ = self._items.pop(item_id)
        self._bytes -= self._weigh(group)
        for chart_id in group.missing:
            if self._wanted.get(chart_id) == item_id:
                del self._wanted[chart_id]
        return group

    def _take_chart(self, chart_id: str) -> Group[T]:
        group, _ = self._charts.pop(chart_id)
        chart = group.charts[chart_id]
        self._bytes -= self._weigh(group)
        waiting = self._by_item.get(chart.item_id)
        if waiting is not None:
            waiting.discard(chart_id)
            if not waiting:
                del self._by_item[chart.item_id]
        return group

    def _make_room(self) -> list[Group[T]]:
        out: list[Group[T]] = []
        while self._charts and self._bytes > self._max_bytes:
            out.append(self._take_chart(next(iter(self._charts))))
        while len(self) > self._max_held or self._bytes > self._max_bytes:
            out.append(
                self._take_item(next(iter(self._items)))
                if len(self._items) >= len(self._charts)
                else self._take_chart(next(iter(self._charts)))
            )
        return out
