"""What waits of several calls is computed together, and nobody suffers for another one's rows."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from models.answers import LoadedModel, Predictions
from models.bundle import load_model
from models.engine.forward import Forward, RowFailure
from models.engine.lanes import KEPT_UP_TOKENS, PART_TOKENS, lanes, part_tokens, passes
from models.engine.precision import use
from models.engine.waiting import Part, PartQueue
from models.tokens import TokenizedRow
from tests.models.engine.rows import rows_of


def part(*lengths: int, alone: bool = False) -> Part:
    return Part([TokenizedRow([1] * length) for length in lengths], alone=alone)


def lengths_of(parts: Sequence[Part]) -> list[list[int]]:
    return [[len(row) for row in one.rows] for one in parts]


def test_a_pass_is_made_up_of_what_waits_by_turn() -> None:
    queue = PartQueue()
    for at, one in ((3.0, part(40)), (1.0, part(30, 20)), (2.0, part(10)), (4.0, part(1))):
        queue.put(one, at)
    seen: list[int] = []

    def most(waiting: int) -> int:
        seen.append(waiting)
        return 64

    # The last would fit, but the one before it has an earlier turn.
    assert lengths_of(queue.take(most)) == [[30, 20], [10]]
    assert lengths_of(queue.take(most)) == [[40], [1]]
    assert queue.take(most) == []
    assert seen == [101, 41, 0]


def test_what_is_to_be_alone_is_alone_and_a_large_part_is_taken_all_the_same() -> None:
    queue = PartQueue()
    for at, one in enumerate((part(5), part(6, alone=True), part(7), part(500))):
        queue.put(one, float(at))
    assert [lengths_of(queue.take(lambda _: 64)) for _ in range(4)] == [[[5]], [[6]], [[7]], [[500]]]


def test_a_part_whose_call_has_ended_is_left_out() -> None:
    queue = PartQueue()
    gone, there = part(5), part(6)
    queue.put(gone, 0.0)
    queue.put(there, 1.0)
    assert gone.future.cancel()
    assert queue.take(lambda _: 64) == [there]
    assert queue.take(lambda waiting: waiting) == []


@given(
    st.lists(
        st.tuples(st.floats(0, 10), st.lists(st.integers(1, 300), min_size=1, max_size=4), st.booleans()), max_size=30
    ),
    st.integers(1, 600),
)
def test_every_part_is_taken_once_in_its_turn_and_within_the_bound(
    given_parts: list[tuple[float, list[int], bool]], most: int
) -> None:
    queue = PartQueue()
    put = [(at, part(*lengths, alone=alone)) for at, lengths, alone in given_parts]
    for at, one in put:
        queue.put(one, at)
    taken: list[Part] = []
    # A lane comes for every part: none is left behind.
    for _ in put:
        found = queue.take(lambda _: most)
        assert len(found) < 2 or (sum(one.tokens for one in found) <= most and not any(one.alone for one in found))
        taken += found
    assert taken == [one for _, one in sorted(put, key=lambda pair: pair[0])]
    assert queue.take(lambda waiting: waiting) == []


@given(st.integers(0, 50_000), st.integers(1, 16), st.integers(1, 10_000))
def test_a_small_call_comes_in_small_parts_and_a_large_one_in_passes(tokens: int, count: int, most: int) -> None:
    found = part_tokens(tokens, count, most)
    assert found == (min(most, PART_TOKENS) if tokens <= KEPT_UP_TOKENS else passes(tokens, count, most))


class Held:
    """A model whose first pass waits until it is let go; notes the rows of each pass."""

    def __init__(self, model: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
        self.passes: list[int] = []
        self.begun, self.go = threading.Event(), threading.Event()
        self._forward = model.forward
        monkeypatch.setattr(model, "forward", self)

    def __call__(self, rows: Sequence[TokenizedRow]) -> Predictions:
        first = not self.passes
        self.passes.append(len(rows))
        if first:
            self.begun.set()
            assert self.go.wait(20)
        if any(row.ids == [-1] for row in rows):
            raise IndexError("no such token")
        return self._forward(rows)


@pytest.fixture
def model(model_dir: Path) -> LoadedModel:
    found = load_model(model_dir, device="cpu")
    use(found, "fp32")
    return found


def calls(
    model: LoadedModel, held: Held, rows: Sequence[list[TokenizedRow]], monkeypatch: pytest.MonkeyPatch
) -> list[Future[list[object]]]:
    """Calls of one lane, of which all but the first come while that one is computed."""
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    forward = Forward(model, token_budget=10_000, image_budget=1)
    with ThreadPoolExecutor(len(rows)) as pool:
        found: list[Future[list[object]]] = [pool.submit(forward.run, rows[0])]  # type: ignore[list-item]
        assert held.begun.wait(20)
        found += [pool.submit(forward.run, one) for one in rows[1:]]  # type: ignore[misc]
        while len(forward._waiting._heap) < len(rows) - 1:
            time.sleep(0.001)
        held.go.set()
    return found


def test_calls_that_come_meanwhile_share_a_pass_and_have_the_answers_of_their_own(
    model: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = rows_of(model, 6)
    wanted = [model.forward([row]).sentiment[0] for row in rows]
    held = Held(model, monkeypatch)
    found = calls(model, held, [rows[:1], rows[1:3], rows[3:4], rows[4:]], monkeypatch)
    assert held.passes == [1, 5]
    scores = [score for one in found for score in one.result()]
    for score, exact in zip(scores, wanted, strict=True):
        assert np.allclose(score.sentiment, exact, atol=1e-5)  # type: ignore[attr-defined]


def test_a_row_that_fails_is_its_own_calls_alone(model: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = rows_of(model, 3)
    held = Held(model, monkeypatch)
    bad = TokenizedRow([-1])
    first, second, third = calls(model, held, [rows[:1], [rows[1], bad], rows[2:]], monkeypatch)
    assert [isinstance(one, RowFailure) for one in second.result()] == [False, True]
    assert not any(isinstance(one, RowFailure) for one in [*first.result(), *third.result()])
    assert held.passes[:2] == [1, 3]


def test_with_padding_calls_are_kept_apart(model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = load_model(model_dir, device="cpu")
    assert model.encoder is None
    rows = rows_of(model, 3)
    held = Held(model, monkeypatch)
    calls(model, held, [rows[:1], rows[1:2], rows[2:]], monkeypatch)
    assert held.passes == [1, 1, 1]


def test_an_interrupt_in_a_lane_reaches_every_caller(model: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = rows_of(model, 2)

    def interrupted(_rows: Sequence[TokenizedRow]) -> Predictions:
        raise SystemExit(3)

    monkeypatch.setattr(model, "forward", interrupted)
    forward = Forward(model, token_budget=10_000, image_budget=1)
    with pytest.raises(SystemExit):
        forward.run(rows)
    # The lane itself goes on.
    assert lanes(torch.get_num_threads()).submit_at(0.0, lambda: 1).result(timeout=20) == 1
