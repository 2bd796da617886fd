"""The scoring worker on a broker: what goes in comes out once, whatever lies around it."""

from __future__ import annotations

import json
import socket
import threading
import urllib.error
import urllib.request
import zlib
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta

import pytest
from kafka.consumer.fetcher import ConsumerRecord
from sqlalchemy import Engine, select

from consumers import worker
from consumers.worker_metrics import RETRIES
from models.engine import ScoringRequest
from monitor.errors import ModelError
from monitor.health import Health
from monitor.records import ContributionBatch, Rejected, ScoredItem, decode_strict
from monitor.settings import Settings
from monitor.storage.engine import open_engine, reading
from monitor.storage.migrate import upgrade
from monitor.storage.tables import charts
from tests.consumers.running import (
    T0,
    Running,
    committed,
    letters,
    news,
    png,
    records,
    sending,
    stored,
    stored_keys,
    until,
    working,
)
from tests.consumers.word_scorer import POISON, POISON_IMAGE, REFUSED, WordScorer

pytestmark = pytest.mark.kafka

HOSTILE: list[tuple[bytes | None, str]] = [
    (b"", "empty"),
    (b"{", "bad_json"),
    (b"[1, 2]", "not_an_object"),
    (b"\xff\xfe{\x00}\x00", "bad_encoding"),
    (b"[" * 60_000, "bad_json"),
    (b'{"a":' * 5_000 + b"1" + b"}" * 5_000, "bad_json"),
    (b'{"id": "x", "published_at": "2024-01-08T09:00:00Z"}', "no_text"),
    (b'{"id": "x", "title": "t"}', "missing_published_at"),
    (b'{"id": "x", "title": "t", "published_at": "yesterday"}', "bad_published_at"),
    (b'{"id": "x", "title": "t", "published_at": 1704700000}', "bad_published_at"),
    (b'{"id": "x", "title": "t", "published_at": "0001-01-01T00:00:00+23:59"}', "bad_published_at"),
    (b'{"id": "x", "title": "t", "published_at": "1066-10-14T09:00:00Z"}', "absurd_date"),
    (b'{"id": "x", "title": "t", "published_at": "9999-12-31T23:59:59Z"}', "absurd_date"),
    (b'{"id": 7, "title": "t", "published_at": "2024-01-08T09:00:00Z"}', "bad_field"),
    (b'{"id": "x", "title": "t", "published_at": "2024-01-08T09:00:00Z", "n": 1e999}', "bad_json"),
    (b'{"id": "x", "title": "\\ud800", "published_at": "2024-01-08T09:00:00Z"}', "bad_json"),
    (b'{"id": "x", "title": "t", "tickers": "AAPL", "published_at": "2024-01-08T09:00:00Z"}', "bad_field"),
    (b'{"id": "' + b"x" * 300 + b'", "title": "t", "published_at": "2024-01-08T09:00:00Z"}', "bad_id"),
]


def bomb() -> bytes:
    """A small file that claims to be a picture of 60,000 by 60,000 pixels."""
    header = bytearray(png())
    header[16:24] = (60_000).to_bytes(4, "big") * 2
    header[29:33] = zlib.crc32(bytes(header[12:29])).to_bytes(4, "big")
    return bytes(header)


def _origin(record: ConsumerRecord) -> tuple[bytes, bytes, bytes]:
    """Where a dead letter comes from: its identity."""
    headers = dict(record.headers)
    return headers["origin-topic"], headers["origin-partition"], headers["origin-offset"]


def test_good_items_among_hostile_ones_are_scored_and_the_others_become_dead_letters(
    kafka_settings: Settings, store: Engine
) -> None:
    settings = kafka_settings.model_copy(update={"max_chart_bytes": 2048, "worker_pairing_wait_s": 0.3})
    with sending(settings) as sender:
        for number, (value, _) in enumerate(HOSTILE):
            sender.item(news(number))
            sender.raw("news", value, b"key", {"trace": b"\x00\xff"})
        at = T0.isoformat()
        bad_charts: list[tuple[bytes | None, dict[str, str | bytes], str]] = [
            (b"GIF89a....", {"published_at": at}, "unsupported_image"),
            (png()[:60], {"published_at": at}, "undecodable_image"),
            (bomb(), {"published_at": at}, "too_many_pixels"),
            (b"\x89PNG\r\n\x1a\n" + b"x" * 3000, {"published_at": at}, "oversized"),
            (png(), {}, "missing_published_at"),
            (png(), {"published_at": at, "chart_id": b"\xff"}, "bad_encoding"),
            (png(), {"published_at": at, "chart_id": "c" * 300}, "bad_id"),
            (None, {"watermark": "soon"}, "bad_published_at"),
            (None, {}, "empty"),
        ]
        for value, headers, _ in bad_charts:
            sender.raw("charts", value, b"key", headers)
        sender.flush()
        with working(settings, WordScorer(), store):
            until(lambda: len(stored(store)) == len(HOSTILE) and len(letters(store)) == len(HOSTILE) + len(bad_charts))
            until(lambda: sum(committed(settings).values()) == 2 * len(HOSTILE) + len(bad_charts))
    expected = sorted([code for _, code in HOSTILE] + [code for _, _, code in bad_charts])
    assert sorted(letters(store).values()) == expected
    # The topic may hold a letter twice when the group rebalanced between its sending and its commit.
    dead = list({_origin(record): record for record in records(settings, "dead-letters")}.values())
    assert sorted(dict(record.headers)["code"].decode() for record in dead) == expected
    # An empty record came on both topics: look at those of the news.
    by_value = {
        record.value: headers
        for record in dead
        if (headers := dict(record.headers))["origin-topic"].decode() == settings.topic("news")
    }
    for value, code in HOSTILE:
        headers = by_value[value or b""]
        assert headers["code"].decode() == code
        assert headers["reason"]
        assert headers["origin-header-trace"] == b"\x00\xff"
        origin = (settings.topic("news"), int(headers["origin-partition"]), int(headers["origin-offset"]))
        assert letters(store)[origin] == code


def test_what_follows_from_an_item(kafka_settings: Settings, store: Engine) -> None:
    settings = kafka_settings.model_copy(update={"worker_idle_after_s": 0.5, "max_text_chars": 200})
    with sending(settings) as sender:
        for number in range(60):
            sender.item(news(number, body="word " * 100))
        # The same again, and a marker on one partition.
        for number in range(10):
            sender.item(news(number, body="word " * 100))
        sender.mark("news", 2, T0 + timedelta(hours=1))
        sender.flush()
        with working(settings, WordScorer(), store):
            until(lambda: len(stored(store)) == 60 and sum(committed(settings).values()) == 71)
            until(lambda: all(source.idle for source in last_sources(settings).values()))
    rows = stored(store)
    assert all(len(row.title) + len(row.body) <= 200 for row in rows.values())
    expected_keys = {
        (key, f"i{n}")
        for n in range(60)
        for key in ("ticker:AAPL", *(() if n % 2 else ("ticker:MSFT",)), f"topic:{rows[f'i{n}'].topic}")
    }
    assert stored_keys(store) == expected_keys
    scored = [(r.key.decode(), decode_strict(ScoredItem, r.value)) for r in records(settings, "scored")]
    assert {key for key, _ in scored} == set(rows)
    assert all(key == item.id for key, item in scored)
    pairs = set()
    for record in records(settings, "contributions"):
        batch = decode_strict(ContributionBatch, record.value)
        assert batch.source_count == 2 * settings.kafka_partitions
        for one in batch.contributions:
            assert zlib.crc32(one.key.encode()) % settings.kafka_partitions == record.partition
            pairs.add((one.key, one.item_id))
    assert pairs == expected_keys
    sources = last_sources(settings)
    assert len(sources) == 8
    assert sources["news:2"].at == int((T0 + timedelta(hours=1)).timestamp() * 1000)
    assert max(s.at for name, s in sources.items() if name != "news:2") <= int(T0.timestamp() + 59) * 1000


def last_sources(settings: Settings) -> dict:  # type: ignore[type-arg]
    """What the last record of contributions partition 0 says of each source."""
    found = {}
    for record in records(settings, "contributions"):
        if record.partition == 0:
            for source in decode_strict(ContributionBatch, record.value).sources:
                assert source.at >= found[source.source].at if source.source in found else True
                found[source.source] = source
    return found


def test_charts_find_their_items_in_any_order_and_however_late(kafka_settings: Settings, store: Engine) -> None:
    settings = kafka_settings.model_copy(update={"worker_pairing_wait_s": 0.6})
    with sending(settings) as sender, working(settings, WordScorer(), store):
        sender.item(news(1, chart_ids=("c1",)))
        sender.chart("c1", png(10), at=T0, key="i1")  # named by its item only
        sender.chart("c2", png(20), "i2")
        sender.item(news(2))  # named by its chart only, chart first or at the same time
        sender.item(news(3, chart_ids=("never",)))
        sender.item(news(4, chart_ids=("c4",)))
        sender.item(news(5))
        sender.chart("c6", png(60), "i6")
        sender.chart("alone", png(70))
        sender.flush()
        until(lambda: {"i1", "i2", "i3", "i4", "i5", "chart:c6", "chart:alone"} <= stored(store).keys())
        until(lambda: stored(store)["i2"].modality == "both")
        assert stored(store)["i1"].modality == "both"
        assert stored(store)["i4"].modality == stored(store)["i5"].modality == "text"
        assert stored(store)["chart:c6"].modality == "chart"
        # Too late for the wait, by the item's word or the chart's; and an item after its chart was scored alone.
        sender.chart("c4", png(40), key="i4")
        sender.chart("c5", png(50), "i5")
        sender.item(news(6))
        sender.flush()
        until(lambda: all(stored(store)[f"i{n}"].modality == "both" for n in (4, 5) if f"i{n}" in stored(store)))
        until(lambda: "i6" in stored(store) and stored(store)["i6"].modality == "both")
        # Redelivered without its chart, an item stays what it was.
        sender.item(news(2))
        sender.item(news(4, chart_ids=("c4",)))
        sender.flush()
        until(lambda: sum(committed(settings).values()) == 14)
    rows = stored(store)
    assert {k: v.modality for k, v in rows.items()} == {
        **{f"i{n}": "both" for n in (1, 2, 4, 5, 6)},
        "i3": "text",
        "chart:alone": "chart",
    }
    assert ("ticker:AAPL", "chart:c6") not in stored_keys(store)
    with reading(store) as connection:
        kept = {row.chart_id: row for row in connection.execute(select(charts))}
    assert {k: v.item_id for k, v in kept.items()} == {
        "c1": "i1", "c2": "i2", "c4": "i4", "c5": "i5", "c6": "i6", "alone": ""
    }  # fmt: skip
    assert kept["c4"].image == png(40)
    assert (kept["c4"].media_type, kept["c4"].width, kept["c4"].height) == ("image/png", 32, 24)


def test_poison_is_isolated(kafka_settings: Settings, store: Engine) -> None:
    settings = kafka_settings.model_copy(update={"worker_pairing_wait_s": 0.5, "worker_batch_items": 16})
    poison_png = png() + POISON_IMAGE  # decoders stop at the end of the picture
    with sending(settings) as sender, working(settings, WordScorer(), store):
        for number in range(40):
            sender.item(news(number))
        sender.item(news(40, title=f"{POISON} here"))
        sender.item(news(41, title=f"{REFUSED} here", chart_ids=("c41",)))
        sender.chart("c41", png(41), "i41")
        sender.item(news(42, chart_ids=("c42", "d42")))
        sender.chart("c42", poison_png, "i42")
        sender.chart("d42", png(42), "i42")
        sender.chart("c43", poison_png)
        sender.flush()
        until(lambda: len(letters(store)) == 4 and len(stored(store)) == 42)
        until(lambda: sum(committed(settings).values()) == 47)
    assert sorted(letters(store).values()) == ["scoring_failed", "scoring_failed", "scoring_failed", "unscorable"]
    rows = stored(store)
    assert {"i40", "i41", "chart:c43"}.isdisjoint(rows)
    assert rows["chart:c41"].modality == "chart"
    assert (rows["i42"].modality, rows["i42"].chart["chart_id"]) == ("both", "d42")


def test_a_broken_classifier_stops_the_worker_and_nothing_is_committed(kafka_settings: Settings, store: Engine) -> None:
    with sending(kafka_settings) as sender:
        for number in range(5):
            sender.item(news(number))
        sender.flush()
        scorer = WordScorer()
        scorer.broken = RuntimeError("CUDA error: device-side assert triggered")
        running = Running(kafka_settings, scorer, store)
        running.thread.join(40)
        assert isinstance(running.error, ModelError)
        assert "every item" in running.error.message
        assert "device-side assert" in running.error.message
        assert committed(kafka_settings) == {}
        assert stored(store) == {}
        assert letters(store) == {}
        with working(kafka_settings, WordScorer(), store):
            until(lambda: len(stored(store)) == 5)


def test_a_scorer_that_hangs_or_fails_is_seen_from_outside(
    kafka_settings: Settings, store: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "STUCK_SCORING_S", 0.5)
    scorer, let = WordScorer(), threading.Event()
    score = scorer.score
    monkeypatch.setattr(scorer, "score", lambda requests: let.wait(60) and score(requests))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    def ready() -> tuple[int, str]:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/ready", timeout=10) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()

    with sending(kafka_settings) as sender, Health(port, stale_s=2.0, host="127.0.0.1") as health:
        running = Running(kafka_settings, scorer, store, health)
        try:
            until(lambda: ready()[0] == 200)
            sender.item(news(1))
            sender.flush()
            until(lambda: ready()[0] == 503)
            assert "no sign of life" in ready()[1]
            let.set()
            until(lambda: "i1" in stored(store) and ready()[0] == 200)
            scorer.broken = RuntimeError("the stage broke")
            sender.item(news(2))
            sender.flush()
            running.thread.join(40)
            assert isinstance(running.error, ModelError)
            code, problem = ready()
            assert (code, "the stage broke" in problem) == (503, True)
        finally:
            let.set()
            running.end()


def test_an_outage_of_the_store_is_waited_out(kafka_settings: Settings, make_settings: Callable[..., Settings]) -> None:
    empty = open_engine(f"sqlite:///{make_settings().data_dir / 'later.db'}")
    before = RETRIES.labels("store")._value.get()
    with sending(kafka_settings) as sender, working(kafka_settings, WordScorer(), empty):
        for number in range(5):
            sender.item(news(number))
        sender.flush()
        until(lambda: RETRIES.labels("store")._value.get() > before)
        assert committed(kafka_settings) == {}
        upgrade(empty)
        until(lambda: len(stored(empty)) == 5)
        until(lambda: sum(committed(kafka_settings).values()) == 5)
    empty.dispose()


def test_a_promoted_model_is_taken_up(kafka_settings: Settings, store: Engine) -> None:
    settings = kafka_settings.model_copy(update={"worker_model_poll_s": 0.1})
    scorer = WordScorer(version="one")
    with sending(settings) as sender, working(settings, scorer, store):
        sender.item(news(1))
        sender.flush()
        # Committed: while the group settles down, an item may be read and scored twice.
        until(lambda: sum(committed(settings).values()) == 1)
        scorer.promoted = "two"
        until(lambda: scorer.model_version == "two")
        sender.item(news(2))
        sender.flush()
        until(lambda: "i2" in stored(store))
    assert {k: v.model_version for k, v in stored(store).items()} == {"i1": "one", "i2": "two"}


def test_a_slow_classifier_does_not_make_the_worker_hoard(kafka_settings: Settings, store: Engine) -> None:
    settings = kafka_settings.model_copy(update={"worker_batch_items": 8})
    with sending(settings) as sender:
        for number in range(3000):
            sender.item(news(number))
        sender.flush()
        scorer = WordScorer(seconds=0.02)
        with working(settings, scorer, store) as running:
            until(lambda: len(scorer.calls) > 6)
            # One poll's worth, never the whole topic.
            assert len(running.worker._ready) <= 500 + 16
        before = len(stored(store))
        assert sum(committed(settings).values()) == before < 3000
        assert max(scorer.calls) <= 8


def test_however_large_the_records_what_is_kept_of_them_is_bounded(kafka_settings: Settings, store: Engine) -> None:
    settings = kafka_settings.model_copy(update={"worker_image_bytes": 1 << 20, "max_text_chars": 100_000})
    count, body = 150, "word " * 12_000
    held: list[int] = []

    class Looking(WordScorer):
        def score(self, requests: Sequence[ScoringRequest]) -> list[ScoredItem | Rejected]:
            at_work = running.worker
            held.append(at_work._ready.bytes + at_work._pipeline.held_bytes + at_work._intake.pairing.held_bytes)
            return super().score(requests)

    with sending(settings) as sender:
        for number in range(count):
            sender.item(news(number, body=body))
        sender.flush()
        running = Running(settings, Looking(seconds=0.02), store)
        try:
            until(lambda: sum(committed(settings).values()) == count, 90)
        finally:
            running.end()
    assert running.error is None
    assert len(stored(store)) == count
    # Of 18 MB (as records and as texts); to take the last record in that there is room for may exceed the bound by it.
    assert (1 << 20) / 4 < max(held) <= (1 << 20) + 2 * 2 * len(body)


def test_future_times_do_not_push_the_watermark(kafka_settings: Settings, store: Engine) -> None:
    settings = kafka_settings.model_copy(update={"worker_idle_after_s": 0.3})
    soon = datetime.now(UTC) + timedelta(hours=20)
    with sending(settings) as sender, working(settings, WordScorer(), store):
        sender.item(news(1, published_at=soon))
        for partition in range(settings.kafka_partitions):
            sender.mark("news", partition, soon)
        sender.flush()
        until(lambda: "i1" in stored(store))
        until(lambda: sum(committed(settings).values()) == 1 + settings.kafka_partitions)
        until(lambda: any(source.at for source in last_sources(settings).values()))
    assert max(s.at for s in last_sources(settings).values()) <= datetime.now(UTC).timestamp() * 1000
    assert json.loads(records(settings, "scored")[0].value)["published_at"].startswith(soon.isoformat()[:16])
