"""How what waits is cut into batches: by items, tokens and images, long texts apart from short ones."""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Callable

from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import Engine

from consumers.backlog import LONG_TOKENS, Backlog, tokens_of
from consumers.intake import Origin, weight
from consumers.progress import PartitionProgress
from consumers.worker import Worker
from monitor.pairing import Group
from monitor.records import Chart
from monitor.settings import Settings
from tests.consumers.running import T0, news
from tests.consumers.word_scorer import WordScorer

Record = namedtuple("Record", "value")
PROGRESS = PartitionProgress()


def group(number: int, words: int, charts: int = 0) -> Group[Origin]:
    item = news(number, title="some words", body="word " * words)
    shown = {f"{number}-{n}": Chart(chart_id=f"{number}-{n}", image=b"i" * 100, published_at=T0) for n in range(charts)}
    return Group(item, shown, [Origin(Record(b"v" * 10), PROGRESS)])


def backlog(token_budget: int = 500) -> Backlog:
    return Backlog(Settings(worker_batch_items=8, worker_image_budget=2), token_budget)


def test_a_headline_does_not_share_a_batch_with_an_article() -> None:
    waiting = backlog()
    for number, words in enumerate((5, 400, 8, 300)):
        waiting.add(group(number, words))
    assert [g.key for g in waiting.take(long=False)] == ["i0", "i2"]
    assert [waiting.waits(long=False), waiting.waits(long=True)] == [False, True]
    # Two articles exceed what a batch may hold.
    assert [g.key for g in waiting.take(long=True)] == ["i1"]
    assert [g.key for g in waiting.take(long=True)] == ["i3"]
    assert (len(waiting), waiting.bytes) == (0, 0)


def test_a_later_version_waits_behind_an_earlier_one_of_another_length() -> None:
    waiting = backlog()
    for number, words in ((1, 400), (2, 5), (1, 5), (2, 400), (3, 5)):
        waiting.add(group(number, words))
    assert [g.key for g in waiting.take(long=False)] == ["i2", "i2", "i3"]
    assert [g.key for g in waiting.take(long=True)] == ["i1", "i1"]
    # And once nothing of it waits, its own length decides.
    waiting.add(group(1, 5))
    assert [g.key for g in waiting.take(long=False)] == ["i1"]
    assert (len(waiting), waiting.bytes, waiting._places) == (0, 0, {})


def test_a_device_that_takes_more_tokens_gets_larger_batches() -> None:
    sizes = []
    for budget in (500, 5000):
        waiting = backlog(budget)
        for number in range(8):
            waiting.add(group(number, 400))
        sizes.append(len(waiting.take(long=True)))
    assert sizes == [1, 8]


def test_the_scorer_says_how_many_tokens_its_device_takes(
    make_settings: Callable[..., Settings], store: Engine
) -> None:
    scorer = WordScorer()
    scorer.token_budget = 100
    waiting = Worker(make_settings(), scorer, store, lambda: False)._ready
    for number in range(20):
        assert waiting.full(long=False) == (sum(tokens_of(group(n, 3)) for n in range(number)) >= 200)
        waiting.add(group(number, 3))


def test_a_batch_is_cut_by_images_too() -> None:
    waiting = backlog()
    for number in range(3):
        waiting.add(group(number, 3, charts=2))
    assert [len(waiting.take(long=True)) for _ in range(2)] == [2, 1]


@given(st.lists(st.tuples(st.integers(0, 500), st.integers(0, 8)), max_size=40))
def test_every_group_comes_out_once_in_the_order_of_its_kind_and_within_bounds(given: list[tuple[int, int]]) -> None:
    waiting = backlog()
    groups = [group(number, words, charts) for number, (words, charts) in enumerate(given)]
    for one in groups:
        waiting.add(one)
    assert waiting.bytes == sum(map(weight, groups))
    for long in (False, True):
        batches = []
        while waiting.waits(long=long):
            batches.append(waiting.take(long=long))
            tokens, images = sum(map(tokens_of, batches[-1])), sum(len(g.charts) for g in batches[-1])
            assert len(batches[-1]) <= 8
            assert len(batches[-1]) == 1 or (tokens <= 1000 and images <= 4)
        assert [g for batch in batches for g in batch] == [g for g in groups if (tokens_of(g) > LONG_TOKENS) == long]
    assert (len(waiting), waiting.bytes) == (0, 0)


def test_what_was_forgotten_does_not_count() -> None:
    waiting = backlog()
    for number in range(9):
        waiting.add(group(number, 3))
    assert waiting.full(long=False)
    waiting.clear()
    assert (len(waiting), waiting.bytes, waiting.full(long=False)) == (0, 0, False)
