"""Items and charts whose halves come apart, or to different workers: the store ends with the pair, and says so."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec
import pytest
from sqlalchemy import Engine

from consumers.intake import Origin
from consumers.pipeline import MAX_JOINS
from consumers.publisher import Outgoing
from models.engine import ScoringRequest
from monitor.errors import BrokerError
from monitor.pairing import Group
from monitor.records import (
    Chart,
    Contribution,
    Rejected,
    ScoredItem,
    TopicScore,
    decode_strict,
)
from tests.consumers.pipeline_bench import Bench, chart, until_scored
from tests.consumers.running import T0, letters, news, png, stored, stored_keys
from tests.consumers.word_scorer import POISON_IMAGE, WordScorer


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


def test_a_refused_chart_does_not_come_back_from_the_store(bench: Bench) -> None:
    bad = Chart(chart_id="c", image=png() + POISON_IMAGE, published_at=T0, item_id="i1")
    bench.work(bench.group(news(1, chart_ids=("c",)), bad), bench.group(news(2)))
    assert stored(bench.store)["i1"].modality == "text"
    assert letters(bench.store) == {("t.charts", 0, 2): "scoring_failed"}
    bench.work(bench.group(None, bad), bench.group(news(3)))
    assert stored(bench.store)["i1"].modality == "text"
    assert len(letters(bench.store)) == 2
    assert bench.progress.pending == 0


@pytest.mark.parametrize("by", ["this worker", "another worker"])
def test_a_late_chart_never_puts_back_an_older_version_of_its_item(gated: Bench, by: str) -> None:
    gated.work(gated.group(news(1, title="The first version", tickers=("AAPL",))))
    later, other = news(1, title="WAIT for the second version", tickers=("MSFT",)), Bench(gated.store)
    if by == "this worker":
        gated.pipeline.submit([gated.group(later)], long=True)
    # It takes the first version from the store, which is all there is yet.
    gated.pipeline.submit([gated.group(None, chart("c", "i1"))])
    until_scored(gated, -1)
    if by == "another worker":
        other.work(other.group(later))
    gated.scorer.gate.set()  # type: ignore[attr-defined]
    gated.pipeline.finish([], wait=True)
    other.pipeline.close()
    (row,) = stored(gated.store).values()
    assert (row.title, list(row.tickers), row.modality) == (later.title, ["MSFT"], "both")
    assert {key for key, _ in stored_keys(gated.store) if key.startswith("ticker:")} == {"ticker:MSFT"}
    assert gated.progress.pending == 0


def test_however_often_its_item_comes_anew_a_late_chart_goes_with_the_last_version(bench: Bench) -> None:
    other, versions = Bench(bench.store), 2 * MAX_JOINS
    other.work(other.group(news(1, title="Version 0")))
    score, stored_so_far = bench.scorer.score, 0

    def meanwhile(requests: Sequence[ScoringRequest]) -> list[ScoredItem | Rejected]:
        nonlocal stored_so_far
        if stored_so_far < versions:
            stored_so_far += 1
            other.work(other.group(news(1, title=f"Version {stored_so_far}")))
        return score(requests)

    bench.scorer.score = meanwhile  # type: ignore[method-assign]
    bench.work(bench.group(None, chart("c", "i1")))
    other.pipeline.close()
    (row,) = stored(bench.store).values()
    assert (row.title, row.modality) == (f"Version {versions}", "both")


@pytest.mark.parametrize("place", range(3))
def test_of_two_versions_in_one_batch_the_later_one_counts_wherever_the_chart_stands(bench: Bench, place: int) -> None:
    bench.work(bench.group(news(1, title="Stored before")))
    groups = [bench.group(news(1, title="The first version")), bench.group(news(1, title="The second version"))]
    groups.insert(place, bench.group(None, chart("c", "i1")))
    bench.work(*groups, bench.group(news(2)))
    rows = stored(bench.store)
    assert {key: (row.title, row.modality) for key, row in rows.items()} == {
        "i1": ("The second version", "both"),
        "i2": (news(2).title, "text"),
    }
    assert bench.progress.pending == 0


def test_all_that_was_sent_since_the_last_look_is_compared_with_the_store(store: Engine) -> None:
    slow, fast = Bench(store, Turning()), Bench(store, Turning())
    sent = slow.sent = fast.sent

    def overtaken(records: list[Outgoing], contributions: list[Contribution]) -> None:
        slow.pipeline._send = slow._send
        fast.work(fast.group(None, chart("c", "i1")))
        slow._send(records, contributions)

    slow.pipeline._send = overtaken
    for number in (1, 2):
        slow.pipeline.submit([slow.group(news(number))])
        slow.pipeline.finish([], wait=True)
    assert counted(sent) != stored_keys(store)
    # What could not be told is told the next time.
    slow.away, slow.pipeline._send = True, slow._send
    with pytest.raises(BrokerError):
        slow.pipeline.correct()
    slow.away = False
    slow.pipeline.correct()
    assert counted(sent) == stored_keys(store)
    for bench in (slow, fast):
        bench.pipeline.close()
