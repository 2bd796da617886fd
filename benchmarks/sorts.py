"""False alarms and surges found by the judge of each sort of surge, over streams drawn as counts.

usage: python benchmarks/sorts.py [--seeds 6] [--first 1] [--keys 200] [--days 24] [--budget 0.01] [--sorts ...]

A stream is what makes real news hard: heavy-tailed rates (0.3 to 200 stories a day), season, levels that wander,
shares of negatives and positives that drift and, unless what is watched is the volume, bursts of all news. For every
seed a stream without surges is the history, another without surges counts the false alarms of the bar that begins with
it and of the one that begins without, and a third with planted surges of the sort counts those found, of 4 excess
stories or more. Prints one JSON object a sort.
"""

from __future__ import annotations

import argparse
import json
from concurrent.futures import ProcessPoolExecutor
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from monitor.surges.budget import height_from_history
from monitor.surges.decisions import MinuteCounts
from monitor.surges.history import WARM_DAYS
from monitor.surges.judge import Judge, JudgeConfig
from monitor.surges.sorts import NEGATIVE, POSITIVE, SURGES, VOLUME

TICKS_A_DAY, TICK_MINUTES, TOPICS = 96, 15, 6
BEGIN = 29_453_760  # 2026-01-01 00:00 UTC as an epoch minute
WARM = WARM_DAYS * TICKS_A_DAY
Array = NDArray[np.float64]


class Surge(NamedTuple):
    """A planted surge: key, first and last tick, how many stories more than usual."""

    key: int
    begin: int
    end: int
    excess: float


class Stream(NamedTuple):
    """Stories, negatives and positives, arrays (ticks, keys), and the surges among them."""

    stories: NDArray[np.int64]
    negatives: NDArray[np.int64]
    positives: NDArray[np.int64]
    surges: list[Surge]


def draw(seed: int, keys: int, days: int, sort: str, *, surges: bool) -> Stream:
    """A stream; with `surges` those of the sort in it, about one in twenty days of a key after the first eight."""
    g = np.random.default_rng(seed)
    ticks = days * TICKS_A_DAY
    t = np.arange(ticks)
    hour, weekday = (t % TICKS_A_DAY) / 4.0, (t // TICKS_A_DAY) % 7
    season = (0.25 + 1.5 * np.exp(-0.5 * ((hour - 14) / 3.5) ** 2)) * np.where(weekday >= 5, 0.3, 1.0)
    season /= season.mean()
    rate = 10 ** g.uniform(-0.5, 2.3, keys) / TICKS_A_DAY
    usual, more, planted = np.ones((ticks, keys)), np.ones((ticks, keys)), []
    if sort != VOLUME:
        for k, begin, length in _times(g, keys, ticks, days):
            usual[begin : begin + length, k] *= g.choice([3.0, 6.0, 12.0])
    for k, begin, length in _times(g, keys, ticks, days) if surges else ():
        if all(k != other or abs(begin - since) >= 2 * TICKS_A_DAY for other, since, _ in planted):
            more[begin : begin + length, k] *= g.choice([3.0, 6.0, 12.0, 24.0] if sort != VOLUME else [3.0, 6.0, 12.0])
            planted.append((k, begin, begin + length))
    level, drift = np.zeros(keys), np.zeros((2, keys))
    logit = np.log([[0.2 / 0.8], [0.4 / 0.6]]) + 0.5 * g.normal(size=(2, keys))
    counts = np.zeros((3, ticks, keys), dtype=np.int64)
    excess = np.zeros((ticks, keys))
    for i in range(ticks):
        level = 0.97 * level + 0.08 * g.normal(size=keys)
        drift = 0.999 * drift + 0.012 * g.normal(size=(2, keys))
        negative, of_rest = 1.0 / (1.0 + np.exp(-(logit + drift)))
        mean = rate * season[i] * np.exp(level - 0.05) * usual[i]
        means = mean * np.array([negative, (1.0 - negative) * of_rest, (1.0 - negative) * (1.0 - of_rest)])
        factor = np.array([more[i] if sort in (own, VOLUME) else np.ones(keys) for own in (NEGATIVE, POSITIVE, "")])
        counts[:, i] = g.poisson(means * factor)
        watched = slice(0, 3) if sort == VOLUME else slice(SURGES.index(sort), SURGES.index(sort) + 1)
        excess[i] = (counts[watched, i] - means[watched]).sum(axis=0)
    found = [Surge(k, begin, end, float(excess[begin:end, k].sum())) for k, begin, end in planted]
    return Stream(counts.sum(axis=0), counts[0], counts[1], found)


def _times(g: np.random.Generator, keys: int, ticks: int, days: int) -> list[tuple[int, int, int]]:
    """Key, first tick and length of things that happen once in twenty days of a key."""
    return [
        (k, int(g.integers(WARM, ticks - TICKS_A_DAY)), int(g.integers(4, 33)))
        for k in range(keys)
        for _ in range(g.poisson((days - WARM_DAYS) * 0.05))
    ]


class Run(NamedTuple):
    """What a judge made of a stream after its first days: peaks of excursions, key-days, and alarms of tickers as
    (key, tick of firing, tick of resolving)."""

    peaks: list[float]
    key_days: float
    alarms: list[tuple[int, int, int]]


def judge(stream: Stream, config: JudgeConfig) -> Run:
    """Minute by minute; the stories of a tick spread evenly over its minutes."""
    ticks, keys = stream.stories.shape
    names = [f"ticker:K{k:04d}" for k in range(keys)] + [f"topic:{i}" for i in range(TOPICS)]
    g = np.random.default_rng(1)
    peaks: list[float] = []
    judged = Judge(config, lambda _key, peak: peaks.append(peak))
    fired: dict[str, tuple[int, int]] = {}
    alarms: list[tuple[int, int, int]] = []
    before = 0.0
    for i in range(ticks):
        if i == WARM:
            peaks.clear()
            before = judged.key_days
        rows = np.zeros((TICK_MINUTES, 3, keys), dtype=np.int64)
        parts = (
            stream.negatives[i],
            stream.positives[i],
            stream.stories[i] - stream.negatives[i] - stream.positives[i],
        )
        for column, part in enumerate(parts):
            at = np.repeat(np.arange(keys), part)
            np.add.at(rows, (g.integers(TICK_MINUTES, size=len(at)), column, at), 1)
        for offset, minute in enumerate(rows):
            topics = np.stack([minute[:, topic::TOPICS].sum(axis=1) for topic in range(TOPICS)], axis=1)
            counted = np.concatenate([minute, topics], axis=1)
            there = np.flatnonzero(counted.sum(axis=0))
            counts = MinuteCounts(
                [names[k] for k in there], counted[:, there].sum(axis=0), counted[0, there], counted[1, there]
            )
            for decision in judged.step(BEGIN + i * TICK_MINUTES + offset, counts):
                if not decision.key.startswith("ticker:"):
                    continue
                if decision.action == "fire":
                    fired[decision.episode_id] = (int(decision.key[8:]), i)
                elif decision.action == "resolve":
                    alarms.append((*fired.pop(decision.episode_id), i))
    alarms += [(*begun, ticks) for begun in fired.values()]
    return Run([*peaks, *judged.peaks_under_way()], judged.key_days - before, [a for a in alarms if a[2] >= WARM])


def false_alarms(stream: Stream, run: Run) -> tuple[int, list[float]]:
    """How many alarms lie in no surge, and the delays in minutes of the surges found of 4 or more (-1: not found)."""
    used, delays = set(), []
    for surge in stream.surges:
        hits = [
            a
            for a in run.alarms
            if a[0] == surge.key and surge.begin - 48 <= a[1] < surge.end + 4 and a[2] >= surge.begin
        ]
        used.update(hits)
        if surge.excess >= 4.0:
            delays.append(min((max(a[1] - surge.begin, 0) * TICK_MINUTES for a in hits), default=-1.0))
    return len([a for a in run.alarms if a not in used and a[1] >= WARM]), delays


def measure(sort: str, seed: int, keys: int, days: int, budget: float) -> dict[str, float | list[float]]:
    """One seed: see the module."""
    config = JudgeConfig(budget=budget).watching(sort)
    quiet = draw(seed, keys, days, sort, surges=False)
    history = judge(quiet, config)
    height = height_from_history(history.peaks, history.key_days)
    known = JudgeConfig(budget=budget, height=height).watching(sort)
    other = draw(seed + 10_000, keys, days, sort, surges=False)
    judged = judge(other, known)
    surging = draw(seed + 20_000, keys, days, sort, surges=True)
    found = judge(surging, known)
    false, delays = false_alarms(surging, found)
    return {
        "height": height,
        "history": false_alarms(other, judged)[0] / judged.key_days,
        "online": false_alarms(quiet, history)[0] / history.key_days,
        "with_surges": false / found.key_days,
        "surges": len(delays),
        "delays": delays,
        "peaks": history.peaks + judged.peaks,
        "key_days": history.key_days + judged.key_days,
    }


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=6)
    parser.add_argument("--first", type=int, default=1)
    parser.add_argument("--keys", type=int, default=200)
    parser.add_argument("--days", type=int, default=24)
    parser.add_argument("--budget", type=float, default=0.01)
    parser.add_argument("--sorts", nargs="*", choices=SURGES, default=SURGES)
    parser.add_argument("--processes", type=int, default=1)
    o = parser.parse_args()
    with ProcessPoolExecutor(o.processes) as pool:
        for sort in o.sorts:
            jobs = [
                pool.submit(measure, sort, seed, o.keys, o.days, o.budget) for seed in range(o.first, o.first + o.seeds)
            ]
            rows = [job.result() for job in jobs]
            delays = [delay for row in rows for delay in row["delays"]]  # type: ignore[union-attr]
            caught = [delay for delay in delays if delay >= 0]
            peaks = np.array([peak for row in rows for peak in row["peaks"]])  # type: ignore[union-attr]
            key_days = sum(row["key_days"] for row in rows)  # type: ignore[misc]
            tail = {x: int((peaks >= x).sum()) / key_days for x in np.arange(1.5, 6.1, 0.5).tolist()}
            told = {
                "sort": sort,
                "heights": [round(row["height"], 2) for row in rows],  # type: ignore[arg-type]
                **{
                    name: [round(row[name], 4) for row in rows]
                    + [round(float(np.mean([row[name] for row in rows])), 4)]  # type: ignore[arg-type]
                    for name in ("history", "online", "with_surges")
                },
                "surges": len(delays),
                "recall": round(len(caught) / max(len(delays), 1), 3),
                "median_delay_min": float(np.median(caught)) if caught else None,
                "log10_peaks_above_a_key_day": {
                    x: round(float(np.log10(rate)), 2) if rate else None for x, rate in tail.items()
                },
            }
            print(json.dumps(told), flush=True)


if __name__ == "__main__":
    main()
