"""Build `monitor/data/companies.csv` (ticker, name, aliases) and `ambiguous.txt` from MIT-licensed sets.

    python scripts/build_companies.py sentfin_entities.csv StockTable HEADLINES.jsonl... monitor/data

Sources: the entity list of SEntFiN 1.0 (Sinha et al. 2022) and StockNet's stock table (Xu and Cohen 2018). Rows of
SEntFiN that stand for sectors, commodities or the market as a whole are left out: only companies are linked.
`companies_world.csv` in the same folder is kept by hand. `ambiguous.txt` lists the one-word names and tickers that are
ordinary words too: those that are written in small letters more than once in the given headlines (field `text`);
`capital` after a word says that a capital letter is enough to tell the company.
"""

from __future__ import annotations

import csv
import json
import re
import sys
from collections import Counter
from pathlib import Path

# What marks a row as a company; the few companies without such a mark are named.
COMPANY = re.compile(r"\b(Ltd|Limited|Inc|Corp|plc)\b")
UNMARKED = re.compile(
    "UNITEDBNK|DENABANK|ALBK|SBT|ANDHRABANK|UCOBANK|VIJAYABANK|BSE|GEPIL|CORPBANK|DCMSHRIRAM|SKFINDIA|IOB|SBIN|INFY|"
    "INDIANB|WHIRLPOOL|MYSOREBANK|PNB|SIEMENS"
)
SECTORS = {"AUTOSPACE", "METALSPACE", "FINMKT", "HOTEL", "STKSPACE", "TIN", "MERCK", "PSU", "STOCKEXCHNG"}
SUFFIX = re.compile(
    r"[ ,]+(?:-? ?old|ltd|limited|inc|corp|corporation|incorporated|incorporation|plc|p\.l\.c|company|co|& co|"
    r"s\.a|n\.v|l\.p|ag|se|holdings|group|sa/nv company|company limited)\.?$",
    re.IGNORECASE,
)
# Mistakes of the list: names of other companies, and words that name no company.
WRONG = re.compile(
    "makemytrip|entity|re|re-$|old|auto|fuel|equity|rail|consumer|consumption|financial|financials|page|india|lt|oracle|"
    "jsw infrastructure|international paper|honeywell|hitachi|astrazeneca|colgate|procter&gamble|isuzu|docomo|"
    "united bank|central bank|cbi|bse|birla|delta|nfl|tea|gas|oil|power|star|media|bank|stock"
)
# Words that the headlines happen to write in small letters once or never.
ALSO_WORDS = re.compile(
    "all|amazon|apollo|apple|are|arvind|big|can|carnival|chase|deepak|dow|ford|ice|intel|it|key|matrix|meta|nice|now|on|"
    "open|oracle|orchid|oriental|page|prakash|signature|sonata|square|torrent|vale|vip|well|zoom"
)
# Written with a capital, these are nearly always the company, even at the start of a headline.
TELLING = re.compile(
    "amazon|apple|ba|bitcoin|bp|carnival|dal|ford|intel|mar|meta|mo|nflx|oracle|reliance|snap|titan|torrent|twitter|ups|"
    "vale|visa"
)


def base_names(name: str) -> list[str]:
    """The name, and the name without its legal form: `Exxon Mobil Corporation`, `Exxon Mobil`."""
    names = [" ".join(name.split()).rstrip(".- ")]
    while (shorter := SUFFIX.sub("", names[-1]).strip(" .,&-")) not in ("", names[-1]):
        names.append(shorter)
    return names


def sentfin(path: Path) -> dict[str, list[str]]:
    """Ticker to names from SEntFiN's list."""
    found: dict[str, list[str]] = {}
    with path.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            ticker, names = row["Symbol"].strip(), row["Entity"]
            if ticker in SECTORS or " " in ticker or not (COMPANY.search(names) or UNMARKED.fullmatch(ticker)):
                continue
            aliases: list[str] = []
            for name in names.split(","):
                aliases += base_names(name)
            usable = [a for a in aliases if len(a) > 1 and not WRONG.fullmatch(a.lower())]
            kept = [a for a in usable if " " in a or not a.islower()]
            # A symbol of three letters is what people say and write (TCS, ITC); longer ones are found as tickers.
            found.setdefault(ticker, []).extend(a for a in kept if a != ticker or len(a) == 3)
    return found


def stocknet(path: Path) -> dict[str, list[str]]:
    """Ticker to names from StockNet's table."""
    found: dict[str, list[str]] = {}
    with path.open(encoding="utf-8") as file:
        for row in csv.DictReader(file, delimiter="\t"):
            names = base_names(row["Company"])
            names += [name.removeprefix("The ") for name in names]
            found[row["Symbol"].lstrip("$")] = names
    return found


def ambiguous(headlines: list[Path], words: set[str]) -> list[str]:
    """Those of `words` (small letters) that the headlines write in small letters at least twice."""
    counts: Counter[str] = Counter()
    for path in headlines:
        with path.open(encoding="utf-8") as file:
            for line in file:
                counts.update(re.findall(r"(?<![\w$@#/.])[a-z]+(?![\w/])", json.loads(line)["text"]))
    return sorted(word for word in words if counts[word] >= 2 or ALSO_WORDS.fullmatch(word))


def main(sentfin_csv: str, stock_table: str, *rest: str) -> None:
    """Write the table, sorted by ticker; a name that two companies claim stays with the first."""
    *headlines, target = (Path(path) for path in rest)
    companies = stocknet(Path(stock_table))
    for ticker, names in sentfin(Path(sentfin_csv)).items():
        companies.setdefault(ticker, []).extend(names)
    claimed: set[str] = set()
    with (target / "companies.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("ticker", "name", "aliases"))
        for ticker in sorted(companies):
            names = [n for n in dict.fromkeys(companies[ticker]) if n.lower() not in claimed]
            claimed.update(n.lower() for n in names)
            # What people call it: without the legal form; of several words if there is such a name; short.
            plain = [n for n in names if not SUFFIX.search(n)] or names
            spoken = min(plain, key=lambda n: (" " not in n, len(n)), default=ticker)
            writer.writerow((ticker, spoken, "|".join(n for n in names if n != spoken)))
    with (target / "companies_world.csv").open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            companies.setdefault(row["ticker"], []).extend((row["name"], *row["aliases"].split("|")))
    words = {name.lower() for ticker, names in companies.items() for name in (ticker, *names) if name.isalpha()}
    lines = (f"{word} capital" if TELLING.fullmatch(word) else word for word in ambiguous(headlines, words))
    (target / "ambiguous.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    if len(sys.argv) < 5:
        sys.exit(__doc__)
    main(*sys.argv[1:])
