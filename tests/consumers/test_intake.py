"""How much is kept of an item, and how long a half of a pair waits: while the partition of the other half is behind,
by the clock afterwards."""

from __future__ import annotations

import io
from collections import namedtuple
from datetime import UTC, datetime, timedelta

import msgspec
import pytest
from kafka import TopicPartition
from PIL import Image

from consumers.intake import Intake, clip
from monitor.records import NewsItem
from monitor.settings import Settings

AT = datetime(2024, 5, 1, 12, tzinfo=UTC)
WAIT_S, LATENESS_S = 2.0, 60.0
Record = namedtuple("Record", "topic partition offset timestamp key value headers")


def png() -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (40, 30), "white").save(out, "PNG")
    return out.getvalue()


def chart(item_id: str, offset: int = 0) -> Record:
    headers = [("chart_id", b"c"), ("item_id", item_id.encode()), ("published_at", AT.isoformat().encode())]
    return Record("charts", 1, offset, 0, b"k", png(), headers)


def news(item_id: str, offset: int, at: datetime, partition: int = 1, charts: tuple[str, ...] = ()) -> Record:
    fields = {"id": item_id, "title": item_id, "published_at": at.isoformat(), "chart_ids": list(charts)}
    return Record("news", partition, offset, 0, b"k", msgspec.json.encode(fields), [])


@pytest.fixture
def intake() -> Intake:
    intake = Intake(Settings(worker_pairing_wait_s=WAIT_S, lateness_s=LATENESS_S), 1 << 20)
    for name in ("news:0", "news:1", "charts:0", "charts:1"):
        intake.sources.assign(name, 0, 0.0)
    return intake


def take(intake: Intake, record: Record) -> list[str]:
    return [g.key for g in intake.take({TopicPartition(record.topic, record.partition): [record]}, 0.0, 0.0)]


def test_a_chart_waits_while_its_items_partition_is_behind(intake: Intake) -> None:
    assert take(intake, chart("a")) == []
    assert intake.expire(100.0, at_end={"news:0"}) == []
    take(intake, news("earlier", 0, AT - timedelta(hours=1)))
    assert intake.expire(100.0, at_end=set()) == []
    assert take(intake, news("a", 1, AT)) == ["a"]
    assert len(intake.pairing) == 0


def test_the_clock_decides_once_the_partition_is_read_to_its_end(intake: Intake) -> None:
    take(intake, chart("a"))
    assert intake.expire(WAIT_S - 0.1, at_end={"news:1"}) == []
    assert [g.key for g in intake.expire(WAIT_S, at_end={"news:1"})] == ["chart:c"]


def test_or_once_it_has_passed_the_charts_time(intake: Intake) -> None:
    take(intake, chart("a"))
    take(intake, news("later", 0, AT + timedelta(seconds=LATENESS_S + 1)))
    assert [g.key for g in intake.expire(WAIT_S, at_end=set())] == ["chart:c"]


def test_a_chart_that_names_no_item_waits_for_every_news_partition(intake: Intake) -> None:
    take(intake, chart(""))
    assert intake.expire(WAIT_S, at_end={"news:1"}) == []
    assert [g.key for g in intake.expire(WAIT_S, at_end={"news:0", "news:1"})] == ["chart:c"]


def test_an_item_waits_while_charts_are_behind(intake: Intake) -> None:
    assert take(intake, news("a", 0, AT, charts=("c",))) == []
    assert intake.expire(100.0, at_end={"charts:0", "news:1"}) == []
    assert [g.key for g in intake.expire(100.0, at_end={"charts:0", "charts:1"})] == ["a"]


def test_clipping_keeps_the_beginning_and_what_columns_hold() -> None:
    item = NewsItem(
        id="i1",
        published_at=AT,
        title="T" * 3000,
        body="B" * 100,
        source="s" * 999,
        url="u" * 9999,
        lang="l" * 99,
        kind="k" * 99,
    )
    found = clip(item, 2500)
    assert (len(found.title), len(found.title) + len(found.body)) == (2000, 2500)
    assert found.body.startswith("T" * 499)
    assert (len(found.source), found.url, len(found.lang), len(found.kind)) == (256, "", 35, 64)
    short = NewsItem(id="i2", published_at=AT, title="Shares rise", source="wire")
    assert clip(short, 50_000) == short
