from __future__ import annotations

import re
from datetime import UTC, datetime
from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dashboard.markup import Html, cells, clock, details, item_link, plain, settled, signed, web_link


class Links(HTMLParser):
    """Collects what a browser would make of HTML: elements with their attributes."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


@pytest.mark.parametrize(
    "url",
    [
        "javascript:alert(1)",
        "JaVaScRiPt:alert(1)",
        " javascript:alert(1)",
        "java\nscript:alert(1)",
        "data:text/html,<script>alert(1)</script>",
        "vbscript:x",
        "file:///etc/passwd",
        "//no-scheme.example/x",
        "https://",
        "",
    ],
)
def test_only_web_addresses_become_links(url: str) -> None:
    assert Links(web_link(url, "text")).found == []


def test_a_web_address_becomes_a_link_that_tells_nothing_on() -> None:
    ((tag, attributes),) = Links(web_link('https://news.example/a?b="c"&d', "Title")).found
    assert tag == "a"
    assert attributes["href"] == 'https://news.example/a?b="c"&d'
    assert attributes["rel"] == "noopener noreferrer"


@given(st.text(max_size=60), st.text(max_size=60))
def test_no_text_opens_an_element(url: str, text: str) -> None:
    for html in (web_link(url, text), web_link("https://news.example/", text), item_link(url, text)):
        assert [tag for tag, _ in Links(html).found] in ([], ["a"])
        assert all(set(attributes) <= {"href", "target", "rel"} for _, attributes in Links(html).found)


@given(st.text(max_size=80))
def test_item_links_stay_in_the_dashboard(item_id: str) -> None:
    item_id = item_id.encode("utf-8", "ignore").decode()
    ((_, attributes),) = Links(item_link(item_id, "x")).found
    assert re.fullmatch(r"articles\?item=[\w.~%-]*", attributes["href"] or "", re.ASCII)


@given(st.text(alphabet=st.characters(min_codepoint=32, max_codepoint=126), max_size=60))
def test_markdown_is_escaped_letter_by_letter(text: str) -> None:
    escaped = plain(text)
    assert "\n" not in escaped
    unescaped = re.sub(r"\\([!-/:-@\[-`{-~])|[!-/:-@\[-`{-~]", lambda m: m.group(1) or "UNESCAPED", escaped)
    assert "UNESCAPED" not in unescaped
    assert unescaped.replace("\u2060", "") == " ".join(text.split())


@pytest.mark.parametrize("text", ["https://x.example", "www.x.example", "mail@x.example", ":smile:"])
def test_bare_addresses_and_emoji_names_are_broken(text: str) -> None:
    assert text not in plain(text).replace("\\", "")


def test_times_are_utc_to_the_minute() -> None:
    assert clock(datetime(2026, 3, 2, 14, 5, 59, tzinfo=UTC)) == "2026-03-02 14:05"
    assert clock(None) == "–"


@pytest.mark.parametrize(
    ("value", "text"), [(-0.004, "0.00"), (0.004, "0.00"), (0.0, "0.00"), (-0.006, "-0.01"), (0.25, "+0.25")]
)
def test_a_figure_of_about_nothing_has_no_sign(value: float, text: str) -> None:
    assert signed(value) == text
    shown = settled(value)
    # As a column of numbers writes it.
    assert f"{shown:+.2f}" == ("+0.00" if text == "0.00" else text)


def test_cells_escape_all_but_html() -> None:
    at = datetime(2026, 3, 2, 14, 30, tzinfo=UTC)
    row = cells("<b>x</b>", Html("<b>x</b>"), at, None, "", 0, details({"a_b": ["<i>", 1], "c": None}))
    assert row == (
        "&lt;b&gt;x&lt;/b&gt;",
        "<b>x</b>",
        "<time>2026-03-02 14:30</time>",
        "–",
        "–",
        "0",
        "a b: &lt;i&gt;, 1; c: None",
    )
