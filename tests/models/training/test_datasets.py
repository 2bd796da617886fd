from __future__ import annotations

import gzip
import json
import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.training.datasets import (
    BUNDLED,
    LabelledText,
    assign_parts,
    bundled_path,
    examples_of,
    find_entity,
    frozen_test,
    read_labelled,
    select,
)
from models.training.duplicates import DuplicateIndex, near_duplicate_groups
from models.training.prepare import mend_entities, prepare
from monitor.errors import InputError


def _write(path: Path, *lines: object) -> Path:
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines))
    return path


@pytest.mark.parametrize(
    "bad",
    [
        '{"text": "cut off',
        {"sentiment": "neutral"},
        {"text": "", "sentiment": "neutral"},
        {"text": "Good", "sentiment": "great"},
        {"text": "Good", "topic": "weather"},
        {"text": "Good"},
        {"text": 5, "sentiment": "neutral"},
        {"text": "Apple", "entities": {"Apple": "meh"}},
        {"text": "Apple", "entities": {" ": "neutral"}},
        {"text": "Apple falls", "entities": {"Apple": "negative", "Tesla": "neutral"}},
        {"text": "Apple", "score": 1.5},
        ["text"],
    ],
)
def test_a_bad_row_is_named_by_file_and_line(tmp_path: Path, bad: object) -> None:
    path = _write(tmp_path / "rows.jsonl", {"text": "Fine", "sentiment": "neutral"}, "", bad)
    with pytest.raises(InputError, match=r"rows\.jsonl, line 3"):
        read_labelled(path)


def test_unreadable_and_empty_files(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        read_labelled(tmp_path / "none.jsonl")
    with pytest.raises(InputError, match="no rows"):
        read_labelled(_write(tmp_path / "empty.jsonl", ""))
    (tmp_path / "torn.jsonl.gz").write_bytes(gzip.compress(b'{"text": "a", "sentiment": "neutral"}\n' * 99)[:-20])
    with pytest.raises(InputError, match="cannot be read"):
        read_labelled(tmp_path / "torn.jsonl.gz")


def test_other_fields_are_ignored(tmp_path: Path) -> None:
    told = ({"agreement": "All"}, {"agreement": 66}, {"aspects": ["a"], "origin": "b"})
    rows = read_labelled(
        _write(tmp_path / "a.jsonl", *({"text": "Fine", "sentiment": "neutral"} | more for more in told))
    )
    assert {(row.sentiment, row.origin) for row in rows} == {("neutral", "a")}
    assert [row.all_agree for row in rows] == [True, False, False]


def test_near_duplicates_share_a_group() -> None:
    texts = [
        "Nokia shares fall 3.5% after weak third-quarter results in Helsinki",
        "Nokia shares fall 12% after weak third-quarter results in Helsinki https://t.co/abc",
        "NOKIA SHARES FALL 3.5% AFTER WEAK THIRD-QUARTER RESULTS IN HELSINKI!",
        "Oil prices climb as producers agree to cut output further",
    ]
    groups = near_duplicate_groups(texts)
    assert len({groups[0], groups[1], groups[2]}) == 1
    assert groups[3] != groups[0]


def test_an_index_finds_what_a_text_nearly_repeats() -> None:
    texts = ["Nokia shares fall 3.5% after weak third-quarter results", "Oil prices climb as producers cut output"]
    index = DuplicateIndex(texts)
    assert index.find("NOKIA SHARES FALL 12% AFTER WEAK THIRD-QUARTER RESULTS!") == [0]
    assert index.find("Nokia shares fall 3.5% after very weak third-quarter results") == [0]
    assert index.find("Gold prices fall") == []
    assert index.add(texts[1]) == [1]


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000))
def test_parts_do_not_depend_on_the_order_and_keep_copies_together(seed: int) -> None:
    generator = random.Random(seed)
    words = "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda".split()  # noqa: SIM905
    texts = [" ".join(generator.choices(words, k=8)) for _ in range(30)]
    texts += [f"{text} {generator.randint(1, 99)}%" for text in texts[:5]] + texts[:5]
    parts = dict(zip(texts, assign_parts(texts), strict=True))
    shuffled = texts[:]
    generator.shuffle(shuffled)
    assert dict(zip(shuffled, assign_parts(shuffled), strict=True)) == parts


def test_bundled_parts_are_those_that_the_grouping_gives() -> None:
    rows = [row for name in BUNDLED for row in read_labelled(bundled_path(name))]
    assert {row.part for row in rows} == {"train", "validation", "test"}
    sample = random.Random(1).sample(range(len(rows)), 1500)
    groups: dict[int, set[str | None]] = {}
    for number, group in zip(sample, near_duplicate_groups([rows[i].text for i in sample]), strict=True):
        groups.setdefault(group, set()).add(rows[number].part)
    assert any(len(group) for group in groups.values())
    assert all(len(parts) == 1 for parts in groups.values())


def test_the_frozen_test_is_fixed_and_apart_from_training() -> None:
    frozen = frozen_test()
    assert frozen == frozen_test()
    assert {row.origin for row in frozen} == set(BUNDLED)
    trained = {row.text for name in BUNDLED for row in select(read_labelled(bundled_path(name)), "train")}
    assert len(frozen) > 2000
    assert not trained & {row.text for row in frozen}


@pytest.mark.parametrize(
    ("text", "name", "expected"),
    [
        ("Tesla and Tesla Motors", "Tesla", "Tesla"),
        ("Sunshine and SUN rose", "SUN", "SUN"),
        ("the sbi card", "SBI", "sbi"),
        ("L&T Finance (Holdings)", "Finance (Holdings)", "Finance (Holdings)"),
        ("L&T Finance Holdings rises", "L&T Finance neutralings", "L&T Finance Holdings"),
        ("阿里巴巴股价大跌", "阿里巴巴", "阿里巴巴"),
    ],
)
def test_an_entity_is_found_where_it_stands(text: str, name: str, expected: str) -> None:
    span = find_entity(text, name)
    assert span is not None
    assert text[slice(*span)] == expected


def test_an_absent_entity_is_not_found() -> None:
    assert find_entity("Apple falls", "Tesla") is None
    # A mended name counts only as a whole word.
    assert find_entity("Shareholders sell", "neutral") is None
    assert find_entity("Apple falls", " ") is None


def test_examples_ask_about_text_and_entities() -> None:
    mixed = LabelledText(text="Apple up, Tesla down", entities={"Apple": "positive", "Tesla": "negative"})
    agreed = LabelledText(
        text="Apple and Tesla up", entities={"Apple": "positive", "Tesla": "positive", "Ford": "positive"}
    )
    topic = LabelledText(text="Dividend of Apple", topic="dividend")
    found = examples_of([mixed, agreed, topic])
    assert [(example.entity, example.sentiment) for example in found] == [
        ((0, 5), 2),
        ((10, 15), 0),
        (None, 2),
        ((0, 5), 2),
        ((10, 15), 2),
        (None, -1),
    ]
    assert found[-1].topic >= 0


def test_spoilt_names_are_mended() -> None:
    row = LabelledText(
        text="IIFL Holdings surges, Frank Russell Company sold",
        entities={"IIFL neutralings": "positive", "Frank Rusnegative Company": "neutral", "Nobody": "negative"},
    )
    assert mend_entities(row).entities == {"IIFL Holdings": "positive", "Frank Russell Company": "neutral"}


def test_preparing_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    _write(source / "sentfin.jsonl", {"text": "Apple up", "entities": {"Apple": "positive"}})
    _write(source / "twitter_sentiment.jsonl", {"text": "Tesla down", "sentiment": "negative"})
    _write(source / "twitter_topic.jsonl", {"text": "Dividend raised", "topic": "dividend"})
    for out in ("one", "two"):
        assert prepare(source, tmp_path / out) == dict.fromkeys(BUNDLED, 1)
    for name in BUNDLED:
        one, two = (tmp_path / out / f"{name}.jsonl.gz" for out in ("one", "two"))
        assert one.read_bytes() == two.read_bytes()
        assert read_labelled(one)[0].part is not None


def test_a_score_is_a_question_about_its_target(tmp_path: Path) -> None:
    path = _write(
        tmp_path / "scored.jsonl",
        {"text": "Shell gains, BP slips", "score": -0.4, "target": "BP"},
        {"text": "Shell gains, BP slips", "score": 0.3, "target": "Total"},
        {"text": "Quiet day", "score": 0.0},
    )
    found = examples_of(read_labelled(path))
    assert [(example.score, example.entity) for example in found] == [(-0.4, (13, 15)), (0.3, None), (0.0, None)]
    assert {example.sentiment for example in found} == {-1}
