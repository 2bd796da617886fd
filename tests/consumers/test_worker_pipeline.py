"""The worker's way of a batch, without a broker: scored, stored, sent, and done only then."""

from __future__ import annotations

import threading
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass
from typing import Any

import msgspec
import pytest
from sqlalchemy import Engine

from consumers import pipeline, worker
from consumers.intake import Origin, Refusal, clip
from consumers.pipeline import SCORING_THREADS, Pipeline
from consumers.progress import PartitionProgress
from consumers.publisher import CONTRIBUTION_BYTES, Outgoing, contribution_records, dead_letter_record
from consumers.scoring import Scored, score_groups
from consumers.worker_metrics import SCORING_SECONDS
from models.charts.images import ImageHeader, decode_image, image_header
from models.engine import ScoringRequest
from monitor.errors import BrokerError, ModelError
from monitor.pairing import Group
from monitor.records import (
    Chart,
    Contribution,
    ContributionBatch,
    NewsItem,
    Rejected,
    ScoredItem,
    SourceWatermark,
    TopicScore,
    decode_strict,
)
from monitor.settings import Settings
from monitor.storage.items import Picture
from tests.consumers.running import T0, letters, news, png, stored, stored_keys
from tests.consumers.word_scorer import POISON, POISON_IMAGE, WordScorer


@dataclass
class Record:
    """As much of a polled record as matters."""

    topic: str
    partition: int
    offset: int
    value: bytes | None = b"original"
    key: bytes | None = b"key"
    timestamp: int = 17
    headers: tuple[tuple[str, bytes], ...] = (("h", b"\xff"),)


class Bench:
    """A pipeline whose output is kept, on one partition each of news and charts."""

    def __init__(self, store: Engine, scorer: WordScorer | None = None) -> None:
        self.scorer = scorer or WordScorer()
        self.store = store
        self.progress = PartitionProgress()
        self.sent: list[tuple[list[Outgoing], list[Contribution]]] = []
        self.owned = True
        self.away = False
        self.offset = 0
        self.pipeline = Pipeline(
            self.scorer, store, send=self._send, owns=lambda _: self.owned, going_on=lambda: True, patience_s=5
        )

    def _send(self, records: list[Outgoing], contributions: list[Contribution]) -> None:
        if self.away:
            raise BrokerError("No broker.")
        self.sent.append((records, contributions))

    def origin(self, chart: Chart | None = None) -> Origin:
        """The next record."""
        self.offset += 1
        self.progress.read(self.offset, self.offset)
        record = Record("t.charts" if chart else "t.news", 0, self.offset)
        picture = Picture("image/png", 32, 24) if chart else None
        return Origin(record, self.progress, chart.chart_id if chart else "", picture)

    def group(self, item: NewsItem | None, *charts: Chart) -> Group[Origin]:
        """A group of newly read records."""
        tokens = ([self.origin()] if item else []) + [self.origin(chart) for chart in charts]
        return Group(item, {chart.chart_id: chart for chart in charts}, tokens)

    def work(self, *groups: Group[Origin], refused: list[Refusal] | None = None) -> None:
        """Submit and finish."""
        self.pipeline.submit(list(groups))
        self.pipeline.finish(refused or [], wait=True)


@pytest.fixture
def bench(store: Engine) -> Iterator[Bench]:
    found = Bench(store)
    yield found
    found.pipeline.close()


def chart(chart_id: str, item_id: str = "", shade: int = 100) -> Chart:
    return Chart(chart_id=chart_id, image=png(shade), published_at=T0, item_id=item_id, tickers=("AAPL",))


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


class Gated(WordScorer):
    """Waits before it scores a title with WAIT."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = threading.Event()

    def score(self, requests: Sequence[ScoringRequest]) -> list[ScoredItem | Rejected]:
        if any("WAIT" in request.item.title for request in requests):
            assert self.gate.wait(20)
        return super().score(requests)


@pytest.fixture
def gated(store: Engine) -> Iterator[Bench]:
    found = Bench(store, Gated())
    yield found
    assert isinstance(found.scorer, Gated)
    found.scorer.gate.set()
    found.pipeline.close()


def until_scored(bench: Bench, *numbers: int) -> None:
    wait([bench.pipeline._in_flight[number].scored for number in numbers], timeout=20)


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


@pytest.mark.parametrize("late", ["item", "chart"])
def test_a_half_that_another_worker_stores_meanwhile_is_joined(bench: Bench, late: str) -> None:
    halves: dict[str, Callable[[], Group[Origin]]] = {
        "item": lambda: bench.group(news(1, chart_ids=("c",))),
        "chart": lambda: bench.group(None, chart("c", "i1")),
    }
    other = Bench(bench.store)
    # This worker has looked into the store already when the other one writes.
    bench.pipeline.submit([halves[late]()])
    other.work(other.group(news(1, chart_ids=("c",))) if late == "chart" else other.group(None, chart("c", "i1")))
    bench.pipeline.finish([], wait=True)
    other.pipeline.close()
    rows = stored(bench.store)
    assert {key: row.modality for key, row in rows.items()} == {"i1": "both"}
    told = {(one.item_id, one.retracted) for one in bench.sent[0][1]}
    assert told == ({("i1", False)} if late == "chart" else {("i1", False), ("chart:c", True)})
    assert bench.progress.pending == 0


class Turning(WordScorer):
    """Finds another topic in an item each time that its chart is another one."""

    def _one(self, request: ScoringRequest) -> ScoredItem | Rejected:
        found = super()._one(request)
        assert isinstance(found, ScoredItem)
        label = f"topic{len(request.charts[0].image)}" if request.charts else "text"
        return msgspec.structs.replace(found, topic=TopicScore(label=label, probabilities={label: 1.0}))


def counted(sent: Sequence[tuple[list[Outgoing], list[Contribution]]]) -> set[tuple[str, str]]:
    """Pairs of key and item that are left when everything has been counted in the order of sending."""
    pairs: set[tuple[str, str]] = set()
    for _, contributions in sent:
        for one in contributions:
            (pairs.discard if one.retracted else pairs.add)((one.key, one.item_id))
    return pairs


@pytest.mark.parametrize("first", ["text", "chart", "lone chart"])
def test_workers_that_overtake_each_other_between_storing_and_sending_tell_what_is_stored(
    store: Engine, first: str
) -> None:
    slow, fast = Bench(store, Turning()), Bench(store, Turning())
    sent = slow.sent = fast.sent
    if first == "chart":
        # What the slow worker takes back, the fast one puts in force again.
        fast.work(fast.group(news(1), chart("c", "i1", 7)))

    def send(records: list[Outgoing], contributions: list[Contribution]) -> None:
        slow.pipeline._send = slow._send
        if first == "lone chart":
            fast.work(fast.group(news(1), chart("c", "i1")))
        elif first == "text":
            fast.work(fast.group(None, chart("c", "i1")))
        else:
            fast.work(fast.group(news(1, tickers=("NVDA",))))
            fast.work(fast.group(news(1), chart("c", "i1", 7)))
        slow._send(records, contributions)

    slow.pipeline._send = send
    if first == "lone chart":
        slow.work(slow.group(None, chart("c", "i1")))
    else:
        slow.work(slow.group(news(1, tickers=("MSFT",))))
    assert counted(sent) == stored_keys(store)
    # The last record of an item on the public topic is what the store has.
    (row,) = stored(store).values()
    last = {r.key: decode_strict(ScoredItem, r.value or b"") for records, _ in sent for r in records}
    assert last[row.id.encode()].topic.label == row.topic
    assert slow.progress.pending == 0
    # And where nobody came in between, nothing more is read or sent.
    several = len(sent)
    slow.work(slow.group(news(2)))
    assert len(sent) == several + 1
    for bench in (slow, fast):
        bench.pipeline.close()


def test_a_zombie_cannot_undo_a_pair(bench: Bench) -> None:
    bench.pipeline.submit([bench.group(news(1, chart_ids=("c",)))])
    other = Bench(bench.store)
    other.work(other.group(news(1, chart_ids=("c",)), chart("c")))
    other.pipeline.close()
    bench.pipeline.finish([], wait=True)
    assert stored(bench.store)["i1"].modality == "both"


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


def test_a_refused_chart_does_not_come_back_from_the_store(bench: Bench) -> None:
    bad = Chart(chart_id="c", image=png() + POISON_IMAGE, published_at=T0, item_id="i1")
    bench.work(bench.group(news(1, chart_ids=("c",)), bad), bench.group(news(2)))
    assert stored(bench.store)["i1"].modality == "text"
    assert letters(bench.store) == {("t.charts", 0, 2): "scoring_failed"}
    bench.work(bench.group(None, bad), bench.group(news(3)))
    assert stored(bench.store)["i1"].modality == "text"
    assert len(letters(bench.store)) == 2
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


def test_one_bad_row_costs_a_logarithm_of_calls() -> None:
    scorer = WordScorer()
    groups: list[Group[int]] = [Group(news(n), tokens=[n]) for n in range(128)]
    groups[77] = Group(news(77, title=POISON), tokens=[77])
    scored = score_groups(scorer, groups)
    assert len(scored.entries) == 127
    ((group, charts, rejected),) = scored.refused
    assert (group.tokens, charts, rejected.code) == ([77], frozenset(), "scoring_failed")
    assert len(scorer.calls) <= 2 * 7 + 2


def test_only_poison_is_not_a_broken_classifier_but_failing_at_everything_is() -> None:
    scorer = WordScorer()
    assert len(score_groups(scorer, [Group(news(1, title=POISON), tokens=[1])]).refused) == 1
    scorer.broken = RuntimeError("gone")
    with pytest.raises(ModelError, match="every item"):
        score_groups(scorer, [Group(news(1), tokens=[1])])
    scorer.broken = MemoryError()
    with pytest.raises(ModelError, match="memory"):
        score_groups(scorer, [Group(news(1), tokens=[1])])
    scorer.broken = ModelError("The weights are damaged.")
    with pytest.raises(ModelError, match="damaged"):
        score_groups(scorer, [Group(news(1), tokens=[1])])


def test_a_row_that_memory_does_not_suffice_for_is_no_dead_letter() -> None:
    class Short(WordScorer):
        def score(self, requests: Sequence[ScoringRequest]) -> list[ScoredItem | Rejected]:
            if any("LARGE" in request.item.title for request in requests):
                raise MemoryError
            return super().score(requests)

    groups = [Group(news(n, title="LARGE" if n == 3 else "small"), tokens=[n]) for n in range(8)]
    # The others can be scored: but to refuse this one would lose it for good.
    with pytest.raises(ModelError, match="memory"):
        score_groups(Short(), groups)


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
    record: Any = Record("t.news", 3, 99)
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


def test_clipping_keeps_the_beginning_and_what_columns_hold() -> None:
    item = news(1, title="T" * 3000, body="B" * 100, source="s" * 999, url="u" * 9999, lang="l" * 99, kind="k" * 99)
    found = clip(item, 2500)
    assert (len(found.title), len(found.title) + len(found.body)) == (2000, 2500)
    assert found.body.startswith("T" * 499)
    assert (len(found.source), found.url, len(found.lang), len(found.kind)) == (256, "", 35, 64)
    assert clip(news(2), 50_000) == news(2)


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
