"""Open stories: found as by looking at every one, however many come at once; what expires leaves nothing behind."""

from __future__ import annotations

import random
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from monitor import open_stories
from monitor.open_stories import OpenRows, OpenStories
from monitor.records import Contribution
from monitor.stories import signature, similarity, story_id

HEADLINE = "Apple shares fall 5% after weak iPhone sales in China"
BAND = 6
MINUTE = 60_000


def item(number: int | str, sketch: bytes, at: int = 0, key: str = "k") -> Contribution:
    return Contribution(
        key=key, item_id=str(number), at=at, p_negative=0.5, score=0.0, negative=False, signature=sketch
    )


class Naive(NamedTuple):
    """A story and what is held of it."""

    id: str
    key: str
    first_at: int
    last_at: int
    sketch: bytes


class LooksAtAll:
    """The same, found by looking at every story."""

    def __init__(self, window: int, threshold: float) -> None:
        self.window, self.threshold = window, threshold
        self.stories: list[Naive] = []

    def join(self, c: Contribution, minute: int) -> tuple[str, bool]:
        sketch, found = c.signature, []
        for one in self.stories:
            shared = any(sketch[at : at + BAND] == one.sketch[at : at + BAND] for at in range(0, len(sketch), BAND))
            alike = similarity(sketch, one.sketch)
            if one.last_at < minute * MINUTE - self.window or one.key != c.key or not shared:
                continue
            if one.first_at - self.window <= c.at <= one.last_at + self.window and alike >= self.threshold:
                found.append((-alike, one.first_at, one.id))
        if not found:
            id_ = story_id(c.key, c.item_id, minute)
            if sketch:
                self.stories.append(Naive(id_, c.key, c.at, c.at, sketch))
            return id_, True
        best = min(found)[2]
        self.stories = [one._replace(last_at=max(one.last_at, c.at)) if one.id == best else one for one in self.stories]
        return best, False


def _few_hashes(values: Any, numbers: Any) -> Any:
    return HASHES(values, numbers) & np.uint64(3 << 40)


HASHES = open_stories._hashes


@settings(max_examples=80, deadline=None)
@given(st.integers(0, 60), st.integers(1, 30), st.booleans(), st.integers(0, 2**32))
def test_an_item_finds_the_story_that_looking_at_all_finds(count: int, together: int, few: bool, seed: int) -> None:
    # Also where all the hashes are the same by chance: they only say where to look.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(open_stories, "_hashes", _few_hashes if few else HASHES)
        finds_as_by_looking_at_all(count, together, random.Random(seed))


def finds_as_by_looking_at_all(count: int, together: int, r: random.Random) -> None:
    # Sketches of few values at each place, so that many share some: any step between nothing and all in common.
    def sketch() -> bytes:
        return bytes(byte for place in range(24) for byte in (place, r.choice((0x00, 0x7F, 0x80, 0xFF))))

    some = [sketch() for _ in range(3)]

    def near() -> bytes:
        known = bytearray(r.choice(some))
        for _ in range(r.choice((0, 0, 2, 6))):
            known[2 * r.randrange(24) + 1] ^= r.choice((1, 128, 255))
        return bytes(known) if r.random() < 0.95 else b""

    window, threshold = r.choice((3, 10, 60, 1000)) * MINUTE // 2, r.choice((0.1, 0.6, 0.9))
    items = [
        item(number, near(), 1000 * MINUTE + number * MINUTE // r.choice((1, 4)), r.choice(("a", "b")))
        for number in range(count)
    ]
    held, naive = OpenStories(window, threshold), LooksAtAll(window, threshold)
    stored: list[OpenRows] = []
    for start in range(0, count, together):
        part = items[start : start + together]
        # They are counted in their own minute or, being late, in a later one.
        minutes = [max(c.at for c in items[: start + n + 1]) // MINUTE for n in range(len(part))]
        joined = held.join(part, minutes)
        stored.append(joined.opened)
        expected = [naive.join(c, minute) for c, minute in zip(part, minutes, strict=True)]
        assert list(zip(joined.ids, joined.begins, strict=True)) == expected
        restarted = r.random() < 0.3
        if restarted:
            held = OpenStories(window, threshold, stored)
        if restarted or r.random() < 0.3:
            open_from = minutes[-1] * MINUTE - window
            held.expire(open_from)
            naive.stories = [one for one in naive.stories if one.last_at >= open_from]
            assert len(held) == len(naive.stories)


def test_finding_is_exact_among_thousands_of_open_stories(monkeypatch: Any) -> None:
    # As if very many shared a band: they are compared a few at a time.
    monkeypatch.setattr(open_stories, "COMPARED", 20)
    texts = [" ".join(f"w{(i * 7919 + j * 104729) % 6007}" for j in range(9)) for i in range(3000)]
    held = OpenStories(1, 0.6)
    begun: list[str] = []
    for start in range(0, len(texts), 250):
        part = [item(i, signature(texts[i])) for i in range(start, start + 250)]
        begun += held.join(part, [0] * len(part)).ids
    asked = range(0, 3000, 97)
    found = held.join([item(f"copy {i}", signature("UPDATE 3-" + texts[i])) for i in asked], [0] * len(asked))
    assert found.ids == [begun[i] for i in asked]
    assert found.begins == [False] * len(asked)
    assert held.join([item("new", signature("nothing like any of these at all"))], [0]).begins == [True]


def test_of_stories_that_are_as_like_the_earliest_is_joined() -> None:
    sketch = signature(HEADLINE)
    for number in range(8):
        held = OpenStories(10, 0.6)
        earliest, _ = held.join([item(f"a{number}", sketch, at=100), item("b", sketch, at=115)], [0, 0]).ids
        assert held.join([item("c", sketch, at=108)], [0]).ids == [earliest]


def test_a_story_is_open_for_its_window_only() -> None:
    sketch = signature(HEADLINE)

    def joins(at: int, minute: int = 0) -> bool:
        held = OpenStories(100, 0.6)
        held.join([item(1, sketch, at=1000)], [0])
        return not held.join([item(2, sketch, at=at)], [minute]).begins[0]

    assert (joins(1100), joins(1101)) == (True, False)
    assert (joins(900), joins(899)) == (True, False)
    assert (joins(1000), joins(1000, minute=1)) == (True, False)


def test_expired_stories_leave_nothing_behind() -> None:
    held, sketch = OpenStories(10, 0.6), signature(HEADLINE)
    others = [
        item(10 + n, signature(f"filler {n} of many {n * n} others {n + 1}"), at=1, key=f"{n}") for n in range(90)
    ]
    held.join([*others, item(1, sketch, at=10), item(2, sketch, at=21), item(3, sketch[::-1], at=5)], [0] * 93)
    held.expire(15)
    assert len(held) == 1
    found = held.join([item(4, sketch, at=21)], [0])
    assert (found.ids, found.begins) == ([story_id("k", "2", 0)], [False])
    held.expire(22)
    assert len(held) == 0
    assert held.join([item(5, sketch, at=21)], [0]).begins == [True]
    held.expire(22)
    assert (held._numbers, held._levels, len(held._ids)) == ({}, [], 0)
