"""Bars for surges of negative stories: false alarms, precision, recall and delay over streams drawn as counts.

usage: python benchmarks/bars.py [--seeds 300 301 ...] [--keys 200] [--days 24] [--budget 0.01] [--processes 1]

A stream has the law of generated news with planted surges: heavy-tailed rates (0.3 to 200 stories a day), season,
levels and shares that wander, benign bursts of all news, copies (a story counts in the minute of its earliest), labels
that are now and then wrong; no texts, and no topics, which have bars of their own. For every seed a stream without
surges is the history. Each minute is judged by the judge itself, once without a history and, by what was seen of keys
above calm, with it. A surge is found when an alert of its key fires in it or up to an hour after it, or up to twelve
hours before it and still fires. Prints one JSON object a seed and bar, then means and standard deviations.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from statistics import mean, median
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from monitor.surges.decisions import Decision, MinuteCounts
from monitor.surges.history import WARM_DAYS, History
from monitor.surges.judge import Judge, JudgeConfig
from monitor.surges.keys import TICKER, epoch_ms
from monitor.surges.sightings import Sightings

TICKS_A_DAY, TICK_MINUTES, DAY_MINUTES = 96, 15, 1440
BEGIN = 29_459_520  # 2026-01-05 00:00 UTC as an epoch minute
WARM = WARM_DAYS * TICKS_A_DAY
# What is labelled negative of the stories that are and of those that are not: the probabilities that Beta(8, 2) and
# Beta(1.5, 8) exceed 1/2.
LABELLED = (0.980, 0.011)
BEFORE, AFTER = 12 * 60, 60
SIZES = ((4, 8), (8, 16), (16, 32), (32, 1e9))
Counts = NDArray[np.int64]


class Surge(NamedTuple):
    """A planted surge: key, first minute and the one after its last, how many negatives more than usual."""

    key: int
    begin: int
    end: int
    excess: float


class Alarm(NamedTuple):
    """An episode: key, and the minutes that it fired and resolved in."""

    key: int
    fired: int
    resolved: int


def draw(g: np.random.Generator, keys: int, days: int, *, surges: bool) -> tuple[Counts, Counts, list[Surge]]:
    """Negative and other stories, arrays (ticks, keys), and the surges among them."""
    ticks = days * TICKS_A_DAY
    t = np.arange(ticks)
    hour, weekday = (t % TICKS_A_DAY) / 4.0, (t // TICKS_A_DAY) % 7
    season = (0.25 + 1.5 * np.exp(-0.5 * ((hour - 14) / 3.5) ** 2)) * np.where(weekday >= 5, 0.3, 1.0)
    season /= season.mean()
    rate = 10 ** g.uniform(-0.5, 2.3, keys) / TICKS_A_DAY
    logit = np.log(0.2 / 0.8) + 0.5 * g.normal(size=keys)
    volume, more = np.ones((ticks, keys)), np.ones((ticks, keys))
    planted: list[tuple[int, int, int]] = []
    for k in range(keys):
        for begin, length in _times(g, ticks, days):
            volume[begin : begin + length, k] *= g.choice([3.0, 6.0, 12.0])
        for begin, length in _times(g, ticks, days):
            factor = g.choice([3.0, 6.0, 12.0, 24.0, 48.0])
            if surges and all(k != other or abs(begin - at) >= 2 * TICKS_A_DAY for other, at, _ in planted):
                more[begin : begin + length, k] *= factor
                planted.append((k, begin, begin + length))
    level, drift = np.zeros(keys), np.zeros(keys)
    negatives, others = np.zeros((ticks, keys), dtype=np.int64), np.zeros((ticks, keys), dtype=np.int64)
    excess = np.zeros((ticks, keys))
    for i in range(ticks):
        level = 0.97 * level + 0.08 * g.normal(size=keys)
        drift = 0.999 * drift + 0.012 * g.normal(size=keys)
        share = 1.0 / (1.0 + np.exp(-(logit + drift)))
        usual = rate * season[i] * np.exp(level - 0.05) * volume[i]
        negatives[i], others[i] = g.poisson(usual * share * more[i]), g.poisson(usual * (1.0 - share))
        excess[i] = negatives[i] - usual * share
    found = [Surge(k, a * TICK_MINUTES, b * TICK_MINUTES, float(excess[a:b, k].sum())) for k, a, b in planted]
    return negatives, others, found


def _times(g: np.random.Generator, ticks: int, days: int) -> Iterator[tuple[int, int]]:
    """First tick and length of things that happen to a key once in twenty days."""
    for _ in range(g.poisson((days - WARM_DAYS) * 0.05)):
        yield int(g.integers(WARM, ticks - TICKS_A_DAY)), int(g.integers(4, 33))


def minutes(g: np.random.Generator, negatives: Counts, others: Counts) -> NDArray[np.int16]:
    """The stories as they are labelled and in their minute, (2, minutes, keys): negatives and all."""
    ticks, keys = negatives.shape
    counted = np.zeros((2, ticks * TICK_MINUTES, keys), dtype=np.int16)
    for counts, labelled in zip((negatives, others), LABELLED, strict=True):
        tick, key = (np.repeat(index, counts[counts > 0]) for index in np.nonzero(counts))
        copies = 1 + g.negative_binomial(1, 0.6, len(tick))
        earliest = 1.0 - (1.0 - g.random(len(tick))) ** (1.0 / copies)
        minute = tick * TICK_MINUTES + np.minimum((earliest * TICK_MINUTES).astype(np.int64), TICK_MINUTES - 1)
        negative = g.random(len(tick)) < labelled
        np.add.at(counted[1], (minute, key), 1)
        np.add.at(counted[0], (minute[negative], key[negative]), 1)
    return counted


def judged(judge: Judge, counted: NDArray[np.int16], first: int = 0) -> Iterator[Decision]:
    """What the judge decides, minute by minute from the first on."""
    names = [f"{TICKER}K{k:04d}" for k in range(counted.shape[2])]
    for minute, (negatives, stories) in enumerate(counted.transpose(1, 0, 2)[first:], start=first):
        there = np.flatnonzero(stories)
        counts = MinuteCounts([names[k] for k in there], stories[there], negatives[there])
        yield from judge.step(BEGIN + minute, counts)


def alarms(decisions: Iterable[Decision], end: int) -> list[Alarm]:
    """The episodes; those that go on are over at minute `end`."""
    found: dict[str, Alarm] = {}
    for decision in decisions:
        minute = epoch_ms(decision.at) // 60_000 - BEGIN
        if decision.action == "fire":
            found[decision.episode_id] = Alarm(int(decision.key.removeprefix(f"{TICKER}K")), minute, end)
        elif decision.action == "resolve":
            found[decision.episode_id] = found[decision.episode_id]._replace(resolved=minute)
    return [alarm for alarm in found.values() if alarm.resolved >= WARM_DAYS * DAY_MINUTES]


def held_against(surges: list[Surge], raised: list[Alarm], keys: int, days: int) -> dict[str, Any]:
    """False alarms a key-day, precision, recall of surges of 4 excess stories or more, and delays by size."""
    used: set[Alarm] = set()
    delays: list[tuple[float, float | None]] = []
    for surge in surges:
        hits = [
            alarm
            for alarm in raised
            if alarm.key == surge.key
            and surge.begin - BEFORE <= alarm.fired < surge.end + AFTER
            and alarm.resolved >= surge.begin
        ]
        used.update(hits)
        delays.append((surge.excess, min((max(hit.fired - surge.begin, 0) for hit in hits), default=None)))
    false = sum(alarm not in used and alarm.fired >= WARM_DAYS * DAY_MINUTES for alarm in raised)
    found = sum(delay is not None for _, delay in delays)
    large = [delay for excess, delay in delays if excess >= SIZES[0][0]]
    return {
        "false_alarms_per_key_day": false / (keys * (days - WARM_DAYS)),
        "precision": found / max(found + false, 1),
        "recall": sum(delay is not None for delay in large) / max(len(large), 1),
        "surges": len(large),
        "delays": [[d for e, d in delays if low <= e < high and d is not None] for low, high in SIZES],
    }


def history_of(seed: int, keys: int, days: int) -> History:
    """What a stream of this seed without surges tells of false alarms."""
    quiet = np.random.default_rng([seed, 1])
    peaks: list[float] = []
    judge = Judge(JudgeConfig(), lambda _key, peak: peaks.append(peak))
    counted = minutes(quiet, *draw(quiet, keys, days, surges=False)[:2])
    warm = WARM_DAYS * DAY_MINUTES
    list(judged(judge, counted[:, :warm]))
    peaks.clear()
    before = judge.key_days
    list(judged(judge, counted, warm))
    return History((*peaks, *judge.peaks_under_way()), judge.key_days - before)


def measure(seed: int, keys: int, days: int, budget: float) -> dict[str, dict[str, Any]]:
    """One seed, by the bar learned online and by the one that begins with the history."""
    end = days * DAY_MINUTES
    history = history_of(seed, keys, days)
    loud = np.random.default_rng([seed, 2])
    negatives, others, surges = draw(loud, keys, days, surges=True)
    config = JudgeConfig(budget=budget)
    sightings = Sightings(config)
    online = alarms(judged(Judge(config, sightings=sightings), minutes(loud, negatives, others)), end)
    known = alarms(sightings.decide(history.height), end)
    return {
        "online": held_against(surges, online, keys, days),
        "history": held_against(surges, known, keys, days) | {"height": history.height},
    }


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(400, 416)))
    parser.add_argument("--keys", type=int, default=200)
    parser.add_argument("--days", type=int, default=24)
    parser.add_argument("--budget", type=float, default=0.01)
    parser.add_argument("--processes", type=int, default=1)
    o = parser.parse_args()
    told: dict[str, list[dict[str, Any]]] = {}
    with ProcessPoolExecutor(o.processes) as pool:
        jobs = {seed: pool.submit(measure, seed, o.keys, o.days, o.budget) for seed in o.seeds}
        for seed, job in jobs.items():
            for bar, row in job.result().items():
                told.setdefault(bar, []).append(row)
                print(
                    json.dumps({"seed": seed, "bar": bar} | {k: v for k, v in row.items() if k != "delays"}), flush=True
                )
    for bar, rows in told.items():
        figures = {
            name: [round(mean(row[name] for row in rows), 5), round(float(np.std([row[name] for row in rows])), 5)]
            for name in ("false_alarms_per_key_day", "precision", "recall")
        }
        delays = [[delay for row in rows for delay in row["delays"][size]] for size in range(len(SIZES))]
        print(
            json.dumps(
                {"bar": bar, "surges": sum(row["surges"] for row in rows)}
                | figures
                | {"median_delay_min": [median(of_size) if of_size else None for of_size in delays]}
            )
        )


if __name__ == "__main__":
    main()
