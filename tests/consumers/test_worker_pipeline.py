"""The worker's way of a batch, without a broker: scored, stored, sent, and done only then."""

from __future__ import annotations

import threading
import time
import zlib
from collections.abc import Sequence
from concurrent.futures import Future

import pytest
from sqlalchemy import Engine

from consumers import pipeline, worker
from consumers.intake import Origin, Refusal
from consumers.pipeline import SCORING_THREADS, Pipeline
from consumers.publisher import Outgoing
from consumers.scoring import Scored
from consumers.worker_metrics import SCORING_SECONDS
from models.charts.images import ImageHeader, decode_image, image_header
from models.engine import ScoringRequest
from monitor.errors import BrokerError, StorageError
from monitor.records import (
    Chart,
    Contribution,
    Rejected,
    ScoredItem,
)
from monitor.settings import Settings
from tests.consumers.pipeline_bench import Bench, Gated, chart, until_scored
from tests.consumers.running import T0, letters, news, png, sending, stored, stored_keys, until, working
from tests.consumers.word_scorer import POISON, WordScorer


def test_done_comes_after_stored_and_sent(bench: Bench) -> None:
    refusal = Refusal(bench.origin(), Rejected(code="bad_json", reason="no"))
    bench.work(bench.group(news(1)), bench.group(news(2)), refused=[refusal])
    assert bench.progress.position == 4
    ((records, contributions),) = bench.sent
    assert sorted((r.topic, r.key) for r in records) == [("dead-letters", b"key"), ("scored", b"i1"), ("scored", b"i2")]
    assert {one.item_id for one in contributions} == {"i1", "i2"}
    assert letters(bench.store) == {("t.news", 0, 1): "bad_json"}


def test_what_cannot_be_sent_ends_the_worker(bench: Bench) -> None:
    bench.away = True
    with pytest.raises(BrokerError):
        bench.work(bench.group(news(1)))
    assert bench.sent == []


def test_a_batch_whose_scoring_has_not_begun_can_be_dropped(store: Engine) -> None:
    bench = Bench(store, WordScorer(seconds=0.3))
    for number in range(1, SCORING_THREADS + 2):
        bench.pipeline.submit([bench.group(news(number))])
    while not all(batch.scored.running() for batch in list(bench.pipeline._in_flight)[:SCORING_THREADS]):
        time.sleep(0.001)
    bench.pipeline.drop_unbegun()
    bench.pipeline.finish([], wait=True)
    bench.pipeline.close()
    assert set(stored(store)) == {f"i{number}" for number in range(1, SCORING_THREADS + 1)}
    assert (bench.progress.position, bench.progress.pending) == (SCORING_THREADS + 1, 1)


def test_it_takes_as_many_batches_as_are_scored_side_by_side(gated: Bench) -> None:
    said = []
    for number in range(1, SCORING_THREADS + 1):
        assert gated.pipeline.takes()
        gated.pipeline.submit([gated.group(news(number, title="WAIT for it"))])
        said.append(gated.pipeline.takes())
    assert said == [True] * (SCORING_THREADS - 1) + [False]
    assert isinstance(gated.scorer, Gated)
    gated.scorer.gate.set()
    gated.pipeline.finish([], wait=True)
    assert gated.pipeline.takes()


def test_one_can_wait_for_the_first_batch_or_until_nothing_is_scored(bench: Bench) -> None:
    first, second = Future[Scored[Origin]](), Future[Scored[Origin]]()
    bench.pipeline._in_flight = [pipeline._Batch([], frozenset(), 0, False, one, 0.0) for one in (first, second)]
    threading.Timer(0.1, second.set_result, [Scored()]).start()
    bench.pipeline.wait(20)
    assert (first.done(), second.done()) == (False, True)
    # Whoever waits for all of them waits as long as it was told to.
    began = time.monotonic()
    bench.pipeline.wait(0.1, until_idle=True)
    assert time.monotonic() - began > 0.09
    threading.Timer(0.1, first.set_result, [Scored()]).start()
    bench.pipeline.wait(20, until_idle=True)
    assert not bench.pipeline.scores


def test_the_next_batch_is_begun_before_the_last_one_is_stored(bench: Bench) -> None:
    bench.pipeline.submit([bench.group(news(1))])
    bench.pipeline.wait(20)
    assert not bench.pipeline.scores
    assert bench.pipeline.held_bytes > 0
    assert stored(bench.store) == {}
    bench.pipeline.submit([bench.group(news(2))])
    bench.pipeline.finish([], wait=True)
    assert list(bench.scorer.seen) == ["i1", "i2"]
    assert (bench.pipeline.scores, bench.pipeline.held_bytes, set(stored(bench.store))) == (False, 0, {"i1", "i2"})


def test_the_time_of_scoring_is_without_the_wait_for_the_store(bench: Bench) -> None:
    told = threading.Event()
    bench.pipeline._on_scored = told.set
    before = SCORING_SECONDS._sum.get()
    bench.pipeline.submit([bench.group(news(1))])
    assert told.wait(20)
    scoring = SCORING_SECONDS._sum.get()
    assert scoring > before
    bench.pipeline.finish([], wait=True)
    assert SCORING_SECONDS._sum.get() == scoring


def test_what_is_scored_first_is_stored_first_and_no_position_passes_what_is_not(gated: Bench) -> None:
    gated.pipeline.submit([gated.group(news(1, title="WAIT for it"))], long=True)
    gated.pipeline.submit([gated.group(news(2))])
    gated.pipeline.submit([gated.group(news(3))])
    until_scored(gated, 1, 2)
    gated.pipeline.finish([], wait=False)
    assert set(stored(gated.store)) == {"i2", "i3"}
    # Both in one transaction, and sent together.
    assert len(gated.sent) == 1
    assert (gated.progress.position, gated.progress.pending) == (1, 3)
    gated.scorer.gate.set()  # type: ignore[attr-defined]
    gated.pipeline.finish([], wait=True)
    assert set(stored(gated.store)) == {"i1", "i2", "i3"}
    assert (gated.progress.position, gated.progress.pending) == (4, 0)


@pytest.mark.parametrize("shared", ["item", "chart of an item", "item of a chart"])
def test_but_never_before_an_earlier_batch_about_the_same(gated: Bench, shared: str) -> None:
    gated.pipeline.submit([gated.group(news(1, title="WAIT for it", chart_ids=("c",)))], long=True)
    later = {
        "item": lambda: gated.group(news(1, title="A later version")),
        "chart of an item": lambda: gated.group(None, chart("c")),
        "item of a chart": lambda: gated.group(None, chart("d", "i1")),
    }
    gated.pipeline.submit([later[shared]()])
    gated.pipeline.submit([gated.group(news(2))])
    until_scored(gated, 1, 2)
    gated.pipeline.finish([], wait=False)
    assert set(stored(gated.store)) == {"i2"}
    gated.scorer.gate.set()  # type: ignore[attr-defined]
    gated.pipeline.finish([], wait=True)
    row = stored(gated.store)["i1"]
    assert (row.title == "A later version") == (shared == "item")
    assert (row.modality == "both") == (shared != "item")
    assert gated.progress.pending == 0


def test_a_backlog_does_not_keep_it_from_coming_back(bench: Bench) -> None:
    send = bench._send

    def more(records: list[Outgoing], contributions: list[Contribution]) -> None:
        send(records, contributions)
        if len(bench.sent) < 4:
            bench.pipeline.submit([bench.group(news(len(bench.sent) + 1))])
            until_scored(bench, -1)

    bench.pipeline._send = more
    told: list[bool] = []
    bench.pipeline._on_scored = lambda: told.append(True)
    bench.pipeline.submit([bench.group(news(1))])
    until_scored(bench, 0)
    told.clear()
    # What came meanwhile is for the next time: progress is told and offsets are committed in between.
    bench.pipeline.finish([], wait=False)
    assert set(stored(bench.store)) == {"i1"}
    assert told
    bench.pipeline.finish([], wait=True)
    assert set(stored(bench.store)) == {"i1", "i2", "i3", "i4"}


def test_long_batches_leave_short_ones_their_threads(gated: Bench) -> None:
    for number in range(1, SCORING_THREADS + 1):
        gated.pipeline.submit([gated.group(news(number, title="WAIT for it"))], long=True)
    assert not gated.pipeline.takes(long=True)
    assert gated.pipeline.takes()
    gated.pipeline.submit([gated.group(news(9))])
    until_scored(gated, SCORING_THREADS)
    assert gated.scorer.seen == ["i9"]


def test_scoring_does_not_run_away_from_a_store_that_is_slow(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "MAX_UNSTORED", 3)
    for number in (1, 3):
        assert bench.pipeline.takes()
        bench.pipeline.submit([bench.group(news(number)), bench.group(news(number + 1))])
    until_scored(bench, 0, 1)
    assert (bench.pipeline.scores, bench.pipeline.takes()) == (False, False)
    bench.pipeline.finish([], wait=False)
    assert bench.pipeline.takes()


def test_a_model_is_loaded_beside_batches_that_are_scored(gated: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = threading.Event()
    monkeypatch.setattr(gated.scorer, "refresh", lambda: asked.set() or False)
    for number in range(4):
        for long in (False, True):
            gated.pipeline.submit([gated.group(news(10 * number + long, title="WAIT for it"))], long=long)
    gated.pipeline.refresh()
    assert asked.wait(20)


def test_taking_in_a_batch_twice_changes_nothing(bench: Bench) -> None:
    groups = [(news(1), ()), (news(2), (chart("c", "i2"),)), (None, (chart("d"),))]
    outcomes = []
    for _ in range(2):
        bench.work(*(bench.group(item, *charts) for item, charts in groups))
        rows = {key: {**row._mapping, "scored_at": T0} for key, row in stored(bench.store).items()}
        assert {k: v["modality"] for k, v in rows.items()} == {"i1": "text", "i2": "both", "chart:d": "chart"}
        outcomes.append((rows, stored_keys(bench.store)))
    assert outcomes[0] == outcomes[1]
    assert bench.progress.pending == 0


def test_an_item_scored_again_takes_back_the_keys_it_has_lost(bench: Bench) -> None:
    bench.work(bench.group(news(2)), bench.group(news(4)))
    again = news(2, tickers=("NVDA", "AAPL"))
    bench.away = True
    with pytest.raises(BrokerError):
        bench.work(bench.group(again))
    bench.away = False
    # Stored but not sent, then read and stored again: what was lost the first time is still told.
    bench.work(bench.group(again), bench.group(news(6)))
    (_, first), (_, second) = bench.sent
    assert not any(one.retracted for one in first)
    assert [(one.key, one.item_id, one.at) for one in second if one.retracted] == [("ticker:MSFT", "i2", first[0].at)]
    assert second[0].retracted
    assert {one.key for one in second if one.item_id == "i2" and not one.retracted} >= {"ticker:NVDA", "ticker:AAPL"}


def test_what_is_no_longer_owned_is_dropped(bench: Bench) -> None:
    refusal = Refusal(bench.origin(), Rejected(code="bad_json", reason="no"))
    bench.pipeline.submit([bench.group(news(1))])
    bench.owned = False
    bench.pipeline.finish([refusal], wait=True)
    assert stored(bench.store) == {}
    assert letters(bench.store) == {}
    assert bench.progress.position == 1


def test_the_chart_of_a_refused_item_is_scored_alone(bench: Bench) -> None:
    bench.work(bench.group(news(1, title=POISON), chart("c", "i1")), bench.group(news(2)))
    assert {k: v.modality for k, v in stored(bench.store).items()} == {"chart:c": "chart", "i2": "text"}
    assert list(letters(bench.store).values()) == ["scoring_failed"]
    assert bench.progress.pending == 0


def test_damage_inside_a_picture_is_a_dead_letter_of_the_chart_alone(bench: Bench) -> None:
    whole = png(shade=7, size=(64, 64))
    # The header and all check sums are in order, the pixels are not.
    begin = whole.index(b"IDAT") + 4
    size = int.from_bytes(whole[begin - 8 : begin - 4], "big")
    body = b"\xff" * size
    damaged = whole[:begin] + body + zlib.crc32(b"IDAT" + body).to_bytes(4, "big") + whole[begin + size + 4 :]
    assert isinstance(image_header(damaged), ImageHeader)

    class Blind(WordScorer):
        """Takes what it can read, as the engine does, and scores the text alone otherwise."""

        def score(self, requests: Sequence[ScoringRequest]) -> list[ScoredItem | Rejected]:
            shown = [
                ScoringRequest(
                    r.item, tuple(c for c in r.charts if not isinstance(decode_image(c.image), Rejected))[:1]
                )
                for r in requests
            ]
            return super().score(shown)

    bench.pipeline._scorer = Blind()
    bad = Chart(chart_id="bad", image=damaged, published_at=T0, item_id="i1")
    worse = Chart(chart_id="worse", image=damaged, published_at=T0, item_id="i2")
    bench.work(
        bench.group(news(1, chart_ids=("bad", "c")), bad, chart("c", "i1")),
        bench.group(news(2, chart_ids=("worse",)), worse),
    )
    rows = stored(bench.store)
    assert {key: row.modality for key, row in rows.items()} == {"i1": "both", "i2": "text"}
    assert list(letters(bench.store).values()) == ["undecodable_image"] * 2
    assert bench.progress.pending == 0


@pytest.mark.parametrize(
    ("busy", "free", "wanted"),
    [(False, True, worker.IDLE_POLL_MS), (True, True, worker.FREE_POLL_MS), (True, False, worker.BUSY_POLL_MS)],
)
def test_what_comes_is_waited_for_as_long_as_it_can_be_scored_at_once(
    busy: bool, free: bool, wanted: int, store: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    monkeypatch.setattr(worker, "poll", lambda _client, timeout_ms, _most: asked.append(timeout_ms) or {})
    monkeypatch.setattr(Pipeline, "scores", busy)
    worker.Worker(Settings(), WordScorer(), store, lambda: True)._poll(None, free=free)
    assert asked == [wanted]


def test_nothing_may_be_committed_before_a_look_whether_it_was_overtaken(
    store: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    at_work, asked, gone = worker.Worker(Settings(), WordScorer(), store, lambda: True), list[str](), False

    def correct() -> None:
        asked.append("correct")
        if gone:
            raise StorageError("The store is gone.")

    monkeypatch.setattr(at_work._pipeline, "finish", lambda _, *, wait: asked.append("all" if wait else "some"))
    monkeypatch.setattr(at_work._pipeline, "correct", correct)
    monkeypatch.setattr(at_work._intake.sources, "marks", lambda: asked.append("marks") or {})
    at_work._store_and_send(False)
    # A moment later it is too soon for the next look; in the end it is not.
    at_work._store_and_send(False)
    at_work._store_and_send(True)
    assert asked == ["some", "correct", "marks", "some", "all", "correct", "marks"]
    asked.clear()
    gone = True
    with pytest.raises(StorageError):
        at_work._store_and_send(True)
    assert asked == ["all", "correct"]


def test_while_it_is_scored_the_worker_waits_for_room(kafka_settings: Settings, store: Engine) -> None:
    scorer, asked = WordScorer(seconds=0.2), list[float]()
    scorer.wait_for_room = asked.append  # type: ignore[method-assign]
    with sending(kafka_settings) as sender, working(kafka_settings, scorer, store):
        sender.item(news(1))
        sender.flush()
        until(lambda: "i1" in stored(store))
    assert asked
    assert set(asked) == {worker.READY_WAIT_S}
