"""Decoding untrusted records: anything at all comes out as a record or as a reason, never as an exception."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from monitor.records import (
    EARLIEST,
    MAX_CHART_ID_CHARS,
    MAX_CHART_IDS,
    MAX_FUTURE,
    MAX_ID_CHARS,
    MAX_TICKERS,
    Chart,
    NewsItem,
    Rejected,
    SentimentScore,
    check_time,
    decode_chart,
    decode_news,
    derive_chart_id,
    derive_id,
    encode,
    normalise_tickers,
    parse_time,
)

NOW = datetime(2026, 1, 1, 12, tzinfo=UTC)
GOOD = {"id": "a", "title": "t", "published_at": "2024-01-08T09:00:00Z"}

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
NAMES = st.sampled_from(
    ["id", "title", "body", "published_at", "tickers", "chart_ids", "source", "url", "lang", "kind", "extra"]
)
TIMES = st.sampled_from(
    [
        "2024-01-08",
        "2024-01-08T09:00:00+14:00",
        "20240108T0900Z",
        "0001-01-01T00:00:00+23:59",
        "9999-12-31T23:59:59-23:59",
        "2024-W02-1",
        "2024-01-08T24:00:00Z",
        "2024-01-08T09:00:00.123456789Z",
        "2024-02-30",
        "",
        "\x00",
        "-1",
        "now",
    ]
)
HEADERS = st.lists(
    st.tuples(
        st.sampled_from(["chart_id", "item_id", "published_at", "tickers"]),
        st.binary(max_size=300) | st.just(b"2024-01-08"),
    )
)


def check(found: NewsItem | Rejected) -> None:
    """What every accepted item promises to those who store and count it."""
    if isinstance(found, Rejected):
        assert found.code
        assert found.reason
        encode(found)
        return
    assert found.title or found.body
    assert 0 < len(found.id) <= MAX_ID_CHARS
    assert EARLIEST <= found.published_at <= NOW + MAX_FUTURE
    assert found.published_at.utcoffset() == timedelta(0)
    assert len(found.tickers) <= MAX_TICKERS
    assert len(found.chart_ids) <= MAX_CHART_IDS
    texts = [getattr(found, name) for name in ("id", "title", "body", "source", "url", "lang", "kind")]
    for text in (*texts, *found.tickers, *found.chart_ids):
        # PostgreSQL takes neither; a lone surrogate cannot be encoded at all.
        assert "\x00" not in text
        text.encode("utf-8")
    assert all(0 < len(chart_id) <= MAX_CHART_ID_CHARS for chart_id in found.chart_ids)
    assert msgspec.json.decode(encode(found), type=NewsItem) == found


@given(st.binary(max_size=300))
@example(b"\xed\xa0\x80")
@example(b"null")
@example(b'"text"')
@example(b"1" * 5000)
@example(b"[" * 100_000)
@example(b'{"a":' * 3000)
def test_bytes(data: bytes) -> None:
    check(decode_news(data, NOW))


@given(st.dictionaries(NAMES, JSON | TIMES, max_size=8))
def test_objects(fields: dict[str, Any]) -> None:
    check(decode_news(json.dumps(fields).encode("utf-8", "surrogatepass"), NOW))


@settings(max_examples=200)
@given(
    st.fixed_dictionaries(
        {"title": st.text(min_size=1), "published_at": TIMES},
        optional={
            "id": st.text(max_size=300),
            "body": st.text(),
            "tickers": st.lists(st.text(max_size=40), max_size=80),
            "chart_ids": st.lists(st.text(max_size=300), max_size=5),
            "lang": st.text(max_size=60),
            "url": st.text(max_size=60),
        },
    ),
    st.booleans(),
)
@example({"title": "t", "published_at": "2024-01-08", "tickers": ["A\x00B", "\ud800"], "chart_ids": ["\x00"]}, True)
@example({"title": "\udfff", "published_at": "2024-01-08"}, True)
def test_nearly_good_objects(fields: dict[str, Any], escaped: bool) -> None:
    check(decode_news(json.dumps(fields, ensure_ascii=escaped).encode("utf-8", "surrogatepass"), NOW))


@given(st.binary(max_size=50), HEADERS)
def test_charts(value: bytes, headers: list[tuple[str, bytes]]) -> None:
    found = decode_chart(value, headers, NOW, 40)
    if isinstance(found, Chart):
        assert 0 < len(found.chart_id) <= MAX_CHART_ID_CHARS
        assert len(found.item_id) <= MAX_ID_CHARS
        assert found.image == value
        assert len(value) <= 40
        for text in (found.chart_id, found.item_id, *found.tickers):
            assert "\x00" not in text
    else:
        assert found.code
        assert found.reason


@given(st.text(max_size=70) | st.integers() | st.none() | st.floats())
@example("0001-01-01T00:00:00+23:59")
@example("9999-12-31T23:59:59-23:59")
def test_times_never_raise(value: object) -> None:
    found = check_time(value, NOW)
    if isinstance(found, datetime):
        assert EARLIEST <= found <= NOW + MAX_FUTURE


@pytest.mark.parametrize(
    ("text", "at"),
    [
        ("2024-01-08T09:00:00Z", datetime(2024, 1, 8, 9, tzinfo=UTC)),
        ("2024-01-08T09:00:00", datetime(2024, 1, 8, 9, tzinfo=UTC)),
        ("2024-01-08T09:00:00+02:00", datetime(2024, 1, 8, 7, tzinfo=UTC)),
        (" 2024-01-08 ", datetime(2024, 1, 8, tzinfo=UTC)),
        ("8 January 2024", None),
        (20240108, None),
    ],
)
def test_times_are_utc(text: object, at: datetime | None) -> None:
    assert parse_time(text) == at


def test_an_item_without_an_id_gets_the_same_one_every_time() -> None:
    fields = {k: v for k, v in GOOD.items() if k != "id"}
    first, second = (decode_news(json.dumps(fields).encode(), NOW + timedelta(days=d)) for d in (0, 1))
    assert isinstance(first, NewsItem)
    assert first == second
    other = decode_news(json.dumps(fields | {"title": "u"}).encode(), NOW)
    assert isinstance(other, NewsItem)
    assert other.id != first.id
    at = datetime(2024, 1, 8, tzinfo=UTC)
    assert derive_id("s", "https://x/1", "old title", "", at) == derive_id("s", "https://x/1", "new title", "", NOW)


def test_tickers_are_normalised() -> None:
    assert normalise_tickers(["$aapl", "AAPL ", "brk.b", "a b", "", "x" * 33, "A:B"]) == ("AAPL", "BRK.B")


def test_charts_that_an_item_names_are_bounded() -> None:
    named = [f"c{number}" for number in range(1000)]
    found = decode_news(json.dumps(GOOD | {"chart_ids": named}).encode(), NOW)
    assert isinstance(found, NewsItem)
    assert found.chart_ids == tuple(named[:MAX_CHART_IDS])


def test_one_picture_of_two_items_is_two_charts() -> None:
    def chart_id(item_id: str) -> str:
        headers = [("published_at", b"2024-01-08"), ("item_id", item_id.encode())]
        found = decode_chart(b"image", headers, NOW, 100)
        assert isinstance(found, Chart)
        return found.chart_id

    assert len({chart_id("a"), chart_id("b"), chart_id("")}) == 3
    assert chart_id("a") == chart_id("a") == derive_chart_id("a", b"image")


def test_unknown_fields_are_ignored_and_defaults_filled_in() -> None:
    found = decode_news(json.dumps(GOOD | {"new_field": [1, {"x": 2}], "kind": None}).encode(), NOW)
    assert isinstance(found, NewsItem)
    assert (found.kind, found.tickers, found.text) == ("news", (), "t")


def test_future_and_past() -> None:
    assert isinstance(check_time((NOW + timedelta(hours=23)).isoformat(), NOW), datetime)
    for absurd in (NOW + timedelta(hours=25), datetime(1989, 12, 31, tzinfo=UTC)):
        found = check_time(absurd.isoformat(), NOW)
        assert isinstance(found, Rejected)
        assert found.code == "absurd_date"


def test_a_scored_sentiment_carries_its_score() -> None:
    sentiment = SentimentScore.of((0.2, 0.1, 0.7))
    assert msgspec.json.decode(msgspec.json.encode(sentiment))["score"] == pytest.approx(0.5)
    # One that came from elsewhere cannot contradict its probabilities.
    foreign = b'{"label":"negative","negative":0.9,"neutral":0.1,"positive":0.0,"score":1.0}'
    assert msgspec.json.decode(foreign, type=SentimentScore).score == pytest.approx(-0.9)
