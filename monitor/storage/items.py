"""What the scoring worker writes: items, their window keys, charts; and what it looks up to pair late charts.

Everything is idempotent: writing a batch twice leaves the store as writing it once.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple, TypeVar

import msgspec
from sqlalchemy import Connection, bindparam, delete, or_, select, update

from monitor.pairing import LONE_CHART, MAX_CHARTS, Group, merge
from monitor.records import Chart, Contribution, NewsItem, ScoredItem
from monitor.storage.tables import awaited_charts, charts, item_keys, items, retracted_keys
from monitor.storage.upsert import delete_rows, insert_missing, upsert
from monitor.surges.keys import epoch_ms
from monitor.surges.ticks import MINUTE_MS

__all__ = ["Picture", "RetractedKey", "join_stored", "lock_pairing", "store_scored"]

T = TypeVar("T")

# Two halves of a pair must not be written by two workers at the same moment, neither seeing the other.
_PAIRING_LOCK = 7_342_199

# Made once: to put a statement together takes longer than to run it.
_OF_IDS = charts.c.item_id.in_(bindparam("ids", expanding=True))
_CHARTS_OF = select(charts.c.chart_id, charts.c.item_id).where(_OF_IDS)
_CHARTS_NAMED = select(charts.c.chart_id, charts.c.item_id).where(
    or_(_OF_IDS, charts.c.chart_id.in_(bindparam("named", expanding=True)))
)
_FORGET_KEYS = (
    delete(item_keys)
    .where(item_keys.c.item_id.in_(bindparam("ids", expanding=True)))
    .returning(item_keys.c.item_id, item_keys.c.key, item_keys.c.published_at)
)


class Picture(msgspec.Struct, frozen=True):
    """What is known of an image once it was decoded; sizes in pixels."""

    media_type: str
    width: int
    height: int


class RetractedKey(NamedTuple):
    """A key that an item was counted under, at the event time that it had then, and no longer is."""

    item_id: str
    key: str
    published_at: datetime

    @property
    def place(self) -> tuple[str, str, int]:
        """What the counts tell apart: item, key and minute."""
        return self.item_id, self.key, epoch_ms(self.published_at) // MINUTE_MS


def lock_pairing(connection: Connection, *, exclusive: bool) -> None:
    """Held to the end of the transaction: exclusive where charts take part, shared otherwise.

    SQLite has one writer at a time anyway.
    """
    if connection.dialect.name == "postgresql":
        kind = "" if exclusive else "_shared"
        connection.exec_driver_sql(f"select pg_advisory_xact_lock{kind}({_PAIRING_LOCK})")


def _stored_items(connection: Connection, ids: Iterable[str]) -> dict[str, NewsItem]:
    wanted = sorted(set(ids))
    if not wanted:
        return {}
    columns = (items.c[name] for name in ("id", "published_at", "title", "body", "source", "url", "lang", "kind"))
    query = select(*columns, items.c.tickers, items.c.chart_ids).where(items.c.id.in_(wanted))
    return {
        row["id"]: NewsItem(**{**row, "tickers": tuple(row["tickers"]), "chart_ids": tuple(row["chart_ids"])})
        for row in connection.execute(query).mappings()
    }


def _items_of_charts(connection: Connection, lone: Mapping[str, Chart]) -> dict[str, NewsItem]:
    """Stored items of lone charts, by chart id: as the header says, as it was paired before, as an item awaits it."""
    awaited = select(awaited_charts.c.chart_id, awaited_charts.c.item_id).where(awaited_charts.c.chart_id.in_(lone))
    paired = select(charts.c.chart_id, charts.c.item_id).where(charts.c.chart_id.in_(lone), charts.c.item_id != "")
    links: dict[str, str] = {}
    for query in (awaited.order_by(awaited_charts.c.item_id.desc()), paired):
        links |= {row.chart_id: row.item_id for row in connection.execute(query)}
    links |= {chart_id: chart.item_id for chart_id, chart in lone.items() if chart.item_id}
    found = _stored_items(connection, links.values())
    return {chart_id: found[item_id] for chart_id, item_id in links.items() if item_id in found}


def _stored_charts(connection: Connection, groups: Sequence[Group[T]]) -> list[Chart]:
    ids = [group.item.id for group in groups if group.item]
    named = sorted(set().union(*(group.missing for group in groups)))
    if not ids:
        return []
    have = set().union(*(group.charts.keys() | group.refused for group in groups))
    found = connection.execute(
        _CHARTS_NAMED if named else _CHARTS_OF, {"ids": ids} | ({"named": named} if named else {})
    )
    # The images are read in a second step: mostly the batch has them already.
    unread = [row.chart_id for row in found if row.chart_id not in have or row.chart_id in named]
    if not unread:
        return []
    rows = connection.execute(select(charts).where(charts.c.chart_id.in_(unread)).order_by(charts.c.chart_id))
    return [
        Chart(
            chart_id=row.chart_id,
            image=bytes(row.image),
            published_at=row.published_at,
            item_id=row.item_id,
            tickers=tuple(row.tickers),
        )
        for row in rows
    ]


def _read_again(connection: Connection, borrowed: Sequence[Group[T]]) -> set[str]:
    """Give groups the items that the store has by now; returns the keys of those that have changed."""
    found = _stored_items(connection, [group.key for group in borrowed])
    changed = {group.key for group in borrowed if found.get(group.key, group.item) != group.item}
    for group in borrowed:
        group.item = found.get(group.key, group.item)
    return changed


def join_stored(connection: Connection, groups: Sequence[Group[T]]) -> tuple[list[Group[T]], set[str]]:
    """Complete groups from the store: the item of a chart that came late, charts that came before their item.

    An item that a group has from the store is read again: somebody may have stored a later version meanwhile.
    Returns new groups (fewer where two turn out to be one; those given are left as they are) and the keys of those
    that have gained something, which have to be scored (again).
    """
    groups = [group.copy() for group in groups]
    lone = {next(iter(g.charts)): next(iter(g.charts.values())) for g in groups if g.item is None}
    changed = _read_again(connection, [group for group in groups if group.borrowed])
    if lone:
        found = _items_of_charts(connection, lone)
        for group in groups:
            item = found.get(next(iter(group.charts))) if group.item is None else None
            if item is not None:
                group.item, group.borrowed = item, True
                changed.add(item.id)
    merged = merge(groups)
    with_item = [group for group in merged if group.item is not None]
    stored = _stored_charts(connection, with_item)
    for group in with_item:
        for chart in stored:
            wanted = chart.chart_id in group.missing or chart.item_id == group.key
            room = len(group.charts) < MAX_CHARTS and chart.chart_id not in group.refused
            if wanted and room and chart.chart_id not in group.charts:
                group.charts[chart.chart_id] = chart
                changed.add(group.key)
    return merged, changed


def _row(scored: ScoredItem) -> dict[str, Any]:
    return {
        "id": scored.id,
        "published_at": scored.published_at,
        "source": scored.source,
        "url": scored.url,
        "title": scored.title,
        "body": scored.body,
        "lang": scored.lang,
        "kind": scored.kind,
        "tickers": list(scored.tickers),
        "chart_ids": list(scored.chart_ids),
        "sentiment": scored.sentiment.label.value,
        "p_negative": scored.sentiment.negative,
        "p_neutral": scored.sentiment.neutral,
        "p_positive": scored.sentiment.positive,
        "topic": scored.topic.label,
        "topic_probabilities": scored.topic.probabilities,
        "entities": msgspec.to_builtins(scored.entities),
        "chart": msgspec.to_builtins(scored.chart),
        "modality": scored.modality.value,
        "flags": list(scored.flags),
        "rules": msgspec.to_builtins(scored.rules),
        "model_version": scored.model_version,
        "scored_at": scored.scored_at,
    }


def _key_row(scored: ScoredItem, contribution: Contribution) -> dict[str, Any]:
    return {
        "key": contribution.key,
        "item_id": scored.id,
        "published_at": scored.published_at,
        "p_negative": contribution.p_negative,
        "score": contribution.score,
    }


def store_scored(
    connection: Connection,
    scored: Sequence[tuple[Group[T], ScoredItem, Sequence[Contribution]]],
    pictures: Mapping[str, Picture],
) -> list[RetractedKey]:
    """Write scored groups, each item once: items, their keys, their charts.

    `pictures` has the newly read charts by id; a chart that is not among them came from the store. A chart that was
    stored as an item of its own before its item came loses that place.

    Returns every key that these items (and charts that were items) were ever counted under and no longer are: it must
    be taken back. What was returned is remembered, so that writing the batch again after a crash returns it again.
    Raises `StorageError` through `writing`.
    """
    ordered = sorted(scored, key=lambda entry: entry[1].id)
    if not ordered:
        return []
    # First: two workers that write the same item wait for each other here, and the second sees the first one's keys.
    upsert(connection, items, [_row(item) for _, item, _ in ordered])
    alone = [f"{LONE_CHART}{chart_id}" for group, _, _ in ordered if group.item for chart_id in group.charts]
    if alone:
        connection.execute(delete(items).where(items.c.id.in_(alone)))
    keys = [_key_row(item, contribution) for _, item, found in ordered for contribution in found]
    retracted = _replace_keys(connection, [item.id for _, item, _ in ordered], alone, keys)
    _store_charts(connection, [group for group, _, _ in ordered if group.charts], pictures)
    _remember_awaited(connection, [group for group, _, _ in ordered if group.item])
    return retracted


def _replace_keys(
    connection: Connection, ids: Sequence[str], alone: Sequence[str], keys: Sequence[dict[str, Any]]
) -> list[RetractedKey]:
    before = [RetractedKey(*row) for row in connection.execute(_FORGET_KEYS, {"ids": [*ids, *alone]})]
    upsert(connection, item_keys, sorted(keys, key=lambda row: (row["key"], row["item_id"])))
    # Items that are new, nearly all of them, end here.
    known = {row.item_id for row in before}.union(alone)
    if not known:
        return []
    now = {RetractedKey(row["item_id"], row["key"], row["published_at"]).place for row in keys}
    return _retract(connection, known, {row for row in before if row.place not in now}, now)


def _retract(
    connection: Connection, known: set[str], gone: set[RetractedKey], now: set[tuple[str, str, int]]
) -> list[RetractedKey]:
    """Remember what is gone and forget what has come back. Returns all that is retracted of the items `known`."""
    table = retracted_keys
    columns = (table.c.item_id, table.c.key, table.c.published_at)
    stored = {RetractedKey(*row) for row in connection.execute(select(*columns).where(table.c.item_id.in_(known)))}
    back = {row for row in stored if row.place in now}
    delete_rows(connection, table, back)
    kept = stored - back
    insert_missing(connection, table, [row._asdict() for row in sorted(gone - kept)])
    return sorted(kept | gone)


def _store_charts(connection: Connection, groups: Sequence[Group[T]], pictures: Mapping[str, Picture]) -> None:
    rows: dict[str, dict[str, Any]] = {}
    for group in groups:
        for chart in group.charts.values():
            item_id = chart.item_id or (group.item.id if group.item else "")
            picture = pictures.get(chart.chart_id)
            if picture is not None:
                rows[chart.chart_id] = {
                    "chart_id": chart.chart_id,
                    "item_id": item_id,
                    "published_at": chart.published_at,
                    "tickers": list(chart.tickers),
                    "media_type": picture.media_type,
                    "width": picture.width,
                    "height": picture.height,
                    "image": chart.image,
                }
            elif not chart.item_id and item_id:
                connection.execute(update(charts).where(charts.c.chart_id == chart.chart_id).values(item_id=item_id))
    # One statement a chart: images of a batch do not fit into one.
    for chart_id in sorted(rows):
        upsert(connection, charts, [rows[chart_id]])


def _remember_awaited(connection: Connection, groups: Sequence[Group[T]]) -> None:
    arrived = [chart_id for group in groups for chart_id in (*group.charts, *group.refused)]
    if arrived:
        connection.execute(delete(awaited_charts).where(awaited_charts.c.chart_id.in_(arrived)))
    rows = [
        {"chart_id": chart_id, "item_id": group.item.id, "published_at": group.item.published_at}
        for group in groups
        if group.item
        for chart_id in sorted(group.missing)
    ]
    insert_missing(connection, awaited_charts, rows)
