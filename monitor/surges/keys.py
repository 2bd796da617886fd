"""Which window keys an item counts under, and which partition counts a key."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Final

from monitor.records import Contribution, ScoredItem, Sentiment, SentimentScore, normalise_tickers
from monitor.stories import signatures

__all__ = [
    "MARKET",
    "TICKER",
    "TOPIC",
    "contributions",
    "contributions_by_item",
    "contributions_of",
    "epoch_ms",
    "keys_of",
    "partition_of",
    "retraction",
]

MARKET: Final = "market"
TICKER: Final = "ticker:"
TOPIC: Final = "topic:"

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MS = timedelta(milliseconds=1)


def epoch_ms(at: datetime) -> int:
    """Whole milliseconds since 1970-01-01 UTC, rounded down."""
    return (at - _EPOCH) // _MS


def partition_of(key: str, partitions: int) -> int:
    """The `contributions` partition that counts `key`: CRC-32 of its UTF-8 bytes modulo `partitions`."""
    return zlib.crc32(key.encode("utf-8", "surrogatepass")) % partitions


def keys_of(item: ScoredItem) -> dict[str, SentimentScore]:
    """Window keys of an item with the sentiment that counts there.

    A ticker key takes the sentiment towards that ticker where an entity was linked to it, else the item's; the
    topic key takes the item's. The market is no key of its own: the judge sums the topics, of which every item has
    exactly one.
    """
    tickers = _normalised(item.tickers)
    if item.entities:
        linked = normalise_tickers(entity.ticker for entity in item.entities if entity.ticker)
        tickers = tuple(dict.fromkeys((*tickers, *linked)))
    keys = {f"{TICKER}{ticker}": item.ticker_sentiment(ticker) for ticker in tickers}
    keys[f"{TOPIC}{item.topic.label}"] = item.sentiment
    return keys


@lru_cache(maxsize=4096)
def _normalised(tickers: tuple[str, ...]) -> tuple[str, ...]:
    return normalise_tickers(tickers)


def contributions(item: ScoredItem) -> list[Contribution]:
    """What one scored item adds to each of its window keys; the story signature is computed once for all.

    Without title and address: whoever shows a story finds them with its first item in the store.
    """
    return contributions_of([item], texts=False)


def contributions_of(items: Sequence[ScoredItem], *, texts: bool = True) -> list[Contribution]:
    """What `items` add to their window keys, in order, with their titles and addresses if `texts`; to sign many
    stories at once is faster."""
    return [c for of_item in contributions_by_item(items, texts=texts) for c in of_item]


def contributions_by_item(items: Sequence[ScoredItem], *, texts: bool = True) -> list[list[Contribution]]:
    """`contributions_of`, those of each item by themselves."""
    sketches = signatures([(item.title, item.body) for item in items])
    return [_contributions(item, sketch, texts) for item, sketch in zip(items, sketches, strict=True)]


def _contributions(item: ScoredItem, sketch: bytes, texts: bool) -> list[Contribution]:
    at = epoch_ms(item.published_at)
    title, url = (item.title, item.url) if texts else ("", "")
    return [
        Contribution(
            key=key,
            item_id=item.id,
            at=at,
            p_negative=sentiment.negative,
            score=sentiment.score,
            negative=sentiment.label is Sentiment.NEGATIVE,
            positive=sentiment.label is Sentiment.POSITIVE,
            signature=sketch,
            source=item.source,
            title=title,
            url=url,
        )
        for key, sentiment in keys_of(item).items()
    ]


def retraction(key: str, item_id: str, published_at: datetime) -> Contribution:
    """Takes back what an item added to a key at an event time."""
    return Contribution(
        key=key,
        item_id=item_id,
        at=epoch_ms(published_at),
        p_negative=0.0,
        score=0.0,
        negative=False,
        signature=b"",
        retracted=True,
    )
