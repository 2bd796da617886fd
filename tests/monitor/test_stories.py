"""Signatures and clustering: copies are found, other news is not, in any language and any process."""

from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from monitor.stories import (
    MAX_ITEM_IDS,
    MAX_SOURCES,
    SIGNATURE_BYTES,
    Copies,
    add_copies,
    signature,
    signatures,
    similarity,
)

HEADLINE = "Apple shares fall 5% after weak iPhone sales in China"


@pytest.mark.parametrize(
    "copy",
    [
        "UPDATE 1-" + HEADLINE,
        "RPT-UPDATE 2-" + HEADLINE,
        "WRAPUP 2-" + HEADLINE,
        "Breaking: " + HEADLINE,
        "RT @markets: " + HEADLINE.upper(),
        HEADLINE + " - Reuters",
        HEADLINE + " https://example.org/a?b=c",
        "“" + HEADLINE.replace(" ", "  ") + "!”",
        HEADLINE.replace("Apple", "Ａｐｐｌｅ"),
    ],
)
def test_what_agencies_add_changes_nothing(copy: str) -> None:
    assert signature(copy) == signature(HEADLINE)


@pytest.mark.parametrize(
    ("text", "prefix", "other"),
    [
        ("苹果公司股价因中国销量疲软下跌百分之五", "快讯:", "苹果公司发布新款手机股价上涨百分之三"),
        ("أسهم أبل تنخفض بنسبة 5٪ بعد ضعف مبيعات آيفون في الصين", "عاجل: ", "أبل تعلن عن هاتف جديد وترتفع أسهمها"),
        ("מניות אפל ירדו לאחר מכירות חלשות בסין", "", "אפל הכריזה על טלפון חדש והמניה עלתה"),
        ("アップル株が中国での販売不振を受けて下落した", "速報:", "アップルは新型の電話機を発表した"),
        ("หุ้นแอปเปิลร่วงหลังยอดขายในจีนอ่อนแอ", "", "แอปเปิลเปิดตัวโทรศัพท์รุ่นใหม่วันนี้"),
        (
            "Акции Apple упали на 5% из-за слабых продаж в Китае",
            "Срочно: ",
            "Apple представила новый телефон, акции выросли",
        ),
    ],
)
def test_copies_are_told_from_other_news_in_any_script(text: str, prefix: str, other: str) -> None:
    assert similarity(signature(prefix + text), signature(text)) == 1.0
    assert similarity(signature(text), signature(other)) < 0.5


def test_a_small_edit_stays_similar_and_other_news_does_not() -> None:
    assert similarity(signature(HEADLINE), signature(HEADLINE.replace("fall", "drop"))) >= 0.6
    assert similarity(signature(HEADLINE), signature("Apple opens a new campus in Austin, Texas")) < 0.4


def test_a_short_title_is_read_with_its_body_and_a_long_one_without() -> None:
    assert signature("Apple", "shares fall after weak sales") != signature("Apple", "opens a campus in Austin, Texas")
    assert signature(HEADLINE, "one body") == signature(HEADLINE, "quite another body")


def test_text_without_words_has_no_signature() -> None:
    assert signature("!!! ... ", "") == b""
    assert similarity(b"", b"") == 0.0


def test_the_signature_is_the_same_in_another_process() -> None:
    code = f"from monitor.stories import signature; print(signature({HEADLINE!r}))"
    printed = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={"PYTHONHASHSEED": "7"}
    ).stdout
    assert printed.strip() == str(signature(HEADLINE))


@given(st.text(max_size=200), st.text(max_size=200))
def test_any_text_gives_a_signature_of_one_length(title: str, body: str) -> None:
    assert len(signature(title, body)) in (0, SIGNATURE_BYTES)


def test_similarity_estimates_the_jaccard_index() -> None:
    words = [f"word{i}" for i in range(400)]
    estimates = []
    for start in range(0, 380, 20):
        a = " ".join(words[start : start + 20])
        b = " ".join(words[start : start + 15] + [f"other{start + i}" for i in range(5)])
        estimates.append(similarity(signature(a), signature(b)))
    # 15 of 20 words and 14 of 19 pairs are shared: 29 of 49 shingles.
    assert sum(estimates) / len(estimates) == pytest.approx(29 / 49, abs=0.08)


@given(st.lists(st.tuples(st.text(max_size=60), st.text(max_size=30)), max_size=12))
def test_signed_together_or_one_by_one_is_the_same(texts: list[tuple[str, str]]) -> None:
    texts = [*texts, (HEADLINE, ""), ("", "")]
    assert signatures(texts) == [signature(title, body) for title, body in texts]
    assert signatures(texts)[-2:] == [signature(HEADLINE), b""]


def test_more_than_are_signed_at_once() -> None:
    texts = [(f"{HEADLINE} number {number}", "") for number in range(600)]
    assert signatures(texts) == [signature(*text) for text in texts]


def test_copies_join_together_as_they_would_one_by_one() -> None:
    names = [str(number % 50) for number in range(150)]
    one_by_one, together = (Copies("k", 5, 1, ("0",), ("0",)) for _ in range(2))
    for number, name in enumerate(names):
        add_copies(one_by_one, Copies("k", number, 1, (name,), (name,)))
    first, rest = Copies("k", 0, 0, (), ()), Copies("k", 0, 0, (), ())
    for number, name in enumerate(names):
        add_copies(first if number < 40 else rest, Copies("k", number, 1, (name,), (name,)))
    add_copies(together, first)
    add_copies(together, rest)
    assert together == one_by_one
    assert (together.items, together.last_at) == (151, 149)
    assert (len(together.sources), len(together.item_ids)) == (MAX_SOURCES, MAX_ITEM_IDS)
