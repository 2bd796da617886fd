"""What an analyst drills down to: scored items by key and time, one item with its chart, stories and their copies."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any, Final, NamedTuple

import msgspec
from sqlalchemy import ColumnElement, Connection, and_, or_, select, true

from monitor.records import (
    AppliedRule,
    ChartScore,
    EntityScore,
    Modality,
    ScoredItem,
    Sentiment,
    SentimentScore,
    TopicScore,
)
from monitor.storage.tables import charts, item_keys, items, stories
from monitor.storage.trends import MARKET, topic_keys
from monitor.storage.upsert import bulk_select
from monitor.stories import p_positive
from monitor.surges.sorts import NEGATIVE, POSITIVE, VOLUME

__all__ = [
    "SEARCH_DEPTH",
    "ChartImage",
    "Headline",
    "HeadlinePage",
    "Position",
    "Story",
    "article",
    "chart_image",
    "copies",
    "counted_within",
    "headlines",
    "stories_that_surge",
    "stories_under",
    "told_by",
]

# A search that finds nothing reads at most this many items of the range, newest first: a page must not take long.
SEARCH_DEPTH: Final = 20_000
# Over so many minutes at most (a day; windows of surges are shorter) the stories of a key are sought minute by minute.
SOUGHT_MINUTES: Final = 1440

_HEADLINE = (
    items.c.id,
    items.c.published_at,
    items.c.source,
    items.c.url,
    items.c.title,
    items.c.body,
    items.c.kind,
    items.c.tickers,
    items.c.sentiment,
    items.c.p_negative,
    items.c.p_neutral,
    items.c.p_positive,
    items.c.topic,
    items.c.modality,
    items.c.flags,
    items.c.model_version,
)


class Position(msgspec.Struct, frozen=True):
    """A place in the list of items, newest first: a page begins after it."""

    published_at: datetime
    item_id: str


class Headline(msgspec.Struct, frozen=True, kw_only=True):
    """One line of a list of items."""

    id: str
    published_at: datetime
    source: str
    url: str
    title: str
    kind: str
    tickers: tuple[str, ...]
    sentiment: SentimentScore
    topic: str
    modality: str
    flags: tuple[str, ...]
    model_version: str


class HeadlinePage(msgspec.Struct, frozen=True, kw_only=True):
    """Items of a page, newest first. `older` is where the next page begins, None on the last.

    `cut` says that a search looked only at the newest `SEARCH_DEPTH` items of its range.
    """

    rows: list[Headline]
    older: Position | None
    cut: bool = False


class ChartImage(msgspec.Struct, frozen=True, kw_only=True):
    """A stored chart image; `width` and `height` in pixels."""

    chart_id: str
    media_type: str
    width: int
    height: int
    published_at: datetime
    image: bytes


class Story(msgspec.Struct, frozen=True, kw_only=True):
    """A story under one key: its first item, and how many items of how many sources tell it; `item_ids` are the first
    `monitor.stories.MAX_ITEM_IDS` of them. Title and address are empty when retention has dropped the first item."""

    id: str
    key: str
    first_at: datetime
    last_at: datetime
    negative: bool
    items: int
    sources: tuple[str, ...]
    title: str
    url: str
    source: str
    item_id: str
    item_ids: tuple[str, ...]
    p_negative: float
    positive: bool = False
    p_positive: float = 0.0


def _headline(row: Any) -> Headline:
    return Headline(
        id=row.id,
        published_at=row.published_at,
        source=row.source,
        url=row.url,
        title=row.title or row.body[:300],
        kind=row.kind,
        tickers=tuple(row.tickers),
        sentiment=SentimentScore(
            label=Sentiment(row.sentiment), negative=row.p_negative, neutral=row.p_neutral, positive=row.p_positive
        ),
        topic=row.topic,
        modality=row.modality,
        flags=tuple(row.flags),
        model_version=row.model_version,
    )


def _after(at: Any, item_id: Any, before: Position | None) -> list[ColumnElement[bool]]:
    if before is None:
        return []
    # The first condition is implied by the second: it lets the index be used.
    return [
        at <= before.published_at,
        or_(at < before.published_at, and_(at == before.published_at, item_id < before.item_id)),
    ]


def _mentions(connection: Connection, word: str) -> ColumnElement[bool]:
    """That a word is in an item's title or text, in letters of either case."""
    if connection.dialect.name == "sqlite":
        # SQLite's LIKE takes no notice of case anyway; changing a text's letters first costs more than looking.
        return or_(*(column.contains(word, autoescape=True) for column in (items.c.title, items.c.body)))
    return or_(*(column.icontains(word, autoescape=True) for column in (items.c.title, items.c.body)))


def headlines(
    connection: Connection,
    *,
    key: str,
    start: datetime,
    end: datetime,
    search: str = "",
    sentiment: str = "",
    source: str = "",
    before: Position | None = None,
    limit: int = 50,
) -> HeadlinePage:
    """Items under `key` (`market`: all) that were published in [start, end), newest first.

    Every word of `search` has to be in the title or the text (letters of either case); `sentiment` and `source`
    narrow further. Such a search looks at the newest `SEARCH_DEPTH` items after `before` only.
    """
    narrow = [_mentions(connection, word) for word in search.split()]
    if sentiment:
        narrow.append(items.c.sentiment == sentiment)
    if source:
        narrow.append(items.c.source == source)

    if key == MARKET:
        at, item_id, under = items.c.published_at, items.c.id, []
    else:
        at, item_id, under = item_keys.c.published_at, item_keys.c.item_id, [item_keys.c.key == key]
    place = (
        select(item_id.label("item_id"), at.label("at"))
        .where(*under, at >= start, at < end, *_after(at, item_id, before))
        .order_by(at.desc(), item_id.desc())
        .limit(SEARCH_DEPTH if narrow else limit + 1)
    )
    cut = bool(narrow) and connection.execute(place.offset(SEARCH_DEPTH - 1).limit(1)).first() is not None
    looked_at = place.subquery()
    query = (
        select(*_HEADLINE)
        .join(looked_at, looked_at.c.item_id == items.c.id)
        .where(*narrow)
        .order_by(looked_at.c.at.desc(), looked_at.c.item_id.desc())
        .limit(limit + 1)
    )
    rows = [_headline(row) for row in connection.execute(query)]
    page = rows[:limit]
    older = Position(page[-1].published_at, page[-1].id) if len(rows) > limit else None
    return HeadlinePage(rows=page, older=older, cut=cut and older is None)


def article(connection: Connection, item_id: str) -> ScoredItem | None:
    """One item with everything that was scored; None for an unknown id."""
    row = connection.execute(select(items).where(items.c.id == item_id)).first()
    if row is None:
        return None
    return ScoredItem(
        id=row.id,
        published_at=row.published_at,
        sentiment=SentimentScore(
            label=Sentiment(row.sentiment), negative=row.p_negative, neutral=row.p_neutral, positive=row.p_positive
        ),
        topic=TopicScore(label=row.topic, probabilities=dict(row.topic_probabilities)),
        modality=Modality(row.modality),
        model_version=row.model_version,
        scored_at=row.scored_at,
        title=row.title,
        body=row.body,
        source=row.source,
        url=row.url,
        lang=row.lang,
        tickers=tuple(row.tickers),
        kind=row.kind,
        chart_ids=tuple(row.chart_ids),
        entities=tuple(msgspec.convert(entity, EntityScore) for entity in row.entities),
        chart=None if row.chart is None else msgspec.convert(row.chart, ChartScore),
        flags=tuple(row.flags),
        rules=tuple(msgspec.convert(rule, AppliedRule) for rule in row.rules),
    )


def chart_image(connection: Connection, chart_id: str) -> ChartImage | None:
    """A stored chart; None when it is unknown or has been dropped by retention."""
    row = connection.execute(select(charts).where(charts.c.chart_id == chart_id)).first()
    if row is None:
        return None
    return ChartImage(
        chart_id=row.chart_id,
        media_type=row.media_type,
        width=row.width,
        height=row.height,
        published_at=row.published_at,
        image=bytes(row.image),
    )


def _ms(value: int) -> datetime:
    return datetime.fromtimestamp(value / 1000, UTC)


def stories_that_surge(surge: str) -> tuple[ColumnElement[bool], ColumnElement[float]]:
    """What picks the stories that a surge of this sort is made of, and how surely they are (largest first)."""
    if surge == POSITIVE:
        # The score is p(positive) - p(negative).
        return stories.c.sign > 0, stories.c.score + stories.c.p_negative
    return (stories.c.sign < 0 if surge == NEGATIVE else true()), stories.c.p_negative


def counted_within(keys: Sequence[str], start: int, end: int) -> list[ColumnElement[bool]]:
    """What picks the stories counted under these keys in the epoch minutes [start, end)."""
    minute = stories.c.minute
    under = stories.c.key.in_(keys)
    if end - start <= SOUGHT_MINUTES:
        # Each minute of each key is sought: the stories of other keys in between are not read.
        return [minute.in_(range(start, end)), under]
    return [minute >= start, minute < end, under]


def stories_under(
    connection: Connection, key: str, start: int, end: int, *, surge: str = VOLUME, limit: int = 100
) -> list[Story]:
    """Stories counted under `key` in the epoch minutes [start, end) that a surge of this sort is made of (volume: all):
    the most told first, then the surest (of volume: the most negative)."""
    of_sort, surest = stories_that_surge(surge)
    # Sorted by few columns; only the stories that are shown are read whole.
    place = (stories.c.minute, stories.c.key, stories.c.id)
    keys = topic_keys(connection) if key == MARKET else [key]
    query = select(*place).where(of_sort, *counted_within(keys, start, end))
    order = (stories.c["items"].desc(), surest.desc(), stories.c.id)
    wanted = [tuple(row) for row in connection.execute(query.order_by(*order).limit(limit))]
    found = {row[2]: _StoryRow(*row) for row in bulk_select(connection, stories, _StoryRow._fields, wanted)}
    first = select(items.c.id, items.c.title, items.c.url).where(
        items.c.id.in_({row.item_id for row in found.values()})
    )
    titles = {row.id: (row.title, row.url) for row in connection.execute(first)}
    return [_story(found[id_], *titles.get(found[id_].item_id, ("", ""))) for _, _, id_ in wanted]


class _StoryRow(NamedTuple):
    """A row of `stories`."""

    minute: int
    key: str
    id: str
    first_at: int
    last_at: int
    items: int
    sign: int
    p_negative: float
    score: float
    item_id: str
    source: str
    copies: str


def _story(row: _StoryRow, title: str, url: str) -> Story:
    told = msgspec.json.decode(row.copies)
    return Story(
        id=row.id,
        key=row.key,
        first_at=_ms(row.first_at),
        last_at=_ms(row.last_at),
        negative=row.sign < 0,
        items=row.items,
        sources=tuple(told_by(row.source, told)),
        title=title,
        url=url,
        source=row.source,
        item_id=row.item_id,
        item_ids=tuple(told["item_ids"]) if told else (row.item_id,),
        p_negative=row.p_negative,
        positive=row.sign > 0,
        p_positive=p_positive(row.score, row.p_negative),
    )


def told_by(source: str, copies: dict[str, list[str]] | None) -> list[str]:
    """The sources of a row of `stories`."""
    return copies["sources"] if copies else [source] if source else []


def copies(connection: Connection, stories: Iterable[Story], *, limit: int = 1000) -> dict[str, list[Headline]]:
    """The items that tell each of these stories (its `item_ids`), oldest first; `limit` bounds them all together."""
    told = {story.id: story.item_ids for story in stories}
    wanted = {item_id for item_ids in told.values() for item_id in item_ids}
    rows = connection.execute(
        select(*_HEADLINE).where(items.c.id.in_(wanted)).order_by(items.c.published_at, items.c.id).limit(limit)
    )
    headlines = {row.id: _headline(row) for row in rows}
    place = {item_id: number for number, item_id in enumerate(headlines)}
    return {
        story_id: [headlines[item_id] for item_id in sorted(place.keys() & item_ids, key=place.__getitem__)]
        for story_id, item_ids in told.items()
    }
