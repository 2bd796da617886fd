"""The public record: bounded, clean, and a round trip on the wire."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from monitor.alerts.records import (
    MAX_PAYLOAD_BYTES,
    MAX_STORIES,
    Alert,
    AlertStory,
    alert_from_builtins,
    bounded,
    clean_text,
    clean_url,
    expectation,
    key_title,
    view_link,
)
from tests.monitor.alerts.builders import AT, an_alert


def story(number: int, title: str = "Headline", url: str = "https://news.example/1") -> AlertStory:
    return AlertStory(
        item_id=f"item-{number}", title=title, url=url, source="Wire", published_at=AT, copies=3, p_negative=0.91
    )


def test_stories_are_bounded_by_number_and_by_bytes() -> None:
    assert len(bounded(an_alert(), [story(n) for n in range(50)]).stories) == MAX_STORIES
    wide = bounded(
        an_alert(), [story(n, title="\U0001f4c9" * 300, url="https://x.example/" + "a" * 900) for n in range(20)]
    )
    assert 5 <= len(wide.stories) < 20
    assert len(msgspec.json.encode(wide)) <= MAX_PAYLOAD_BYTES
    assert [s.item_id for s in wide.stories] == [f"item-{n}" for n in range(len(wide.stories))]


def test_survives_the_store_and_the_wire() -> None:
    alert = bounded(an_alert(), [story(1)])
    assert alert_from_builtins(msgspec.to_builtins(alert)) == alert
    assert msgspec.json.decode(msgspec.json.encode(alert), type=Alert) == alert


@given(st.text(), st.integers(5, 80))
def test_clean_text_is_one_bounded_printable_line(text: str, limit: int) -> None:
    clean = clean_text(text, limit)
    assert len(clean) <= limit
    assert clean == clean.strip()
    assert all(c == " " or c.isprintable() for c in clean)


def test_clean_text_drops_direction_overrides_and_breaks() -> None:
    assert clean_text("up\u202e nwod\r\nBcc: x\x00\x1b[31m") == "up nwod Bcc: x[31m"


@pytest.mark.parametrize(
    "url",
    [
        "javascript:alert(1)",
        "data:text/html,x",
        "//no.scheme",
        "https://",
        "ftp://x.example",
        "https://x.example/ y",
        "https://[broken",
        "https://x.example/" + "a" * 2000,
        "https://x.example/\u202e",
        "",
    ],
)
def test_addresses_that_cannot_be_linked_are_left_out(url: str) -> None:
    assert clean_url(url) == ""


def test_web_addresses_are_kept() -> None:
    assert clean_url(" https://x.example/a?b=1#c ") == "https://x.example/a?b=1#c"


def test_titles_and_links() -> None:
    assert key_title("ticker:BRK.B") == "BRK.B"
    assert key_title("market") == "Whole market"
    assert key_title("topic:m_and_a_investments") != "m_and_a_investments"
    assert view_link("http://h:1/", "a b/c") == "http://h:1/?alert=a%20b%2Fc"


@pytest.mark.parametrize(
    ("negatives", "words"), [(0.0, "under 0.1"), (0.049, "under 0.1"), (0.05, "0.1"), (8.04, "8.0")]
)
def test_a_rare_event_is_not_called_impossible(negatives: float, words: str) -> None:
    assert expectation(negatives) == words
