from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.backbones import TextBackbone, load_text_backbone
from models.tokens import ENTITY_TOKENS, Row, RowTokenizer, clean


@pytest.fixture(scope="module")
def backbone(small_backbone: Path) -> TextBackbone:
    return load_text_backbone(str(small_backbone))


@pytest.fixture(scope="module")
def tokenizer(backbone: TextBackbone) -> RowTokenizer:
    return RowTokenizer(backbone)


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ("<p>Profit &amp; loss</p>", "Profit & loss"),
        ("up 3% https://t.co/bd0xbFGjkT now", "up 3% now"),
        ("a < b and c > d", "a < b and c > d"),
        ("\ud800broken\udfff", "broken"),
        ("zero\u200bwidth\ufeff", "zerowidth"),
        (" \t\n ", ""),
        ("利润大增 😀", "利润大增 😀"),
    ],
)
def test_clean(raw: str, expected: str) -> None:
    assert clean(raw) == expected


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=600), st.integers(-5, 650), st.integers(-5, 650), st.integers(16, 64))
def test_any_text_and_span_fit(backbone: TextBackbone, text: str, start: int, end: int, room: int) -> None:
    ready = RowTokenizer(backbone, room)([Row(text), Row(text, (start, end))])
    for row in ready:
        assert len(row.ids) <= room
        if row.ids:
            assert (row.ids[0], row.ids[-1]) == (101, 102)
        if row.span is not None:
            assert (row.ids[row.span[0]], row.ids[row.span[1] - 1]) == backbone.markers


def test_the_entity_is_marked_where_it_stands(tokenizer: RowTokenizer, backbone: TextBackbone) -> None:
    text = "Apple beats Tesla by far"
    (row,) = tokenizer([Row(text, (12, 17))])
    tokens = [backbone.tokenizer.id_to_token(number) for number in row.ids]
    assert tokens == ["[CLS]", "apple", "beats", "[unused0]", "tesla", "[unused1]", "by", "far", "[SEP]"]
    assert row.span == (3, 6)
    assert not row.truncated


def test_a_far_away_entity_stays_in_sight_with_the_headline(tokenizer: RowTokenizer, backbone: TextBackbone) -> None:
    text = "Headline here. " + "filler words " * 3000 + "then Tesla fell badly " + "more filler " * 3000
    at = text.index("Tesla")
    (row,) = tokenizer([Row(text, (at, at + 5))])
    tokens = [backbone.tokenizer.id_to_token(number) for number in row.ids]
    assert row.truncated
    assert len(row.ids) == ENTITY_TOKENS + 2
    assert tokens[1] == "headline"
    assert row.span is not None
    assert tokens[row.span[0] : row.span[1]] == ["[unused0]", "tesla", "[unused1]"]
    assert "badly" in tokens


def test_a_text_of_nothing_has_no_ids(tokenizer: RowTokenizer) -> None:
    assert [row.ids for row in tokenizer([Row(""), Row("  \n"), Row("https://t.co/x"), Row("<br>", (0, 2))])][:3] == [
        [],
        [],
        [],
    ]


def test_a_long_text_is_cut_and_says_so(tokenizer: RowTokenizer) -> None:
    short, long = tokenizer([Row("word " * 20), Row("word " * 10_000)])
    assert not short.truncated
    assert long.truncated
    assert len(long.ids) == 256
