"""What the worker sends, also where it is larger than its topic takes: shares in parts, dead letters cut."""

from __future__ import annotations

from collections import namedtuple

import pytest
from sqlalchemy import Engine
from typer.testing import CliRunner

from consumers.clients import producer
from consumers.dead_letters import replay
from consumers.publisher import (
    CONTRIBUTION_BYTES,
    CUT_BYTES,
    CUT_KEY_BYTES,
    Outgoing,
    _cut,
    contribution_records,
    dead_letter_record,
)
from consumers.topics import ensure_topics
from monitor.cli.context import root_flags
from monitor.cli.dead_letters import app
from monitor.records import Contribution, ContributionBatch, Rejected, SourceWatermark, decode_strict
from monitor.settings import Settings
from tests.consumers.running import committed, letters, news, records, sending, stored, until, working
from tests.consumers.word_scorer import WordScorer

Record = namedtuple("Record", "topic partition offset timestamp key value headers")
HUGE = 20 << 20
OWN = {"code", "reason", "origin-topic", "origin-partition", "origin-offset", "origin-timestamp"}


def letter(**fields: object) -> Outgoing:
    record = Record("t.news", 0, 1, 2, b"k", b"{", [("trace", b"x")])._replace(**fields)
    return dead_letter_record(record, Rejected(code="bad_json", reason="no"))


@pytest.mark.parametrize(
    "fields",
    [
        {"value": b"v" * HUGE},
        {"key": b"k" * HUGE},
        {"headers": [("h", b"h" * HUGE)]},
        {"headers": [("h" * HUGE, b"")]},
        {"headers": [("h", b"h" * 100)] * 1000},
        {"value": None, "key": b"k" * HUGE},
        {"key": None, "headers": [("h", b"h" * HUGE)]},
    ],
)
def test_a_large_dead_letter_is_cut_to_what_any_topic_takes(fields: dict[str, object]) -> None:
    whole = letter(**fields)
    found = _cut(whole)
    assert len(found.value or b"") <= CUT_BYTES
    assert len(found.key or b"") <= CUT_KEY_BYTES
    assert (whole.value or b"").startswith(found.value or b"")
    assert (whole.key or b"").startswith(found.key or b"")
    assert (found.key is None) == (whole.key is None)
    # Where it comes from and why stays; the sender's own headers do not.
    assert {name for name, _ in found.headers} - {"origin-null"} == OWN | {"cut-from"}
    assert dict(found.headers)["cut-from"] == str(len(whole.value or b"")).encode()


def test_what_is_small_or_no_dead_letter_is_left_as_it_is() -> None:
    small = letter()
    assert _cut(small) is small
    other = Outgoing("scored", b"v" * HUGE, b"k")
    assert _cut(other) is other


def test_a_reason_is_bounded() -> None:
    record = Record("t.news", 0, 1, 2, b"k", b"{", [])
    made = dead_letter_record(record, Rejected(code="bad_field", reason="x" * HUGE))
    assert len(dict(made.headers)["reason"]) == 1000


@pytest.mark.kafka
def test_a_worker_goes_on_after_records_that_no_topic_takes_as_they_are(
    kafka_settings: Settings, store: Engine
) -> None:
    ensure_topics(kafka_settings)
    # What is 20 MB large once it is unpacked fits into a compressed batch of any topic.
    strange = producer(kafka_settings, max_request_size=1 << 28)
    topic = kafka_settings.topic("news")
    with sending(kafka_settings) as sender:
        strange.send(topic, b"{", b"\x00" * HUGE)
        strange.send(topic, b"{", b"headers", [("h", b"\x00" * HUGE)])
        strange.send(topic, b"{", b"small", [("trace", b"x")])
        strange.flush(timeout=60)
        strange.close()
        sender.item(news(1))
        sender.flush()
        with working(kafka_settings, WordScorer(), store):
            until(lambda: "i1" in stored(store) and sum(committed(kafka_settings).values()) == 4, 90)
    assert sorted(letters(store).values()) == ["bad_json"] * 3
    dead = {record.key: dict(record.headers) for record in records(kafka_settings, "dead-letters")}
    assert set(dead) == {b"\x00" * CUT_KEY_BYTES, b"headers", b"small"}
    assert {key for key, headers in dead.items() if "cut-from" in headers} == set(dead) - {b"small"}
    # In the same batch, but nothing of it is lost.
    assert dead[b"small"]["origin-header-trace"] == b"x"
    token = root_flags.set(
        {
            "data_dir": kafka_settings.data_dir,
            "kafka_bootstrap_servers": kafka_settings.kafka_bootstrap_servers,
            "topic_prefix": kafka_settings.topic_prefix,
        }
    )
    origin = dead[b"headers"]
    name = f"{topic}:{origin['origin-partition'].decode()}:{origin['origin-offset'].decode()}"
    shown = CliRunner().invoke(app, ["show", name])
    root_flags.reset(token)
    assert "It was too large as a whole: kept are its bytes" in shown.stdout
    assert replay(kafka_settings, store, None)[0] == 1


def test_a_large_share_goes_in_several_records_and_only_the_last_tells_the_progress() -> None:
    sources = (SourceWatermark("news:0", 5, False),)
    many = [
        Contribution(
            key="ticker:AAPL",
            item_id=f"i{n}" * 40,
            at=n,
            p_negative=0.5,
            score=0.0,
            negative=True,
            signature=bytes(48),
            source="s" * 1000,
            title="t" * 5000,
        )
        for n in range(9000)
    ]
    records = contribution_records(many, sources, 8, 4)
    assert {record.partition for record in records} == {0, 1, 2, 3}
    assert all(len(record.value or b"") <= CONTRIBUTION_BYTES for record in records)
    batches = [(record.partition, decode_strict(ContributionBatch, record.value or b"")) for record in records]
    full = [batch for _, batch in batches if batch.contributions]
    assert [one.item_id for batch in full for one in batch.contributions] == [one.item_id for one in many]
    assert len(full) > 1
    assert [bool(batch.sources) for batch in full] == [False] * (len(full) - 1) + [True]
    assert all(batch.sources == sources for _, batch in batches if not batch.contributions)


def test_a_dead_letter_has_everything_that_is_needed_to_send_it_again() -> None:
    record = Record("t.news", 3, 99, 17, b"key", b"original", [("h", b"\xff")])
    made = dead_letter_record(record, Rejected(code="bad_json", reason="no \ud800"))
    assert (made.topic, made.value, made.key) == ("dead-letters", b"original", b"key")
    assert dict(made.headers) == {
        "code": b"bad_json",
        "reason": b"no ?",
        "origin-topic": b"t.news",
        "origin-partition": b"3",
        "origin-offset": b"99",
        "origin-timestamp": b"17",
        "origin-header-h": b"\xff",
    }
