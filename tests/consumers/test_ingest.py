"""From feeds to the broker: keys, partitions, markers, pace."""

from __future__ import annotations

import json
import secrets
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from threading import Event

import httpx
import pytest
import respx

from consumers import clients
from consumers.ingest import Ingest, poll_feeds, replay
from monitor.errors import BrokerError, RecordTooLargeError
from monitor.feeds.jsonl import BadLine, Line
from monitor.records import SCHEMA_VERSION, Chart, NewsItem, Rejected, decode_chart, decode_news
from monitor.settings import Settings
from tests.consumers.running import T0, news, png, records

pytestmark = pytest.mark.kafka


def markers(found: list) -> dict[tuple[str, int], list[datetime]]:  # type: ignore[type-arg]
    """Times of the markers by topic and partition, in order."""
    out: dict[tuple[str, int], list[datetime]] = {}
    for record in found:
        for name, value in record.headers:
            if name == "watermark":
                assert record.value is None
                out.setdefault((record.topic, record.partition), []).append(datetime.fromisoformat(value.decode()))
    return out


def test_a_replay_sends_what_is_good_and_marks_every_partition(kafka_settings: Settings) -> None:
    chart = Chart(chart_id="c", image=png(), published_at=T0, item_id="i3", tickers=("AAPL",))
    lines: list[Line | BadLine] = [Line(n, news(n), chart if n == 3 else None) for n in range(50)]
    lines.insert(10, BadLine(99, Rejected(code="bad_json", reason="It is not.")))
    lines.append(Line(100, news(-500)))
    alone = Chart(chart_id="alone", image=png(1), published_at=T0)
    lines.append(Line(101, news(20, id="chart:alone", title=""), alone))
    ingest = Ingest(kafka_settings)
    seen: list[int] = []
    done = replay(lines, ingest, speed=0, lateness_s=60, on_line=lambda line: seen.append(line.number))
    ingest.close()
    assert (done.items, done.charts, done.bad, done.disordered) == (51, 2, 1, 1)
    assert len(seen) == 53
    sent, pictures = records(kafka_settings, "news"), records(kafka_settings, "charts")
    items = {r.key.decode(): (r.partition, decode_news(r.value, T0)) for r in sent if r.value}
    assert {key: item for key, (_, item) in items.items()} == {
        x.item.id: x.item for x in lines if isinstance(x, Line) and x.item.text
    }
    (picture,) = (r for r in pictures if r.key == b"i3")
    (lonely,) = (r for r in pictures if r.key == b"alone")
    assert decode_chart(lonely.value, lonely.headers, T0, 10_000) == alone
    assert decode_chart(picture.value, picture.headers, T0, 10_000) == chart
    assert dict(picture.headers)["schema_version"] == str(SCHEMA_VERSION).encode()
    assert picture.partition == items["i3"][0]
    found = markers(sent) | markers(pictures)
    assert len(found) == 2 * kafka_settings.kafka_partitions
    assert all(times[-1] == T0 + timedelta(seconds=49 + 60 + 60) for times in found.values())


def test_a_record_that_is_dated_ahead_does_not_take_the_markers_with_it(kafka_settings: Settings) -> None:
    now = datetime.now(UTC)
    lines = [Line(1, news(1, published_at=now)), Line(2, news(2, published_at=now + timedelta(hours=20)))]
    ingest = Ingest(kafka_settings)
    replay(lines, ingest, speed=0, lateness_s=60)
    ingest.close()
    found = markers(records(kafka_settings, "news"))
    assert len(found) == kafka_settings.kafka_partitions
    assert all(now <= time <= datetime.now(UTC) for times in found.values() for time in times)


def test_a_replay_keeps_its_pace_and_never_marks_past_what_it_has_sent(kafka_settings: Settings) -> None:
    lines = [Line(n, news(n, published_at=T0 + timedelta(minutes=n))) for n in range(4)]
    ingest = Ingest(kafka_settings)
    began = time.monotonic()
    replay(lines, ingest, speed=75, lateness_s=60)
    ingest.close()
    assert 2.3 <= time.monotonic() - began < 10
    sent = records(kafka_settings, "news")
    found = markers(sent)
    assert all(len(times) >= 2 and times == sorted(times) for times in found.values())
    for partition in range(kafka_settings.kafka_partitions):
        reached = T0
        for record in (r for r in sent if r.partition == partition):
            if record.value is None:
                reached = max(reached, *markers([record])[record.topic, partition])
            else:
                assert json.loads(record.value)["published_at"] >= reached.isoformat().replace("+00:00", "Z")


def test_a_stopped_replay_does_not_claim_to_be_complete(kafka_settings: Settings) -> None:
    stop = Event()
    lines = [Line(n, news(n)) for n in range(10)]
    ingest = Ingest(kafka_settings)
    done = replay(
        lines, ingest, speed=0, lateness_s=60, stop=stop, on_line=lambda line: stop.set() if line.number == 5 else None
    )
    ingest.close()
    assert done.items == 5
    sent = records(kafka_settings, "news")
    assert len([r for r in sent if r.value]) == 5
    assert markers(sent) == {}


@respx.mock
def test_feeds_are_polled_once_and_marked(kafka_settings: Settings) -> None:
    now = datetime.now(UTC)
    entry = f"<item><guid>g</guid><title>T</title><pubDate>{now:%a, %d %b %Y %H:%M:%S} GMT</pubDate></item>"
    respx.get("https://a.example/rss").mock(
        return_value=httpx.Response(200, text=f'<rss version="2.0"><channel><title>A</title>{entry}</channel></rss>')
    )
    respx.get("https://b.example/rss").mock(return_value=httpx.Response(500))
    told: list[tuple[str, int, str]] = []
    ingest = Ingest(kafka_settings)
    failed = poll_feeds(
        ["https://a.example/rss", "https://b.example/rss"],
        ingest,
        interval_s=30,
        egress_allow="",
        once=True,
        stop=Event(),
        on_poll=lambda url, items, _skipped, problem: told.append((url, items, problem)),
    )
    ingest.close()
    assert failed == 1
    assert told[0] == ("https://a.example/rss", 1, "")
    assert "500" in told[1][2]
    sent = records(kafka_settings, "news")
    assert [json.loads(r.value)["title"] for r in sent if r.value] == ["T"]
    times = [time for at in markers(sent).values() for time in at]
    assert len(times) == kafka_settings.kafka_partitions
    assert all(abs((now - timedelta(seconds=60) - at).total_seconds()) < 10 for at in times)


def test_a_record_that_the_cluster_refuses_is_an_error(kafka_settings: Settings) -> None:
    ingest = Ingest(kafka_settings)
    with pytest.raises(RecordTooLargeError, match="larger"):
        ingest.send_all([news(1, chart_ids=(secrets.token_hex(3 << 20),))])
    ingest.send_all([news(2)])
    ingest.close()
    assert [r.key for r in records(kafka_settings, "news")] == [b"i2"]


@respx.mock
def test_an_entry_that_is_too_large_does_not_hold_its_feed_up(kafka_settings: Settings) -> None:
    settings = kafka_settings.model_copy(update={"max_text_chars": 1 << 30})
    now = datetime.now(UTC)
    entries = "".join(
        f"<item><guid>{name}</guid><title>{name}</title><description>{body}</description>"
        f"<pubDate>{now:%a, %d %b %Y %H:%M:%S} GMT</pubDate></item>"
        for name, body in (("first", "a"), ("huge", secrets.token_hex(3 << 20)), ("last", "b"))
    )
    respx.get("https://a.example/rss").mock(
        return_value=httpx.Response(200, text=f'<rss version="2.0"><channel><title>A</title>{entries}</channel></rss>')
    )
    told: list[tuple[int, list[str], str]] = []
    ingest = Ingest(settings)
    poll_feeds(
        ["https://a.example/rss"],
        ingest,
        interval_s=30,
        egress_allow="",
        once=True,
        stop=Event(),
        on_poll=lambda _url, items, skipped, problem: told.append((items, skipped, problem)),
    )
    ingest.close()
    ((items, (reason,), problem),) = told
    assert (items, problem) == (2, "")
    assert "'huge': A record is larger" in reason
    sent = {json.loads(r.value)["title"] for r in records(settings, "news") if r.value}
    assert sent == {"first", "last"}


def test_a_long_text_is_cut_to_what_is_kept(kafka_settings: Settings) -> None:
    settings = kafka_settings.model_copy(update={"max_text_chars": 300})
    ingest = Ingest(settings)
    ingest.send_all([news(1, body=secrets.token_hex(3 << 20))])
    ingest.close()
    (record,) = records(settings, "news")
    item = decode_news(record.value, datetime.now(UTC))
    assert isinstance(item, NewsItem)
    assert len(item.title) + len(item.body) == 300


def test_no_broker_is_said_in_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clients, "BOOTSTRAP_TIMEOUT_MS", 500)
    settings = Settings(data_dir=tmp_path, kafka_bootstrap_servers="127.0.0.1:1")
    with pytest.raises(BrokerError, match=r"No Kafka broker answers at 127\.0\.0\.1:1"):
        Ingest(settings)
