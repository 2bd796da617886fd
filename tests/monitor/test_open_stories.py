"""Open stories: found as by looking at every one, whether a key has few or many; what expires leaves nothing behind."""

from __future__ import annotations

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from monitor.open_stories import SCANNED, OpenStories, OpenStory
from monitor.stories import signature, similarity, story_id

HEADLINE = "Apple shares fall 5% after weak iPhone sales in China"
BAND = 6


def story(number: int, text: str, at: int = 0) -> OpenStory:
    return OpenStory("k", story_id("k", str(number), 0), at, at, signature(text))


def opened(*stories: OpenStory) -> OpenStories:
    held = OpenStories()
    for one in stories:
        held.add(*one[1:])
    return held


def by_looking_at_all(
    stories: list[OpenStory], sketch: bytes, at: int, window: int, threshold: float, open_from: int
) -> str | None:
    found = []
    for one in stories:
        bands = range(0, len(sketch), BAND)
        shared = any(sketch[band : band + BAND] == one.signature[band : band + BAND] for band in bands)
        alike = similarity(sketch, one.signature)
        within = one.last_at >= open_from and one.first_at - window <= at <= one.last_at + window
        if shared and within and alike >= threshold:
            found.append((-alike, one.first_at, one.id))
    return min(found)[2] if found else None


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2 * SCANNED), st.integers(0, 2**32))
def test_a_copy_finds_the_story_that_looking_at_all_finds(count: int, seed: int) -> None:
    r = random.Random(seed)

    # Sketches of few values at each place, so that many share some: any step between nothing and all in common.
    def sketch() -> bytes:
        return bytes(byte for place in range(24) for byte in (place, r.choice((0x00, 0x7F, 0x80, 0xFF))))

    some = [sketch() for _ in range(3)]

    def near() -> bytes:
        known = bytearray(r.choice(some))
        for _ in range(r.randint(0, 6)):
            known[2 * r.randrange(24) + 1] ^= r.choice((1, 128, 255))
        return bytes(known)

    stories = [
        OpenStory("k", story_id("k", str(n), 0), at, at + r.randint(0, 5), near())
        for n, at in enumerate(r.choices(range(20), k=count))
    ]
    held = opened(*stories)
    for _ in range(12):
        if stories and r.random() < 0.2:
            open_from = r.randint(0, 8)
            held.expire(open_from)
            stories = [one for one in stories if one.last_at >= open_from]
            assert len(held) == len(stories)
        if r.random() < 0.3:
            stories.append(OpenStory("k", story_id("k", f"more {r.random()}", 0), 9, 9, near()))
            held.add(*stories[-1][1:])
        asked = (near(), r.randint(0, 25), r.randint(0, 10), r.choice((0.1, 0.6, 0.9)), r.randint(0, 10))
        found = held.find(*asked)
        assert (None if found is None else held.id(found)) == by_looking_at_all(stories, *asked)
        if found is not None and r.random() < 0.5:
            position = next(i for i, one in enumerate(stories) if one.id == held.id(found))
            held.see(found, asked[1])
            stories[position] = stories[position]._replace(last_at=max(stories[position].last_at, asked[1]))


def test_finding_is_exact_among_thousands_of_open_stories() -> None:
    texts = [" ".join(f"w{(i * 7919 + j * 104729) % 6007}" for j in range(9)) for i in range(3000)]
    held = opened(*(story(i, text) for i, text in enumerate(texts)))
    for i in range(0, 3000, 97):
        found = held.find(signature("UPDATE 3-" + texts[i]), 0, 1, 0.6, 0)
        assert found is not None
        assert held.id(found) == story(i, texts[i]).id
    assert held.find(signature("nothing like any of these at all"), 0, 1, 0.6, 0) is None


def test_a_story_is_open_for_its_window_only() -> None:
    held, sketch = opened(story(1, HEADLINE, at=1000)), signature(HEADLINE)
    assert held.find(sketch, 1100, 100, 0.6, 0) is not None
    assert held.find(sketch, 1101, 100, 0.6, 0) is None
    assert held.find(sketch, 899, 100, 0.6, 0) is None
    assert held.find(sketch, 1000, 100, 0.6, open_from=1001) is None


def test_expired_stories_leave_nothing_behind() -> None:
    for filler in (0, 2 * SCANNED):
        others = [story(10 + n, f"filler {n} of many {n * n} others {n + 1}", at=1) for n in range(filler)]
        held = opened(
            story(1, HEADLINE, at=10), story(2, HEADLINE, at=20), story(3, "something else entirely", at=5), *others
        )
        held.expire(15)
        assert len(held) == 1
        found = held.find(signature(HEADLINE), 20, 100, 0.6, 0)
        assert found is not None
        assert held.id(found) == story(2, HEADLINE).id
        held.expire(21)
        assert len(held) == 0
        assert held.find(signature(HEADLINE), 20, 100, 0.6, 0) is None
        assert (held._bands, held._places) == ({}, bytearray())
