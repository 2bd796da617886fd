"""What is read of a text when the sentiment towards a company in it is asked."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sentencex import get_sentence_boundaries

from models import sentences
from models.sentences import Place, entity_rows, sentence_at
from models.tokens import Row

ARTICLE = (
    "Chipmakers diverge\n"
    "Intel Corp. fell 5.2 pct after Mr. Smith left. Nvidia jumped! Is AMD next? U.S. stocks were flat.\n"
    "Boeing lost an order"
)


def place_of(name: str, text: str = ARTICLE) -> Place:
    return text.index(name), text.index(name) + len(name)


def read(text: str, *names: str) -> dict[str, str]:
    """What is read for each of the companies, which stand wherever their names do."""
    places = {name: [match.span() for match in re.finditer(re.escape(name), text)] for name in names}
    rows = entity_rows(text, list(places.values()))
    for name, row in zip(names, (rows[found[0]] for found in places.values()), strict=True):
        assert row.entity is not None
        assert row.text[slice(*row.entity)] == name
    return {name: rows[found[0]].text.strip() for name, found in places.items()}


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
    start, end = sentence_at(ARTICLE, place_of(name))
    assert ARTICLE[start:end].strip() == sentence


def test_a_long_line_that_goes_on_in_lower_case_is_no_end() -> None:
    text = "News\nIntel said on Monday to its shareholders that\nits profit, which is what they look at first,\n  fell."
    start, end = sentence_at(text, place_of("profit", text))
    assert text[start:end] == text[5:]


@pytest.mark.parametrize(
    "line", ["Apple falls on weak demand", "Apple falls on weak demand for its telephones in Asia"]
)
def test_a_new_line_is_a_new_sentence_however_its_name_begins(line: str) -> None:
    assert read(f"{line}\neBay gains", "Apple", "eBay") == {"Apple": line, "eBay": "eBay gains"}
    assert read(f"{line[:30]}\nshares of MSFT gain", "Apple", "MSFT")["Apple"] == line[:30].strip()


def test_where_several_companies_are_named_each_has_its_sentence() -> None:
    assert read(ARTICLE, "Intel", "Nvidia", "Boeing") == {
        "Intel": "Intel Corp. fell 5.2 pct after Mr. Smith left.",
        "Nvidia": "Nvidia jumped!",
        "Boeing": "Boeing lost an order",
    }


def test_a_company_s_own_sentences_go_before_those_that_it_shares() -> None:
    text = (
        "Apple and Tesla in focus\nApple fell after a warning. Tesla beat Apple again. Tesla rose. "
        "Apple is sued. Apple hires. Apple builds."
    )
    assert read(text, "Apple", "Tesla") == {
        "Apple": "Apple fell after a warning.  Apple is sued.  Apple hires.",
        "Tesla": "Tesla rose.",
    }


def test_a_company_without_a_sentence_of_its_own_has_that_of_its_first_mention() -> None:
    text = "Apple sues Tesla\nShares were flat. Tesla said no."
    assert read(text, "Apple", "Tesla") == {"Apple": "Apple sues Tesla", "Tesla": "Tesla said no."}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("AAPL MSFT\nUgly day. I sell.", "AAPL MSFT\nUgly day."),
        ("$AAPL, $MSFT & $XYZ!\n\n\nUgly day", "$AAPL, $MSFT & $XYZ!\n\n\nUgly day"),
        ("AAPL and MSFT (MS:US)\nUgly day", "AAPL and MSFT (MS:US)\nUgly day"),
        ("AAPL MSFT\n1.\n2.\n3.\n4.\nUgly day", "AAPL MSFT\n1.\n2.\n3."),
        ("Ugly day. $AAPL $MSFT", "$AAPL $MSFT"),
        ("$AAPL ran. $MSFT fell.", "$AAPL ran."),
        ("AAPL up. MSFT down.", "AAPL up."),
        ("$AAPL -5%\n$MSFT +3%", "$AAPL -5%"),
        ("$AAPL 5 %\n$MSFT +3%", "$AAPL 5 %"),
        ("AAPL下跌。MSFT上涨。", "AAPL下跌。"),
    ],
)
def test_what_is_said_of_a_list_of_names_comes_after_it(text: str, says: str) -> None:
    assert read(text, "AAPL", "MSFT")["AAPL"] == says


def test_a_sentence_that_is_longer_than_what_is_looked_at_is_read_once() -> None:
    text = "MSFT rose. " + ("AAPL " + "went on and on, " * 45) * 3
    assert len(read(text, "AAPL", "MSFT")["AAPL"]) <= len(text)


def test_of_a_text_about_one_company_all_is_read() -> None:
    place = place_of("Intel")
    assert entity_rows(ARTICLE, [[place, place_of("Boeing")]]) == {place: Row(ARTICLE, place)}
    assert entity_rows(ARTICLE, []) == {}


@given(
    st.one_of(st.text(max_size=200), st.text(alphabet="aB. !?\"'()\n\r\u2028é€😀。US", max_size=200)),
    st.integers(0, 200),
    st.integers(0, 30),
    st.sampled_from(["en", "de", "zh", "xx", "", "EN-us"]),
)
def test_any_text_has_a_sentence_round_any_place(text: str, start: int, length: int, language: str) -> None:
    place = min(start, len(text)), min(start + length, len(text))
    begin, end = sentence_at(text, place, language)
    assert 0 <= begin <= place[0] <= place[1] <= end <= len(text)
    named = [[place], [(0, 0), place], [(len(text), len(text))]]
    for asked, row in entity_rows(text, named, language).items():
        assert row.entity is not None
        assert row.text[slice(*row.entity)] == text[slice(*asked)]


@pytest.mark.parametrize("unit", ["«a. ", "好。", "\n.", "(a. b) ", "a", "\n", "\n a"])
def test_sentences_are_looked_for_near_names_only(unit: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The library takes a minute for some texts of 50,000 characters."""
    given: list[int] = []

    def noted(language: str, text: str) -> Any:
        given.append(len(text))
        return get_sentence_boundaries(language, text)

    monkeypatch.setattr(sentences, "get_sentence_boundaries", noted)
    names = "AAPL MSFT INTC NVDA TSLA AMZN GOOG META"
    text = names + "\n" + unit * (48_000 // len(unit)) + names
    entity_rows(text, [[match.span() for match in re.finditer(name, text)] for name in names.split()])
    assert 16 <= len(given) <= 40
    assert max(given) <= 2_100
