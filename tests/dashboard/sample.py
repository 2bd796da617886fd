"""A store with a day and a half of news in it, a surge on one company, and everything an analyst may look at.

Written through the functions that the worker, the aggregator, the judge and the notifier use themselves.
"""

from __future__ import annotations

import io
import random
from datetime import UTC, datetime, timedelta
from typing import Any

from PIL import Image, ImageDraw

from monitor.pairing import Group
from monitor.records import (
    AppliedRule,
    Chart,
    ChartScore,
    ContributionBatch,
    EntityScore,
    Modality,
    NewsItem,
    ScoredItem,
    SentimentScore,
    SourceWatermark,
    TopicScore,
    Trend,
)
from monitor.storage.alerts import record_decisions
from monitor.storage.checkpoint import ContributionRecord, PartitionCheckpoint
from monitor.storage.dead_letters import DeadLetter, LetterId, store_dead_letters
from monitor.storage.engine import writing
from monitor.storage.items import Picture, store_scored
from monitor.surges.counting import CountingConfig
from monitor.surges.decisions import Decision, episode_id
from monitor.surges.keys import contributions, epoch_ms
from monitor.taxonomy import bundled_taxonomy

END = datetime(2026, 3, 12, 20, 0, tzinfo=UTC)
SURGE_AT = END - timedelta(hours=3)
HOSTILE_ID = "hostile-1"
CHART_ITEM = "with-chart-1"
SURGE_KEY = "ticker:BA"
ALERT_ID = episode_id("surge", SURGE_KEY, epoch_ms(SURGE_AT + timedelta(minutes=12)) // 60_000)

COMPANIES = {
    "AAPL": "Apple",
    "MSFT": "Microsoft",
    "BA": "Boeing",
    "JPM": "JPMorgan",
    "XOM": "Exxon Mobil",
    "PFE": "Pfizer",
    "TSLA": "Tesla",
    "KO": "Coca-Cola",
    "GM": "General Motors",
    "NFLX": "Netflix",
    "INTC": "Intel",
    "WMT": "Walmart",
}
SOURCES = ("Reuters", "Bloomberg", "CNBC", "MarketWatch", "Financial Times", "Barron's", "Seeking Alpha")
SENTENCES = {
    "negative": (
        ("earnings", "{} misses quarterly estimates as costs climb in {}"),
        ("analyst_update", "Analyst cuts {} to underperform, sees weaker demand in {}"),
        ("legal_regulation", "Regulator opens inquiry into {} over {} practices"),
        ("stock_movement", "{} shares slide after warning about {}"),
    ),
    "neutral": (
        ("company_product_news", "{} to present its {} plans at an investor day"),
        ("personnel_change", "{} names new head of {}"),
        ("dividend", "{} keeps its dividend unchanged, looks at {}"),
        ("markets", "What to watch: {} reports on {} this week"),
    ),
    "positive": (
        ("earnings", "{} beats profit forecasts on strong {} sales"),
        ("analyst_update", "{} raised to buy on improving {} outlook"),
        ("m_and_a_investments", "{} wins a large order for its {} business"),
        ("stock_movement", "{} climbs to a yearly high on {} hopes"),
    ),
}
FIELDS = ("cloud", "Europe", "supply", "retail", "energy", "software", "China", "logistics", "batteries", "services")
WORDS = [
    "margins",
    "orders",
    "quarter",
    "investors",
    "guidance",
    "demand",
    "pricing",
    "contract",
    "region",
    "customers",
    "plant",
    "capacity",
    "filing",
    "board",
    "holders",
    "season",
    "outlook",
    "exports",
    "costs",
    "wages",
    "rivals",
    "launch",
    "patent",
    "review",
    "audit",
    "lawsuit",
    "merger",
    "buyback",
    "bonds",
    "rating",
    "inventory",
    "freight",
    "tariffs",
    "currency",
    "subsidy",
    "licence",
    "approval",
    "delay",
    "recall",
    "upgrade",
    "forecast",
    "spending",
    "hiring",
    "layoffs",
    "strategy",
    "partner",
    "division",
    "retail",
    "wholesale",
    "digital",
    "battery",
    "engine",
    "network",
    "chips",
    "drug",
    "trial",
    "store",
    "stream",
    "traffic",
]
SURGE = (
    "Boeing halts deliveries after cracks are found in wing parts",
    "Airlines ground Boeing jets while inspectors look for cracks",
    "Boeing faces probe as regulator orders fleet inspections",
    "Boeing shares tumble as carriers cancel flights",
    "Suppliers of Boeing fall after production is stopped",
    "Boeing whistleblower says warnings about wing parts were ignored",
    "Senators call Boeing's chief to a hearing about grounded jets",
    "Boeing bonds weaken as rating agency threatens a downgrade",
    "Unions say Boeing rushed inspections of wing parts",
    "Boeing insurer expects large claims over grounded fleet",
    "Ryanair demands compensation from Boeing for cancelled flights",
    "Analysts slash Boeing targets after delivery stop",
)


def chart_png(seed: int = 1, *, points: int = 60) -> bytes:
    """A falling candlestick chart."""
    rng = random.Random(seed)
    image = Image.new("RGB", (640, 360), "white")
    draw = ImageDraw.Draw(image)
    price = 90.0
    for number in range(points):
        opened, price = price, price + rng.gauss(-0.9, 2.0)
        x = 12 + number * 10
        low, high = min(opened, price) - rng.random() * 2, max(opened, price) + rng.random() * 2
        colour = "#2f86cf" if price >= opened else "#d9651e"
        draw.line((x + 3, 340 - high * 3, x + 3, 340 - low * 3), fill=colour)
        top, bottom = sorted((340 - opened * 3, 340 - price * 3))
        draw.rectangle((x, top, x + 6, bottom + 1), fill=colour)
    out = io.BytesIO()
    image.save(out, "PNG")
    return out.getvalue()


def _sentiment(rng: random.Random, label: str) -> SentimentScore:
    sure = rng.uniform(0.6, 0.97)
    rest = rng.random() * (1 - sure)
    others = [rest, 1 - sure - rest]
    order = ("negative", "neutral", "positive")
    return SentimentScore.of(sure if name == label else others.pop() for name in order)


def scored(
    rng: random.Random, number: str, at: datetime, label: str, topic: str, title: str, ticker: str, **more: Any
) -> ScoredItem:
    """One scored item as the engine makes them."""
    sentiment = _sentiment(rng, label)
    names = bundled_taxonomy().labels
    weights = {name: rng.random() * 0.01 for name in names}
    weights[topic] = 1.0 - sum(value for name, value in weights.items() if name != topic)
    name = COMPANIES.get(ticker, "")
    fields: dict[str, Any] = {
        "id": number,
        "published_at": at,
        "title": title,
        "source": rng.choice(SOURCES),
        "url": f"https://news.example/{number}",
        "lang": "en",
        "tickers": (ticker,) if ticker else (),
        "sentiment": sentiment,
        "topic": TopicScore(label=topic, probabilities=weights),
        "entities": (EntityScore(name=name, ticker=ticker, sentiment=sentiment),) if name and name in title else (),
        "modality": Modality.TEXT,
        "model_version": "default-2026.03",
        "scored_at": at + timedelta(seconds=2),
    }
    return ScoredItem(**(fields | more))


def make_items(count: int = 900, hours: float = 36, seed: int = 7) -> list[ScoredItem]:
    """Items in order of time: quiet news, a surge, an item with a chart, one that tries to break the page."""
    rng = random.Random(seed)
    items: list[ScoredItem] = []
    for number in range(count):
        at = END - timedelta(hours=hours * rng.random() ** 1.15)
        label = rng.choices(("negative", "neutral", "positive"), (0.2, 0.45, 0.35))[0]
        topic, sentence = rng.choice(SENTENCES[label])
        ticker = rng.choice(list(COMPANIES))
        title = sentence.format(COMPANIES[ticker], rng.choice(FIELDS))
        # Words enough to tell the stories apart: otherwise they would count as copies of one.
        title = f"{title}: {' '.join(rng.choices(WORDS, k=5))}"
        body = f"{' '.join(rng.choices(WORDS, k=22)).capitalize()}."
        items.append(scored(rng, f"n{number}", at, label, topic, title, ticker, body=body))
    for number in range(70):
        at = SURGE_AT + timedelta(minutes=rng.expovariate(1 / 22))
        title = SURGE[number % len(SURGE)]
        topic = rng.choice(("legal_regulation", "stock_movement", "company_product_news"))
        if number >= len(SURGE) and rng.random() < 0.4:
            title = f"{title}, {rng.choice(('says', 'writes'))} {rng.choice(SOURCES)} {rng.choice(FIELDS)} desk"
        body = f"{title}. The company did not answer questions about {rng.choice(FIELDS)}. More follows."
        items.append(scored(rng, f"s{number}", at, "negative", topic, title, "BA", body=body))
    items.append(
        scored(
            rng,
            HOSTILE_ID,
            END - timedelta(minutes=4),
            "negative",
            "politics",
            '<img src=x onerror="document.title=1"> **bold** [click](javascript:alert(1)) :red[x] $x^2$ `code`',
            "KO",
            url="javascript:alert(document.domain)",
            source="<script>alert(1)</script>",
            body="</div><script>document.title='broken'</script> <b>not bold</b>",
            entities=(
                EntityScore(name="<i>Coca-Cola</i> [x](javascript:alert(2))", sentiment=_sentiment(rng, "negative")),
            ),
        )
    )
    items.append(
        scored(
            rng,
            CHART_ITEM,
            END - timedelta(minutes=2),
            "negative",
            "stock_movement",
            "Intel slides for a third session, chart shows",
            "INTC",
            body="The shares of Intel lost ground again.\n\nVolume was above the average of the past month.",
            chart_ids=("chart-1",),
            modality=Modality.BOTH,
            flags=("text_truncated", "rule:trading_halt"),
            rules=(
                AppliedRule(
                    name="trading_halt",
                    effect="not_positive",
                    why="A halt of trading is never good news in itself.",
                    words="halts <b>trading</b>",
                    before=SentimentScore.of((0.1, 0.27, 0.63)),
                    entity="Intel",
                ),
            ),
            chart=ChartScore(chart_id="chart-1", label=Trend.DOWN, down=0.86, flat=0.1, up=0.04, p_chart=0.99),
        )
    )
    return sorted(items, key=lambda item: item.published_at)


def store_items(engine: Any, items: list[ScoredItem], images: dict[str, bytes] | None = None) -> None:
    """What the worker and the aggregator leave in the store once they have seen these items."""
    images = images or {}
    checkpoint = PartitionCheckpoint(engine, 0, CountingConfig())
    for start in range(0, len(items), 256):
        batch = items[start : start + 256]
        groups = []
        for item in batch:
            news = NewsItem(
                id=item.id, published_at=item.published_at, title=item.title, body=item.body, chart_ids=item.chart_ids
            )
            charts = {
                name: Chart(chart_id=name, image=images[name], published_at=item.published_at, item_id=item.id)
                for name in item.chart_ids
                if name in images
            }
            groups.append((Group(news, charts), item, contributions(item)))
        pictures = {name: Picture("image/png", 640, 360) for name in images}
        last = batch[-1] is items[-1]
        contributed = ContributionBatch(
            contributions=tuple(c for _, _, found in groups for c in found),
            sources=(SourceWatermark("news:0", epoch_ms(batch[-1].published_at), last, last),),
            source_count=1,
        )
        with writing(engine) as connection:
            store_scored(connection, groups, pictures)
        checkpoint.apply([ContributionRecord(start // 256, contributed)])


def surge_decision(action: str = "fire", **more: Any) -> Decision:
    """The judge's word on the surge."""
    fired = SURGE_AT + timedelta(minutes=12)
    fields: dict[str, Any] = {
        "action": action,
        "episode_id": ALERT_ID,
        "rule": "surge",
        "key": SURGE_KEY,
        "at": SURGE_AT + timedelta(minutes=60),
        "started_at": SURGE_AT + timedelta(minutes=2),
        "fired_at": fired,
        "window_minutes": 60,
        "observed": 31,
        "expected": 0.9,
        "stories": 33,
        "share": 31 / 33,
        "expected_share": 0.21,
        "p_value": 3.2e-17,
        "score": 16.5,
        "severity": "critical",
    }
    return Decision(**(fields | more))


def fill(engine: Any, *, count: int = 900) -> None:
    """Everything at once."""
    store_items(engine, make_items(count), {"chart-1": chart_png()})
    market = surge_decision(
        episode_id=episode_id("surge", "topic:legal_regulation", 1),
        key="topic:legal_regulation",
        observed=14,
        expected=4.2,
        stories=19,
        share=14 / 19,
        expected_share=0.5,
        p_value=4e-4,
        severity="warning",
    )
    over = {"at": SURGE_AT + timedelta(minutes=130)}
    with writing(engine) as connection:
        for decision in (surge_decision(), market, surge_decision("resolve", **_like(market), **over)):
            record_decisions(connection, [decision], dashboard_url="http://127.0.0.1:8501")
        store_dead_letters(
            connection,
            [
                DeadLetter(
                    id=LetterId("news", 2, 1041),
                    code="bad_json",
                    reason="The record is not JSON: <b>unexpected</b> character (byte 17).",
                    failed_at=END,
                )
            ],
        )


def _like(decision: Decision) -> dict[str, Any]:
    return {name: getattr(decision, name) for name in decision.__struct_fields__ if name not in ("action", "at")}
