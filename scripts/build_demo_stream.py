"""Builds the bundled demo stream `monitor/data/demo/`: real headlines at drawn times, with charts of real prices.

    python scripts/build_demo_stream.py FOLDER

FOLDER holds `sentfin.jsonl` (SEntFiN 1.0), `twitter_sentiment.jsonl` and `twitter_topic.jsonl` (the Twitter Financial
News sets). The same input gives the same stream. What is real and what is drawn stands in the README that is written.
"""

from __future__ import annotations

import hashlib
import html
import json
import re
import shutil
import sys
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from models.charts.labels import net_move, trend_of
from models.charts.prices import load_prices
from models.charts.render import CLOSES_ONLY, Viewport, render
from models.charts.styles import Style, random_style
from monitor.linking import link
from monitor.records import Trend

TARGET = Path(__file__).parent.parent / "monitor" / "data" / "demo"
SEED = 20260306
START = datetime(2026, 2, 27, 12, tzinfo=UTC)
END = datetime(2026, 3, 7, 6, tzinfo=UTC)
SURGE_START = datetime(2026, 3, 6, 14, 2, tzinfo=UTC)
SURGE = timedelta(minutes=84)
SURGE_TICKER = "INFY"
SURGE_COMPANY = "Infosys"
ITEMS = 3200
SHARES = {"sentfin": 0.6, "twitter_sentiment": 0.2, "twitter_topic": 0.2}
CHARTS = 40
SURGE_STORIES = 24
SURGE_COPIES = 10
COPIED = 0.04

# Items per hour of the day (UTC), relative: quiet nights, two openings.
HOURS = np.array([3, 2, 2, 4, 6, 7, 7, 8, 8, 8, 9, 9, 10, 12, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4], dtype=float)
WEEKEND = 0.8
WIRES = ("wire-a", "wire-b", "wire-c", "market-desk", "morning-brief", "newsroom-e", "newsroom-w")
POSTS = ("social-1", "social-2", "social-3")
PREFIXES = ("UPDATE 1-", "UPDATE 2-", "RPT-", "")
LINKS = re.compile(r"\s*(https?://\S+|pic\.twitter\.com/\S+)")


@dataclass(frozen=True)
class Text:
    """One real text: `label` is its sentiment in the set, by ticker for SEntFiN; empty where there is none."""

    title: str
    tickers: tuple[str, ...]
    kind: str
    label: str


def tickers_of(title: str) -> tuple[str, ...]:
    """Tickers by cashtag and by name, as the product's own linking finds them."""
    return tuple(mention.ticker for mention in link(title) if mention.ticker)[:6]


def texts(folder: Path, name: str) -> list[Text]:
    """The texts of one set, cleaned of dead links and doubles."""
    found: dict[str, Text] = {}
    with (folder / f"{name}.jsonl").open(encoding="utf-8") as file:
        for line in file:
            row = json.loads(line)
            title = LINKS.sub("", html.unescape(row["text"])).strip()
            title = re.sub(r"\s+", " ", title)
            if len(title) < 20 or title.endswith(("…", "...")):
                continue
            labels = set(row["entities"].values()) if "entities" in row else {row.get("sentiment", "")}
            label = labels.pop() if len(labels) == 1 else ""
            if name == "sentfin":
                of_ticker = {label for entity, label in row["entities"].items() if SURGE_TICKER in tickers_of(entity)}
                label = of_ticker.pop() if len(of_ticker) == 1 else label
            kind = "news" if name == "sentfin" else "social"
            found.setdefault(title.casefold(), Text(title, tickers_of(title), kind, label))
    return list(found.values())


def times(rng: np.random.Generator, count: int) -> list[datetime]:
    """Sorted times from a Poisson process whose rate follows the hour of the day and drops on weekends."""
    hours = int((END - START).total_seconds() // 3600)
    starts = [START + timedelta(hours=h) for h in range(hours)]
    rates = np.array([HOURS[at.hour] * (WEEKEND if at.weekday() >= 5 else 1.0) for at in starts])
    chosen = rng.choice(hours, count, p=rates / rates.sum())
    return sorted(starts[h] + timedelta(milliseconds=int(rng.integers(3_600_000))) for h in chosen)


def item(text: Text, at: datetime, source: str, title: str | None = None) -> dict[str, Any]:
    """One line of the stream."""
    shown = title or text.title
    digest = hashlib.sha256(f"{source}|{shown}|{at.isoformat()}".encode()).hexdigest()[:16]
    return {
        "id": f"demo-{digest}",
        "published_at": at.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "source": source,
        "url": f"https://example.com/{source}/{digest}",
        "title": shown,
        "lang": "en",
        "tickers": list(text.tickers),
        "kind": text.kind,
    }


def source_of(rng: np.random.Generator, text: Text) -> str:
    """A neutral made-up source of the text's kind."""
    names = POSTS if text.kind == "social" else WIRES
    return str(names[int(rng.integers(len(names)))])


def background(rng: np.random.Generator, pools: dict[str, list[Text]]) -> list[tuple[Text, dict[str, Any]]]:
    """The everyday news: texts in random order at the drawn times, a few of them syndicated by a second source."""
    chosen: list[Text] = []
    for name, share in SHARES.items():
        pool = pools[name]
        picked = rng.permutation(len(pool))[: round(ITEMS * share / (1 + COPIED))]
        chosen += [pool[i] for i in picked]
    order = rng.permutation(len(chosen))
    lines: list[tuple[Text, dict[str, Any]]] = []
    for index, at in zip(order, times(rng, len(chosen)), strict=True):
        text = chosen[index]
        source = source_of(rng, text)
        lines.append((text, item(text, at, source)))
        if text.kind == "news" and rng.random() < COPIED / SHARES["sentfin"]:
            other = str(rng.choice([name for name in WIRES if name != source]))
            later = at + timedelta(minutes=float(rng.uniform(2, 50)))
            if later < END:
                lines.append((text, item(text, later, other, PREFIXES[int(rng.integers(4))] + text.title)))
    return lines


def surge(rng: np.random.Generator, stories: list[Text]) -> list[tuple[Text, dict[str, Any]]]:
    """Distinct negative stories on one company within the surge, thickest in its first half, and copies of them."""
    lines = []
    for text, share in zip(stories, np.sort(rng.beta(1.3, 1.8, len(stories))), strict=True):
        at = SURGE_START + SURGE * float(share)
        lines.append((text, item(text, at, source_of(rng, text))))
    for index in rng.choice(len(stories), SURGE_COPIES, replace=False):
        text, original = lines[index]
        other = str(rng.choice([name for name in WIRES if name != original["source"]]))
        at = datetime.fromisoformat(original["published_at"]) + timedelta(minutes=float(rng.uniform(3, 15)))
        lines.append((text, item(text, at, other, PREFIXES[int(rng.integers(3))] + text.title)))
    return lines


def drawn_chart(rng: np.random.Generator, ticker: str, wanted: Trend) -> Image.Image:
    """A chart of a real window of the ticker's prices that shows `wanted`, in a style that a publisher might use."""
    bars = load_prices()[ticker]
    while True:
        style: Style = replace(random_style(rng), width=int(rng.integers(480, 720)), height=int(rng.integers(300, 420)))
        count = int(rng.integers(25, 130))
        start = int(rng.integers(0, bars.count - count - 40))
        window = bars.between(start, start + count + 40)
        shown = window.between(40, window.count)
        if trend_of(net_move(shown, closes_only=style.kind in CLOSES_ONLY)) is wanted:
            return render(window, replace(style, title=False, notes=0), Viewport(40, window.count))


def add_charts(rng: np.random.Generator, lines: list[tuple[Text, dict[str, Any]]], folder: Path) -> int:
    """Give some items a chart of their own ticker; returns how many."""
    directions = {"negative": Trend.DOWN, "positive": Trend.UP, "neutral": Trend.FLAT}
    prices = load_prices()
    fit = [
        (text, line)
        for text, line in lines
        if text.tickers and text.tickers[0] in prices and text.label in directions and len(text.tickers) <= 2
    ]
    folder.mkdir(parents=True)
    for number, index in enumerate(sorted(rng.permutation(len(fit))[:CHARTS].tolist())):
        text, line = fit[index]
        picture = drawn_chart(rng, text.tickers[0], directions[text.label])
        ending = ("png", "png", "webp", "jpg")[number % 4]
        name = f"{number:02d}-{text.tickers[0]}.{ending}"
        if ending == "png":
            picture.quantize(64).save(folder / name, optimize=True)
        else:
            picture.save(folder / name, quality=82)
        line["chart"] = f"charts/{name}"
    return min(CHARTS, len(fit))


README = """# The demo stream

{items} news items over a week ({start} to {end}, UTC), {charts} of them with a chart. `sentiment-monitor demo`
replays it.

| file | what |
|---|---|
| `stream.jsonl` | news items in the order of their event times; `chart` names the image of an item that has one |
| `charts/` | the images (PNG, WebP, JPEG) |
| `surge.json` | the surge that is planted: key, company, start, minutes, stories |

## What is real
- **The texts.** Headlines from SEntFiN 1.0 (Sinha, Kedas, Kumar, Malo: "SEntFiN 1.0: Entity-aware sentiment analysis
  for financial news", 2022; MIT licence) and tweets from the Twitter Financial News Sentiment and Twitter Financial
  News Topic sets (zeroshot; MIT licence on their cards). They are from those parts of the sets that the shipped model
  may have been trained on: the demo shows how the product works, it measures nothing. Dead links were cut off, HTML
  entities decoded.
- **The prices in the charts.** Daily bars of the company, from StockNet (Xu and Cohen 2018; MIT licence), 2012 to 2017.

## What is drawn
- **Every time.** The sets have no dates. Times come from a seeded random process (`scripts/build_demo_stream.py`):
  more by day than by night, a little less at the weekend.
- **Every source and address.** `wire-a`, `social-1` and the like are no publishers; `example.com` leads nowhere.
- **Who is meant.** Tickers were found in the texts by the product's own linking.
- **Which chart goes with which text.** The window of prices is any that fits the text's label (a falling one for a
  negative text, and so on); it has nothing to do with the event that the text tells of.
- **Copies.** About {copied:.0%} of all items are headlines that come again from another source, some with `UPDATE 1-`
  or `RPT-` before them.
- **The surge.** On the last full day, from {surge_start} on, {stories} headlines about {company} that SEntFiN labels
  negative towards it come within {minutes} minutes, and {copies} of them again as copies. In truth they were written
  over years; such a day never happened. Ordinary news goes on until the next morning, so that the alert is resolved.
"""


def planted() -> dict[str, Any]:
    """What the demo says of the surge before it replays the stream."""
    return {
        "key": f"ticker:{SURGE_TICKER}",
        "company": SURGE_COMPANY,
        "start": SURGE_START.isoformat().replace("+00:00", "Z"),
        "minutes": int(SURGE.total_seconds() // 60),
        "stories": SURGE_STORIES,
    }


def main(folder: Path) -> None:
    """Write the stream, the charts and the README."""
    rng = np.random.default_rng(SEED)
    pools = {name: texts(folder, name) for name in SHARES}
    bad = [t for t in pools["sentfin"] if t.tickers[:1] == (SURGE_TICKER,) and t.label == "negative"]
    if len(bad) < SURGE_STORIES:
        raise SystemExit(f"Only {len(bad)} negative headlines about {SURGE_TICKER}.")
    stories = [bad[i] for i in rng.permutation(len(bad))[:SURGE_STORIES]]
    used = {text.title for text in stories}
    for name, pool in pools.items():
        pools[name] = [text for text in pool if text.title not in used]
    lines = background(rng, pools)
    shutil.rmtree(TARGET, ignore_errors=True)
    charts = add_charts(rng, lines, TARGET / "charts")
    everything = sorted((line for _, line in lines + surge(rng, stories)), key=lambda line: str(line["published_at"]))
    with (TARGET / "stream.jsonl").open("w", encoding="utf-8") as file:
        for line in everything:
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
    (TARGET / "surge.json").write_text(json.dumps(planted(), indent=2) + "\n", encoding="utf-8")
    text = README.format(
        items=len(everything),
        charts=charts,
        start=f"{START:%Y-%m-%d %H:%M}",
        end=f"{END:%Y-%m-%d %H:%M}",
        copied=COPIED,
        surge_start=f"{SURGE_START:%H:%M}",
        stories=len(stories),
        copies=SURGE_COPIES,
        company=f"{SURGE_COMPANY} ({SURGE_TICKER})",
        minutes=int(SURGE.total_seconds() // 60),
    )
    (TARGET / "README.md").write_text(text, encoding="utf-8")
    size = sum(path.stat().st_size for path in TARGET.rglob("*") if path.is_file())
    print(f"{len(everything)} items, {charts} charts, {size} bytes, {len(bad)} negative headlines to choose from")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
