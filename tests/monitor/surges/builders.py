"""Contributions, and a small generator of scored news with planted surges."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import numpy as np

from monitor.records import Contribution, ContributionBatch, SourceWatermark
from monitor.stories import signature

MINUTE = 60_000
START = datetime(2026, 1, 5, tzinfo=UTC)


def contribution(
    item_id: str,
    at: int,
    *,
    key: str = "ticker:A",
    title: str | None = None,
    negative: bool = False,
    p_negative: float | None = None,
    source: str = "s",
) -> Contribution:
    p = (0.9 if negative else 0.1) if p_negative is None else p_negative
    text = f"{item_id} is the headline of item {item_id} number {item_id}" if title is None else title
    return Contribution(
        key=key,
        item_id=item_id,
        at=at,
        p_negative=p,
        score=-p,
        negative=negative,
        signature=signature(text),
        source=source,
        title=text,
    )


def batch(*items: Contribution, at: int | None = None, idle: bool = False, source: str = "news:0") -> ContributionBatch:
    reports = () if at is None else (SourceWatermark(source, at, idle, idle),)
    return ContributionBatch(contributions=items, sources=reports, source_count=1)


def stream(
    seed: int, keys: int, days: int, surges: int, factor: float = 20.0, quiet_days: int = 4
) -> tuple[list[dict[str, object]], list[tuple[str, datetime, datetime, float]]]:
    """Scored items in order of time, and the surges in them: key, start, end, excess of negative stories.

    Rates of 10 to 60 stories a day, a daily season, wandering levels, one volume burst a key, copies.
    """
    g = np.random.default_rng(seed)
    ticks = days * 96
    rate = 10 ** g.uniform(1.0, 1.8, keys) / 96
    hour = (np.arange(ticks) % 96) / 4.0
    season = 0.3 + 1.4 * np.exp(-0.5 * ((hour - 14) / 3.5) ** 2)
    season /= season.mean()
    volume, negatives = np.ones((ticks, keys)), np.ones((ticks, keys))
    for k in range(keys):
        a = int(g.integers(quiet_days * 96, ticks - 96))
        volume[a : a + int(g.integers(4, 24)), k] *= 5.0
    planted = []
    for k in g.choice(keys, surges, replace=False):
        a, length = int(g.integers(quiet_days * 96, ticks - 96)), int(g.integers(8, 24))
        negatives[a : a + length, k] *= factor
        planted.append((int(k), a, a + length))
    level, excess, rows = np.zeros(keys), np.zeros((ticks, keys)), []
    for i in range(ticks):
        level = 0.97 * level + 0.08 * g.normal(size=keys)
        mean = rate * season[i] * np.exp(level - 0.05) * volume[i]
        bad, rest = g.poisson(mean * 0.2 * negatives[i]), g.poisson(mean * 0.8)
        excess[i] = bad - mean * 0.2
        for k in np.flatnonzero(bad + rest):
            for negative in [True] * int(bad[k]) + [False] * int(rest[k]):
                body = " ".join(f"w{j:04d}" for j in g.integers(6000, size=9))
                for c in range(1 + int(g.negative_binomial(1, 0.6))):
                    when = START + timedelta(minutes=15 * i, seconds=float(g.uniform(0, 900)))
                    rows.append((when, int(k), ("UPDATE 1-" if c else "") + body, negative))
    rows.sort(key=lambda row: row[0])
    items: list[dict[str, object]] = [
        {
            "id": f"i{n}",
            "published_at": when.isoformat(),
            "source": f"s{n % 17}",
            "title": title,
            "tickers": [f"K{k}"],
            "topic": f"topic{k % 4}",
            "sentiment": "negative" if negative else "neutral",
            "p_negative": 0.9 if negative else 0.1,
        }
        for n, (when, k, title, negative) in enumerate(rows)
    ]
    at = lambda tick: START + timedelta(minutes=15 * tick)  # noqa: E731
    return items, [(f"ticker:K{k}", at(a), at(b), float(excess[a:b, k].sum())) for k, a, b in planted]
