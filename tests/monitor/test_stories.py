"""Signatures and clustering: copies are found, other news is not, in any language and any process."""

from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from monitor.stories import BANDS, OpenStories, Story, signature, signatures, similarity, story_id

HEADLINE = "Apple shares fall 5% after weak iPhone sales in China"


def story(number: int, text: str, at: int = 0) -> Story:
    return Story(
        id=story_id("k", str(number), 0),
        key="k",
        first_at=at,
        last_at=at,
        minute=at // 60_000,
        negative=True,
        items=1,
        sources=(),
        title=text,
        url="",
        source="",
        item_id=str(number),
        item_ids=(str(number),),
        p_negative=0.9,
        signature=signature(text),
    )


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
    assert signature("!!! ... ", "") == ()
    assert similarity((), ()) == 0.0


def test_the_signature_is_the_same_in_another_process() -> None:
    code = f"from monitor.stories import signature; print(signature({HEADLINE!r}))"
    printed = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={"PYTHONHASHSEED": "7"}
    ).stdout
    assert printed.strip() == str(signature(HEADLINE))


@given(st.text(max_size=200), st.text(max_size=200))
def test_any_text_gives_bands_that_fit_a_json_number(title: str, body: str) -> None:
    bands = signature(title, body)
    assert len(bands) in (0, BANDS)
    assert all(0 <= band < 2**53 for band in bands)


def test_similarity_estimates_the_jaccard_index() -> None:
    words = [f"word{i}" for i in range(400)]
    estimates = []
    for start in range(0, 380, 20):
        a = " ".join(words[start : start + 20])
        b = " ".join(words[start : start + 15] + [f"other{start + i}" for i in range(5)])
        estimates.append(similarity(signature(a), signature(b)))
    # 15 of 20 words and 14 of 19 pairs are shared: 29 of 49 shingles.
    assert sum(estimates) / len(estimates) == pytest.approx(29 / 49, abs=0.08)


def test_finding_is_exact_among_thousands_of_open_stories() -> None:
    texts = [" ".join(f"w{(i * 7919 + j * 104729) % 6007}" for j in range(9)) for i in range(3000)]
    stories = OpenStories(story(i, text) for i, text in enumerate(texts))
    for i in range(0, 3000, 97):
        found = stories.find(signature("UPDATE 3-" + texts[i]), 0, 1, 0.6, 0)
        assert found is not None
        assert found.item_id == str(i)
    assert stories.find(signature("nothing like any of these at all"), 0, 1, 0.6, 0) is None


def test_a_story_is_open_for_its_window_only() -> None:
    stories = OpenStories([story(1, HEADLINE, at=1000)])
    sketch = signature(HEADLINE)
    assert stories.find(sketch, 1100, 100, 0.6, 0) is not None
    assert stories.find(sketch, 1101, 100, 0.6, 0) is None
    assert stories.find(sketch, 899, 100, 0.6, 0) is None
    assert stories.find(sketch, 1000, 100, 0.6, open_from=1001) is None


def test_expired_stories_leave_nothing_behind() -> None:
    stories = OpenStories(
        [story(1, HEADLINE, at=10), story(2, HEADLINE, at=20), story(3, "something else entirely", at=5)]
    )
    stories.expire(15)
    assert [s.item_id for s in stories] == ["2"]
    found = stories.find(signature(HEADLINE), 20, 100, 0.6, 0)
    assert found is not None
    assert found.item_id == "2"
    stories.expire(21)
    assert len(stories) == 0
    assert stories._bands == {}


@given(st.lists(st.tuples(st.text(max_size=60), st.text(max_size=30)), max_size=12))
def test_signed_together_or_one_by_one_is_the_same(texts: list[tuple[str, str]]) -> None:
    texts = [*texts, (HEADLINE, ""), ("", "")]
    assert signatures(texts) == [signature(title, body) for title, body in texts]
    assert signatures(texts)[-2:] == [signature(HEADLINE), ()]


def test_more_than_are_signed_at_once() -> None:
    texts = [(f"{HEADLINE} number {number}", "") for number in range(600)]
    assert signatures(texts) == [signature(*text) for text in texts]
