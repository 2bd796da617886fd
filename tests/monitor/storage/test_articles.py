from __future__ import annotations

from datetime import timedelta

import pytest
from sqlalchemy import Engine

from monitor.records import Sentiment, Trend
from monitor.storage import articles
from monitor.storage.articles import article, chart_image, copies, headlines, stories_under
from monitor.storage.engine import reading
from monitor.surges.keys import epoch_ms, keys_of
from tests.dashboard import sample

START = sample.END - timedelta(days=3)
STOP = sample.END + timedelta(minutes=1)


@pytest.fixture
def filled(store: Engine) -> Engine:
    sample.fill(store, count=150)
    return store


def everything(key: str = "market") -> list[str]:
    items = sample.make_items(150)
    under = [item for item in items if key == "market" or key in keys_of(item)]
    # As stored: to the millisecond.
    return [item.id for item in sorted(under, key=lambda i: (epoch_ms(i.published_at), i.id), reverse=True)]


def test_pages_hold_every_item_once_newest_first(filled: Engine) -> None:
    for key in ("market", "ticker:BA", "topic:earnings"):
        for search in ("", "e"):
            found: list[str] = []
            before = None
            with reading(filled) as connection:
                while True:
                    page = headlines(connection, key=key, start=START, end=STOP, search=search, before=before, limit=20)
                    assert len(page.rows) <= 20
                    found += [row.id for row in page.rows]
                    before = page.older
                    if before is None:
                        break
            assert found == everything(key), (key, search)


def test_search_is_for_all_words_in_either_case_and_takes_wildcards_as_they_are(filled: Engine) -> None:
    with reading(filled) as connection:

        def search(words: str) -> set[str]:
            page = headlines(connection, key="market", start=START, end=STOP, search=words, limit=500)
            return {row.id for row in page.rows}

        assert sample.CHART_ITEM in search("THIRD slides")
        assert sample.CHART_ITEM in search("volume average"), "the text is searched, too"
        assert search("slides zebra") == set()
        assert search("100%") == set()
        assert search("_") == set()
        assert sample.HOSTILE_ID in search("javascript:alert(1)")
        assert search("'; drop table items; --") == set()


def test_narrowing(filled: Engine) -> None:
    with reading(filled) as connection:
        page = headlines(connection, key="market", start=START, end=STOP, sentiment="negative", limit=500)
        assert page.rows
        assert {row.sentiment.label for row in page.rows} == {Sentiment.NEGATIVE}
        page = headlines(connection, key="market", start=START, end=STOP, source="CNBC", limit=500)
        assert {row.source for row in page.rows} == {"CNBC"}
        hour = headlines(connection, key="market", start=sample.END - timedelta(hours=1), end=sample.END, limit=500)
        assert all(row.published_at >= sample.END - timedelta(hours=1) for row in hour.rows)
        assert headlines(connection, key="ticker:NONE", start=START, end=STOP).rows == []


def test_a_search_says_when_it_was_cut(filled: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(articles, "SEARCH_DEPTH", 30)
    with reading(filled) as connection:
        page = headlines(connection, key="market", start=START, end=STOP, search="nowhere at all")
        assert (page.rows, page.cut) == ([], True)
        assert not headlines(connection, key="market", start=START, end=STOP).cut, "without a search nothing is cut"


def test_an_article_comes_back_as_it_was_scored(filled: Engine) -> None:
    stored = next(item for item in sample.make_items(150) if item.id == sample.CHART_ITEM)
    with reading(filled) as connection:
        found = article(connection, sample.CHART_ITEM)
        assert found is not None
        assert found == stored
        assert found.chart is not None
        assert found.chart.label is Trend.DOWN
        image = chart_image(connection, "chart-1")
        assert image is not None
        assert (image.media_type, image.width, image.image) == ("image/png", 640, sample.chart_png())
        assert article(connection, "nothing") is None
        assert chart_image(connection, "nothing") is None


def test_stories_and_their_copies(filled: Engine) -> None:
    begin = epoch_ms(sample.SURGE_AT) // 60_000
    with reading(filled) as connection:
        found = stories_under(connection, sample.SURGE_KEY, begin, begin + 60, surge="negative")
        assert found
        assert all(story.negative and story.key == sample.SURGE_KEY for story in found)
        assert [s.items for s in found] == sorted((s.items for s in found), reverse=True)
        told = copies(connection, found)
        for story in found:
            lines = told[story.id]
            assert len(lines) == story.items
            assert lines[0].id == story.item_id
            assert [line.published_at for line in lines] == sorted(line.published_at for line in lines)
        market = stories_under(connection, "market", begin, begin + 60, limit=1000)
        assert {story.key.partition(":")[0] for story in market} == {"topic"}
        assert copies(connection, []) == {}
