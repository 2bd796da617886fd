"""Which companies a text speaks of: cashtags, tickers with an exchange, and names in any script.

Matching is by whole words, longest name first, in one pass over the text's words; names in scripts without spaces
are found anywhere. A name that is an ordinary word as well ("Gap", "Target", "Visa") counts only as written, and
where capitals say nothing (start of a sentence, headline style, capitals throughout) only beside a word that speaks
of a company ("Gap shares", "Target's").
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final, NamedTuple

from monitor.companies import UNSPACED, Alias, CompanyTable, bundled_companies, fold, tokens
from monitor.records import normalise_tickers

__all__ = ["Mention", "link"]

OWN_TICKER_RELEVANCE: Final = 0.5
MAX_CHARS: Final = 20_000

_CASHTAG: Final = re.compile(r"(?<![\w$])\$([A-Za-z]{1,6}(?:[.-][A-Za-z]{1,3})?)(?!\w|\()")
# As Chinese forums write it: $贵州茅台(SH600519)$
_NAMED_CASHTAG: Final = re.compile(r"\$([^$()\s]{1,24})\((?:[A-Za-z]+:)?([A-Z]{1,6}|(?:SH|SZ|HK)?\d{4,6})\)\$")
_EXCHANGES: Final = "NYSE American|NYSE Arca|NYSE|NASDAQ|Nasdaq|AMEX|NSE|BSE|LSE|LON|TSX|ASX|OTC|HKEX|SEHK|SSE|SZSE|TYO"
_LISTED: Final = re.compile(
    rf"(?<!\w)(?:(?:{_EXCHANGES})\s?:\s?([A-Z0-9]{{1,10}}(?:[.-][A-Z]{{1,2}})?)"
    r"|([A-Z0-9]{1,10})[.:](N|O|OQ|NS|NSE|BO|US|L|HK|SS|SZ|T|KS|PA|DE|TO|AX|SW|MI|AS))(?!\w)"
)
_HOME_SUFFIXES: Final = frozenset({"N", "O", "OQ", "NS", "NSE", "BO", "US"})
_CURRENCIES: Final = frozenset({"US", "USD", "CAD", "AUD", "NZD", "HKD", "HK", "SGD", "NT", "EUR", "GBP", "INR", "RMB"})
_GAP: Final = re.compile(r"[ \t\-.,'’/()]{0,3}")
_CUES: Final = re.compile(
    "s|shares?|stocks?|inc|corp|co|ltd|plc|group|holdings|says|said|reports|reported|posts|raises|raised|cuts|beats|"
    "misses|sees|earnings|profits?|revenue|sales|ceo|cfo|results|announces|launches|sues|recalls|hires|buys|sells|"
    "acquires|files|plans|names|unveils|expects|reaffirms|guidance|dividend|q[1-4]|quarter|upgraded|downgraded|"
    "shareholders|investors|board|executives|stores|employees|workers"
)


class Mention(NamedTuple):
    """A company in a text. `start`, `end`: characters of its first mention, -1 when only the item's tickers name it;
    `places` are those of all its mentions, in order.

    `relevance` in [0, 1]: 0.5 if the title names it, plus 0.2 times how early it first stands (1 at the start, 0 at
    the end), plus 0.3 times its share of all mentions in the text. A ticker that the item itself carries has at
    least 0.5: the publisher says that the item is about it.
    """

    name: str
    ticker: str
    start: int
    end: int
    relevance: float
    places: tuple[tuple[int, int], ...] = ()


class _Hit(NamedTuple):
    ticker: str
    start: int
    end: int


def _ticker_of(symbol: str, table: CompanyTable) -> str:
    upper = symbol.upper()
    return upper.replace(".", "-") if upper not in table and upper.replace(".", "-") in table else upper


def _tagged(text: str, table: CompanyTable) -> list[_Hit]:
    hits = []
    if "$" in text:
        hits += [_Hit(_ticker_of(m.group(2), table), m.start(1), m.end(1)) for m in _NAMED_CASHTAG.finditer(text)]
        for match in _CASHTAG.finditer(text):
            if match.group(1).upper() not in _CURRENCIES:
                hits.append(_Hit(_ticker_of(match.group(1), table), *match.span()))
    for match in _LISTED.finditer(text):
        if match.group(1):
            hits.append(_Hit(_ticker_of(match.group(1), table), *match.span(1)))
        else:
            base, suffix = match.group(2), match.group(3)
            known = suffix in _HOME_SUFFIXES and (base in table or suffix != "US")
            full = f"{base}.{suffix}"
            if known or full in table or (base.isdigit() and len(base) >= 4) or (base in table and suffix == "L"):
                hits.append(_Hit(base if known else full, *match.span()))
    return hits


class _Words:
    """The words of a text, and what its capitals are worth."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.matches = tokens(text)
        self.folded = [fold(match.group()) for match in self.matches]
        cased = [m.group() for m in self.matches if m.group()[0].isalpha() and m.group().lower() != m.group().upper()]
        capitals = sum(1 for word in cased if word[0].isupper())
        # In headline style or capitals throughout, a capital letter does not tell a name.
        self.capitals_tell = len(cased) < 4 or capitals / len(cased) < 0.7

    def joined(self, first: int, last: int) -> bool:
        """Whether the words `first`..`last` stand together, with no more than punctuation between."""
        return all(
            _GAP.fullmatch(self.text, self.matches[i].end(), self.matches[i + 1].start()) for i in range(first, last)
        )

    def accepts(self, alias: Alias, at: int) -> bool:
        """Whether the words at `at` are this name and not merely the same word."""
        last = at + len(alias.tokens) - 1
        start, end = self.matches[at].start(), self.matches[last].end()
        if start and self.text[start - 1] in "@#$":
            return False
        if alias.exact and any(
            match.group() != word and match.group()[0] != "&"
            for match, word in zip(self.matches[at : last + 1], alias.written, strict=True)
        ):
            return False
        if not alias.ambiguous:
            return True
        follows = self.folded[last + 1] if last + 1 < len(self.folded) else ""
        if _CUES.fullmatch(follows) and not re.search(r"[\n.;:!?]", self.text[end : self.matches[last + 1].start()]):
            return True
        opens = at == 0 or bool(re.search(r"[\n.;:!?]\s*[\"'“‘(]*$", self.text[max(0, start - 6) : start]))
        return self.capitals_tell and not opens


def _named(text: str, table: CompanyTable, taken: list[tuple[int, int]]) -> list[_Hit]:
    words = _Words(text)
    hits: list[_Hit] = []
    at = 0
    while at < len(words.folded):
        found = None
        for alias in table.by_word.get(words.folded[at], ()):
            last = at + len(alias.tokens)
            if tuple(words.folded[at:last]) == alias.tokens and words.joined(at, last - 1) and words.accepts(alias, at):
                found = alias
                break
        if found is None:
            at += 1
            continue
        start, end = words.matches[at].start(), words.matches[at + len(found.tokens) - 1].end()
        if not any(start < e and s < end for s, e in taken):
            hits.append(_Hit(found.ticker, start, end))
        at += len(found.tokens)
    if UNSPACED.search(text):
        hits += [
            _Hit(table.unspaced[match.group()], *match.span())
            for match in table.unspaced_names.finditer(text)
            if not any(match.start() < e and s < match.end() for s, e in taken)
        ]
    return hits


def link(
    text: str, tickers: Iterable[str] = (), *, title_chars: int | None = None, table: CompanyTable | None = None
) -> list[Mention]:
    """The companies of a text, most relevant first, each once.

    Parameters
    ----------
    text : title and body; the first 20,000 characters are searched.
    tickers : what the item itself carries; always among the result.
    title_chars : length of the title at the start of `text`; None: the first line.
    table : names to look for; None: the bundled ones.
    """
    table = table or bundled_companies()
    own = normalise_tickers(tickers)
    searched = text[:MAX_CHARS]
    tagged = _tagged(searched, table)
    hits = sorted(tagged + _named(searched, table, [(h.start, h.end) for h in tagged]), key=lambda hit: hit.start)
    if title_chars is None:
        newline = searched.find("\n")
        title_chars = newline if newline >= 0 else len(searched)
    places: dict[str, list[tuple[int, int]]] = {}
    for hit in hits:
        places.setdefault(hit.ticker, []).append((hit.start, hit.end))
    mentions = []
    for ticker, found in places.items():
        start, end = found[0]
        relevance = 0.5 if start < title_chars else 0.0
        relevance += 0.2 * (1 - start / max(1, len(searched))) + 0.3 * len(found) / len(hits)
        if ticker in own:
            relevance = max(relevance, OWN_TICKER_RELEVANCE)
        mentions.append(Mention(table.name(ticker), ticker, start, end, round(relevance, 4), tuple(found)))
    mentions += [Mention(table.name(t), t, -1, -1, OWN_TICKER_RELEVANCE) for t in own if t not in places]
    return sorted(mentions, key=lambda m: (-m.relevance, m.start))
