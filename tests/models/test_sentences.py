"""What is read of a text when the sentiment towards a company in it is asked."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.sentences import entity_rows, sentence_at
from models.tokens import Row

ARTICLE = (
    "Chipmakers diverge\n"
    "Intel Corp. fell 5.2 pct after Mr. Smith left. Nvidia jumped! Is AMD next? U.S. stocks were flat.\n"
    "Boeing lost an order"
)


def span_of(name: str, text: str = ARTICLE) -> tuple[int, int]:
    return text.index(name), text.index(name) + len(name)


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("Chipmakers", "Chipmakers diverge"),
        ("Intel", "Intel Corp. fell 5.2 pct after Mr. Smith left."),
        ("Nvidia", "Nvidia jumped!"),
        ("AMD", "Is AMD next?"),
        ("U.S.", "U.S. stocks were flat."),
        ("Boeing", "Boeing lost an order"),
        ("left. Nvidia", "Intel Corp. fell 5.2 pct after Mr. Smith left. Nvidia jumped!"),
        ("flat.\nBoeing", "U.S. stocks were flat.\nBoeing lost an order"),
    ],
)
def test_the_sentence_round_a_name(name: str, sentence: str) -> None:
    start, end = sentence_at(ARTICLE, span_of(name))
    assert ARTICLE[start:end].strip() == sentence


def test_where_several_companies_are_named_each_has_its_sentence() -> None:
    spans = {span_of("Intel"), span_of("Nvidia"), span_of("Boeing")}
    rows = entity_rows(ARTICLE, spans)
    assert set(rows) == spans
    for span, row in rows.items():
        assert row.entity is not None
        assert row.text[slice(*row.entity)] == ARTICLE[slice(*span)]
    assert rows[span_of("Nvidia")].text.strip() == "Nvidia jumped!"


@pytest.mark.parametrize(
    ("text", "read"),
    [
        ("$AAPL $MSFT\nUgly day. I sell.", "$AAPL $MSFT\nUgly day."),
        ("$AAPL, $MSFT & $XYZ!\n\n\nUgly day", "$AAPL, $MSFT & $XYZ!\n\n\nUgly day"),
        ("Ugly day. $AAPL $MSFT", "$AAPL $MSFT"),
        ("$AAPL up. $MSFT down.", "$AAPL up. $MSFT down."),
        ("$AAPL ran. $MSFT fell.", "$AAPL ran."),
    ],
)
def test_what_is_said_of_a_list_of_names_comes_after_it(text: str, read: str) -> None:
    spans = [span_of("AAPL", text), span_of("MSFT", text)]
    assert entity_rows(text, spans)[spans[0]].text.strip() == read


def test_of_a_text_about_one_company_all_is_read() -> None:
    assert entity_rows(ARTICLE, [span_of("Intel")]) == {span_of("Intel"): Row(ARTICLE, span_of("Intel"))}
    assert entity_rows(ARTICLE, []) == {}


@given(
    st.one_of(st.text(max_size=200), st.text(alphabet="aB. !?\"'()\n\r\u2028é€😀。US", max_size=200)),
    st.integers(0, 200),
    st.integers(0, 30),
    st.sampled_from(["en", "de", "zh", "xx", "", "EN-us"]),
)
def test_any_text_has_a_sentence_round_any_span(text: str, start: int, length: int, language: str) -> None:
    span = min(start, len(text)), min(start + length, len(text))
    begin, end = sentence_at(text, span, language)
    assert 0 <= begin <= span[0] <= span[1] <= end <= len(text)
    for asked, row in entity_rows(text, {span, (0, 0), (len(text), len(text))}, language).items():
        assert row.entity is not None
        assert row.text[slice(*row.entity)] == text[slice(*asked)]


def test_a_text_of_nothing_but_stops_is_soon_given_up() -> None:
    text = "AAPL MSFT" + "\n" * 1_000 + "\n." * 20_000
    spans = [span_of("AAPL", text), span_of("MSFT", text)]
    assert len(entity_rows(text, spans)[spans[0]].text) < 1_100
