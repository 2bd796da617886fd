"""Companies, tickers and cashtags in texts."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from monitor.companies import CompanyTable, bundled_companies, load_companies
from monitor.errors import ConfigurationError
from monitor.linking import link


def found(text: str, *tickers: str) -> dict[str, str]:
    """Ticker to the text of its first mention."""
    return {m.ticker: text[m.start : m.end] if m.start >= 0 else "" for m in link(text, tickers)}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Apple's stock falls after Tesla recall", {"AAPL": "Apple", "TSLA": "Tesla"}),
        ("$aapl and $BRK-A up", {"AAPL": "$aapl", "BRK-A": "$BRK-A"}),
        ("Apple and Intel to build a plant", {"AAPL": "Apple", "INTC": "Intel"}),
        ("Boeing (NYSE: BA) grounded", {"BA": "Boeing"}),
        ("Results due at (NASDAQ:MSFT)", {"MSFT": "MSFT"}),
        ("INFY.NS against 0700.HK", {"INFY": "INFY.NS", "0700.HK": "0700.HK"}),
        ("AT &amp; T and AT&T", {"T": "AT &amp; T"}),
        ("MCDONALD'S SALES SLUMP", {"MCD": "MCDONALD'S"}),
        ("bank of america upgrades wal-mart", {"BAC": "bank of america", "WMT": "wal-mart"}),
        ("贵州茅台股价大跌，阿里巴巴上涨", {"600519.SS": "贵州茅台", "BABA": "阿里巴巴"}),
        ("삼성전자가 급락", {"SSNLF": "삼성전자"}),
        ("أرامكو السعودية تعلن أرباحها", {"2222.SR": "أرامكو السعودية"}),
        ("Акции Газпром падают", {"OGZPY": "Газпром"}),
        ("$特斯拉(TSLA)$ 大涨", {"TSLA": "特斯拉"}),
    ],
)
def test_names_tickers_and_cashtags_of_any_script(text: str, expected: dict[str, str]) -> None:
    assert found(text) == expected


@pytest.mark.parametrize(
    ("text", "linked"),
    [
        ("Gap shares fall 5%", True),
        ("Analysts like what Gap does in its stores", True),
        ("$GPS falls", True),
        ("Gap between rich and poor widens", False),
        ("Stocks Gap Higher As Eyes Turn To Fed", False),
        ("STOCKS GAP HIGHER ON FRIDAY", False),
        ("the gap widens", False),
        ("GPS satellites fail", False),
    ],
)
def test_an_ordinary_word_needs_a_hint(text: str, linked: bool) -> None:
    assert ("GPS" in found(text)) is linked


@pytest.mark.parametrize(
    "text", ["It was All in all OK", "It costs $US 5 or $ 7", "mail me@tesla or #apple", "IT stocks"]
)
def test_what_only_looks_like_a_company(text: str) -> None:
    assert found(text) == {}


def test_the_longest_name_wins() -> None:
    assert set(found("Reliance Power rises")) == {"RPOWER"}
    assert set(found("L&T Tech rises")) == {"LTTS"}


def test_an_unknown_cashtag_is_its_own_name() -> None:
    (mention,) = link("$ZZQX jumps")
    assert (mention.name, mention.ticker) == ("ZZQX", "ZZQX")


def test_own_tickers_are_always_there() -> None:
    mentions = {m.ticker: m for m in link("Quarterly report", ["tsla", "$aapl"])}
    assert set(mentions) == {"TSLA", "AAPL"}
    assert mentions["TSLA"].start == -1
    assert mentions["TSLA"].name == "Tesla"
    assert mentions["TSLA"].relevance == 0.5


def test_relevance_rewards_title_position_and_share() -> None:
    text = "Tesla recalls cars\nTesla said so. Rival Boeing was not affected."
    mentions = {m.ticker: m.relevance for m in link(text)}
    assert mentions["TSLA"] == pytest.approx(0.5 + 0.2 + 0.3 * 2 / 3, abs=1e-3)
    assert mentions["BA"] == pytest.approx(0.2 * (1 - text.index("Boeing") / len(text)) + 0.1, abs=1e-3)
    assert link("Tesla rises")[0].relevance == 1.0
    assert {m.ticker: m.relevance for m in link(text, ["BA"])}["BA"] == 0.5


def test_a_title_length_may_be_given() -> None:
    text = "Markets today Tesla rises"
    assert link(text, title_chars=13)[0].relevance < 0.5 < link(text)[0].relevance


@given(st.text(max_size=300))
def test_any_text_gives_ordered_mentions_inside_it(text: str) -> None:
    mentions = link(text, ["AAPL"])
    assert "AAPL" in {m.ticker for m in mentions}
    assert len({m.ticker for m in mentions}) == len(mentions)
    for mention in mentions:
        assert 0.0 <= mention.relevance <= 1.0
        assert (mention.start, mention.end) == (-1, -1) or 0 <= mention.start < mention.end <= len(text)


@given(st.sampled_from(sorted(bundled_companies().names.items())))
def test_every_company_is_found_by_its_cashtag(company: tuple[str, str]) -> None:
    ticker, name = company
    if ticker.isalpha() and len(ticker) <= 6 and ticker != "HK":
        assert link(f"Today ${ticker} moved")[0].name == name


def test_a_users_table_is_laid_over_the_bundled_one(tmp_path: Path) -> None:
    path = tmp_path / "mine.csv"
    path.write_text("ticker,name,aliases\nACME,Acme Rockets,Acme|Roadrunner Supply\nAAPL,Apple Farm,\n")
    table = load_companies(path)
    assert [m.ticker for m in link("Roadrunner Supply and Tesla", table=table)] == ["ACME", "TSLA"]
    assert table.name("AAPL") == "Apple Farm"


@pytest.mark.parametrize("content", ["symbol,title\nA,B\n", "ticker,name,aliases\nACME,,x\n", "ticker,name\nA,B,c,d\n"])
def test_a_wrong_users_table_is_one_clear_error(tmp_path: Path, content: str) -> None:
    path = tmp_path / "mine.csv"
    path.write_text(content)
    with pytest.raises(ConfigurationError, match=r"mine\.csv"):
        load_companies(path)


def test_a_later_row_takes_a_name_over() -> None:
    table = CompanyTable([("OLD", "Example Works", ()), ("NEW", "Example Works", ())], {})
    assert [m.ticker for m in link("Example Works rises", table=table)] == ["NEW"]
