"""What waits of several calls is computed together, and nobody suffers for another one's rows."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from models.answers import LoadedModel, Predictions
from models.bundle import load_model
from models.classifier import Classifier, TextReader
from models.engine.cache import RowScore
from models.engine.forward import Forward, RowFailure
from models.engine.lanes import KEPT_UP_TOKENS, PART_TOKENS, lanes, part_tokens, passes
from models.engine.packed import scripted
from models.engine.precision import Precision, use
from models.engine.waiting import Part, PartQueue
from models.fusion import FusionKind, TextFeatures
from models.tokens import TokenizedRow
from monitor.errors import ModelError
from tests.models.engine.rows import rows_of

Scores = list[RowScore | RowFailure]


def part(*lengths: int, apart: bool = False) -> Part:
    return Part([TokenizedRow([1] * length) for length in lengths], apart=apart)


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


def test_what_is_to_be_apart_is_apart_and_a_large_part_is_taken_all_the_same() -> None:
    queue = PartQueue()
    for at, one in enumerate((part(5), part(6, apart=True), part(7), part(500))):
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


def test_one_can_wait_while_something_waits_whose_turn_has_come() -> None:
    queue = PartQueue()
    queue.wait_while_due(20)
    now = time.monotonic()
    for at, one in ((now - 2, part(5)), (now - 1, part(6, apart=True)), (now + 1000, part(7))):
        queue.put(one, at)
    with ThreadPoolExecutor(1) as pool:
        waited = pool.submit(queue.wait_while_due, 20)
        assert queue.take(lambda _: 5)
        queue.wait_while_due(0.01)
        assert not waited.done()
        assert queue.take(lambda _: 5)
        # A long call whose turn is to come lets pass what comes now: nobody waits for it.
        waited.result(timeout=10)
    assert lengths_of(queue.take(lambda _: 64)) == [[7]]


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
    put = [(at, part(*lengths, apart=apart)) for at, lengths, apart in given_parts]
    for at, one in put:
        queue.put(one, at)
    taken: list[Part] = []
    # A lane comes for every part: none is left behind.
    for _ in put:
        found = queue.take(lambda _: most)
        assert len(found) < 2 or (sum(one.tokens for one in found) <= most and not any(one.apart for one in found))
        taken += found
    assert taken == [one for _, one in sorted(put, key=lambda pair: pair[0])]
    assert queue.take(lambda waiting: waiting) == []


@given(st.integers(1, 50_000), st.integers(1, 16), st.integers(1, 10_000))
def test_a_small_call_comes_in_small_parts_and_a_large_one_in_passes(tokens: int, count: int, most: int) -> None:
    found = part_tokens(tokens, count, most)
    assert 1 <= found <= most
    if tokens <= KEPT_UP_TOKENS:
        assert found <= PART_TOKENS
    else:
        assert found == passes(tokens, count, most)


class Held:
    """A model whose first pass waits until it is let go; notes the rows of each pass."""

    def __init__(self, model: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
        self.passes: list[int] = []
        # Rows of a pass for which there is no memory, and whether all but the first pass are interrupted.
        self.short = 0
        self.interrupted = False
        self.forward: Forward
        self.begun, self.go = threading.Event(), threading.Event()
        self._forward = model.forward
        monkeypatch.setattr(model, "forward", self)

    def __call__(self, rows: Sequence[TokenizedRow]) -> Predictions:
        first = not self.passes
        self.passes.append(len(rows))
        if first:
            self.begun.set()
            assert self.go.wait(20)
        elif self.interrupted:
            raise SystemExit(3)
        if len(rows) == self.short:
            raise MemoryError
        if any(row.ids == [-1] for row in rows):
            raise IndexError("no such token")
        return self._forward(rows)


@pytest.fixture
def model(model_dir: Path) -> LoadedModel:
    found = load_model(model_dir, device="cpu")
    use(found, "fp32")
    return found


@pytest.fixture
def one_lane() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    lanes(1)
    yield
    torch.set_num_threads(before)


def until_waiting(forward: Forward, count: int) -> None:
    """Until so many parts wait for a lane."""
    deadline = time.monotonic() + 20
    while len(forward._waiting._heap) < count:
        assert time.monotonic() < deadline
        time.sleep(0.001)


def calls(model: LoadedModel, held: Held, rows: Sequence[list[TokenizedRow]]) -> list[Future[Scores]]:
    """Calls of one lane, of which all but the first come while that one is computed."""
    forward = Forward(model, token_budget=10_000, image_budget=1)
    with ThreadPoolExecutor(len(rows)) as pool:
        found = [pool.submit(forward.run, rows[0])]
        assert held.begun.wait(20)
        found += [pool.submit(forward.run, one) for one in rows[1:]]
        until_waiting(forward, len(rows) - 1)
        held.go.set()
    held.forward = forward
    return found


def scored(found: Future[Scores]) -> list[bool]:
    return [isinstance(one, RowScore) for one in found.result()]


@pytest.mark.usefixtures("one_lane")
@pytest.mark.parametrize("kind", ["fp32", "int8"])
def test_calls_that_come_meanwhile_share_a_pass_and_have_the_answers_of_their_own(
    kind: Precision, model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load_model(model_dir, device="cpu")
    use(model, kind)
    rows = rows_of(model, 6)
    wanted = [model.forward([row]).sentiment[0] for row in rows]
    held = Held(model, monkeypatch)
    found = calls(model, held, [rows[:1], rows[1:3], rows[3:4], rows[4:]])
    assert held.passes == [1, 5]
    scores = [score for one in found for score in one.result()]
    for score, exact in zip(scores, wanted, strict=True):
        assert isinstance(score, RowScore)
        assert np.array_equal(score.sentiment, exact)


@pytest.mark.usefixtures("one_lane")
def test_a_row_that_fails_is_its_own_calls_alone(model: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = rows_of(model, 3)
    held = Held(model, monkeypatch)
    bad = TokenizedRow([-1])
    first, second, third = calls(model, held, [rows[:1], [rows[1], bad], rows[2:]])
    assert (scored(first), scored(second), scored(third)) == ([True], [True, False], [True])
    assert held.passes[:2] == [1, 3]


@pytest.mark.usefixtures("one_lane")
def test_want_of_memory_in_a_shared_pass_halves_the_budget_and_costs_no_row(
    model: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = rows_of(model, 3)
    held = Held(model, monkeypatch)
    held.short = 2
    found = calls(model, held, [rows[:1], rows[1:2], rows[2:]])
    assert [scored(one) for one in found] == [[True]] * 3
    assert held.passes == [1, 2, 1, 1]
    assert held.forward.shrink == 2


@pytest.mark.usefixtures("one_lane")
def test_whatever_goes_wrong_on_a_lane_nobody_waits_for_ever(
    model: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("the card is gone")

    rows = rows_of(model, 3)
    held = Held(model, monkeypatch)
    held.short = 2
    monkeypatch.setattr(Forward, "halve", broken)
    first, second, third = calls(model, held, [rows[:1], rows[1:2], rows[2:]])
    assert scored(first) == [True]
    assert [scored(one) for one in (second, third)] == [[False]] * 2


@pytest.mark.usefixtures("one_lane")
def test_what_waits_of_a_call_that_has_ended_is_not_computed(
    model: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, passes_seen = rows_of(model, 5), list[int]()
    first, second, ended = threading.Event(), threading.Event(), threading.Event()
    compute = model.forward

    def forward(some: Sequence[TokenizedRow]) -> Predictions:
        passes_seen.append(len(some))
        if len(passes_seen) == 1:
            assert first.wait(20)
            raise IndexError("no such token")
        if len(passes_seen) == 2:
            # The call's second row is being computed when the first one ends it; the third one still waits.
            second.set()
            assert ended.wait(20)
        return compute(some)

    def gone(*_: object) -> None:
        raise ModelError("The device failed.")

    monkeypatch.setattr(model, "forward", forward)
    monkeypatch.setattr("models.engine.forward.part_tokens", lambda *_: 1)
    asked = Forward(model, token_budget=10_000, image_budget=1)
    monkeypatch.setattr(asked, "_most", lambda _: 1)
    monkeypatch.setattr(asked, "_after", gone)
    with ThreadPoolExecutor(2) as pool:
        failing = pool.submit(asked.run, rows[:3])
        until_waiting(asked, 2)
        others = pool.submit(asked.run, rows[3:])
        until_waiting(asked, 4)
        first.set()
        with pytest.raises(ModelError, match="The device failed"):
            failing.result(timeout=20)
        assert second.wait(20)
        ended.set()
        assert scored(others) == [True, True]
    assert passes_seen == [1, 1, 1, 1]


@pytest.mark.usefixtures("one_lane")
def test_one_can_wait_for_room_beside_what_is_computed(model: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = rows_of(model, 2)
    held = Held(model, monkeypatch)
    forward = Forward(model, token_budget=10_000, image_budget=1)
    with ThreadPoolExecutor(3) as pool:
        found = [pool.submit(forward.run, rows[:1])]
        assert held.begun.wait(20)
        forward.wait_for_room(20)
        found.append(pool.submit(forward.run, rows[1:]))
        until_waiting(forward, 1)
        # Its turn comes.
        time.sleep(max(0.0, forward._waiting._heap[0][0] - time.monotonic()))
        waiting = pool.submit(forward.wait_for_room, 20)
        forward.wait_for_room(0.01)
        assert not waiting.done()
        held.go.set()
        waiting.result(timeout=10)
        assert [scored(one) for one in found] == [[True], [True]]


@pytest.mark.usefixtures("one_lane")
def test_with_padding_calls_are_kept_apart(model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = load_model(model_dir, device="cpu")
    assert model.encoder is None
    rows = rows_of(model, 3)
    held = Held(model, monkeypatch)
    calls(model, held, [rows[:1], rows[1:2], rows[2:]])
    assert held.passes == [1, 1, 1]


@pytest.mark.usefixtures("one_lane")
def test_an_interrupt_in_a_lane_reaches_every_caller(model: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = rows_of(model, 3)
    held = Held(model, monkeypatch)
    held.interrupted = True
    _, *others = calls(model, held, [rows[:1], rows[1:2], rows[2:]])
    for one in others:
        with pytest.raises(SystemExit):
            one.result()
    # The lane itself goes on.
    assert lanes(1).submit_at(0.0, lambda: 1).result(timeout=20) == 1


def test_pictures_come_in_whole_passes(model: LoadedModel) -> None:
    forward = Forward(model, token_budget=1024, image_budget=64)
    forward._cores = 2
    shown = [TokenizedRow([1] * 30, pixels=torch.zeros(3, 8, 8)) for _ in range(16)]
    assert [len(one.batch) for one in forward._plan(shown)] == [8, 8]
    assert [len(one.batch) for one in forward._plan([TokenizedRow([1] * 30) for _ in range(16)])] == [2] * 8


@pytest.mark.parametrize("fusion", ["cross", "concat", "pool"])
def test_what_serves_reads_texts_as_what_was_trained(fusion: FusionKind, model: LoadedModel) -> None:
    network = Classifier(model.network.text, 16, 5, None, fusion=fusion).eval()
    torch.nn.init.normal_(network.fusion.absent_image)
    means = torch.randn(11, 32)
    none = torch.zeros(11, 0, dtype=torch.bool)
    text = TextFeatures(torch.zeros(11, 0, 16), none, none, means)
    with torch.inference_mode():
        temperatures = torch.full((11, 1), 2.0)
        reader = scripted(TextReader(network))
        wanted = torch.cat(
            [
                torch.softmax(network.topic_logits(text) / 3.0, 1),
                torch.softmax(network.sentiment_of_text(text) / 2.0, 1),
            ],
            dim=1,
        )
        # The third call is of what TorchScript has made of the first two.
        for _ in range(3):
            assert torch.allclose(reader(means, temperatures, 3.0), wanted, atol=1e-6)
