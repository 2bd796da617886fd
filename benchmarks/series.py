"""Detectors for one count series, held against each other as the Numenta Anomaly Benchmark does (standard profile).

usage: python benchmarks/series.py NAB_FOLDER [--group realTweets]
       python benchmarks/series.py TWEETS.tar.gz [--tickers 6 | --sums] [--seeds 1 2 3]

NAB_FOLDER is a checkout of numenta/NAB: its series and its labelled windows. TWEETS.tar.gz is StockNet's archive of
tweets about shares (tweet/preprocessed/TICKER/DAY, one JSON object with `created_at` a line): the tweets of the most
talked-of tickers are counted by the hour, and level shifts are planted into these counts, six a series, 6 to 48 hours
long and of two to ten times what is usual. With --sums the counts are those of all tickers together, of the ten most
talked-of and of the thirty after them, so that a row has many tweets. Bursts that really happened are in the series,
too, and count as false alarms for every detector alike. Prints one JSON object a seed.
"""

from __future__ import annotations

import argparse
import json
import math
import tarfile
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import gammaln

from monitor.surges.series import Row, SeriesJudge, read_rows

Array = NDArray[np.float64]

# The share of a series in which nothing is scored, at most as of 5,000 rows; the weight of a false alarm.
PROBATION, PROBATION_ROWS, FALSE_WEIGHT = 0.15, 5000, 0.11
SHIFTS, LABEL = 6, timedelta(hours=24)


class Series(NamedTuple):
    """A series and the windows in which an anomaly is to be found (first and last row)."""

    name: str
    rows: list[Row]
    windows: list[tuple[int, int]]


def product(rows: list[Row]) -> Array:
    """What `backtest --scores` writes."""
    judge = SeriesJudge(0.01)
    return np.array([judge.step(row).anomaly_score for row in rows])


def windowed_gaussian(rows: list[Row], window: int = 6400, step: int = 100) -> Array:
    """NAB's: how far in the tail of a normal law with the mean and deviation of the last rows, taken anew every `step`
    rows; as deviations z / (z + 3), which has the order of the tail's probability where that has run into 1."""
    values = np.array([row.value for row in rows])
    scores = np.zeros(len(values))
    mean, deviation = 0.0, 1.0
    for i, value in enumerate(values):
        if i and (i <= window or i % step == 0):
            past = values[max(0, i - window) : i]
            mean, deviation = float(past.mean()), max(float(past.std()), 1e-6)
        z = abs(value - mean) / deviation if i else 0.0
        scores[i] = z / (z + 3.0)
    return scores


def change_point(rows: list[Row], hazard: float = 1 / 250, longest: int = 500) -> Array:
    """Bayesian online change-point detection (Adams and MacKay 2007): the probability that the run is at most two
    rows old; Student t predictive of a normal law with unknown mean and variance."""
    values = np.log1p(np.array([row.value for row in rows]))
    run = np.ones(1)
    mu, kappa, alpha, beta = np.zeros(1), np.ones(1), np.ones(1), np.ones(1)
    scores = np.zeros(len(values))
    for i, x in enumerate(values):
        scale = beta * (kappa + 1.0) / (alpha * kappa)
        log_t = (
            gammaln(alpha + 0.5)
            - gammaln(alpha)
            - 0.5 * np.log(2.0 * np.pi * alpha * scale)
            - (alpha + 0.5) * np.log1p((x - mu) ** 2 / (2.0 * alpha * scale))
        )
        joint = run * np.exp(log_t)
        run = np.append(hazard * joint.sum(), (1.0 - hazard) * joint)
        run /= run.sum()
        new = (
            np.append(0.0, (kappa * mu + x) / (kappa + 1.0)),
            np.append(1.0, kappa + 1.0),
            np.append(1.0, alpha + 0.5),
            np.append(1.0, beta + kappa * (x - mu) ** 2 / (2.0 * (kappa + 1.0))),
        )
        run, (mu, kappa, alpha, beta) = run[:longest], tuple(part[:longest] for part in new)
        # The first rows are a new run anyhow.
        scores[i] = float(run[:3].sum()) if i > 10 else 0.0
    return scores


DETECTORS: dict[str, Callable[[list[Row]], Array]] = {
    "monitor": product,
    "windowed Gaussian": windowed_gaussian,
    "Bayesian change point": change_point,
}


def _sigmoid(x: Array) -> Array:
    return 2.0 / (1.0 + np.exp(5.0 * np.minimum(x, 50.0))) - 1.0


def gains(series: Series) -> tuple[Array, NDArray[np.int64]]:
    """What an alarm in each row is worth, and the number of the window it is in (-1: none, -2: on probation)."""
    count = len(series.rows)
    worth, inside = np.full(count, -1.0), np.full(count, -1, dtype=np.int64)
    for number, (first, last) in enumerate(series.windows):
        width = last - first + 1
        worth[first : last + 1] = _sigmoid(-(last - np.arange(first, last + 1) + 1.0) / width) / _sigmoid(
            np.array(-1.0)
        )
        inside[first : last + 1] = number
        after = np.arange(last + 1, count)
        distance = (after - last) / max(width - 1, 1)
        worth[last + 1 :] = np.where(distance > 3.0, -1.0, _sigmoid(distance))
    worth[inside == -1] *= FALSE_WEIGHT
    inside[: int(PROBATION * min(count, PROBATION_ROWS))] = -2
    return worth, inside


def score(corpus: list[Series], scores: list[Array]) -> dict[str, float]:
    """The corpus score (100: all found at once and nothing else; 0: no alarm ever) at the best threshold for it."""
    prepared = [gains(series) for series in corpus]
    every = np.concatenate([s[inside != -2] for s, (_, inside) in zip(scores, prepared, strict=True)])
    windows = sum(len(set(inside[inside >= 0])) for _, inside in prepared)
    best = {"score": 0.0, "threshold": 1.0, "found": 0, "windows": windows, "false": 0}
    for threshold in np.unique(np.quantile(every, 1.0 - np.geomspace(1e-5, 0.5, 400))):
        raw, found, false = -float(windows), 0, 0
        for s, (worth, inside) in zip(scores, prepared, strict=True):
            alarms = np.flatnonzero((s >= threshold) & (inside != -2))
            outside = alarms[inside[alarms] == -1]
            hit, first = np.unique(inside[alarms[inside[alarms] >= 0]], return_index=True)
            earliest = alarms[inside[alarms] >= 0][first]
            raw += float(worth[outside].sum() + (worth[earliest] + 1.0).sum())
            found, false = found + len(hit), false + len(outside)
        value = 100.0 * (raw + windows) / (2.0 * windows)
        if value > best["score"]:
            best |= {"score": round(value, 1), "threshold": float(threshold), "found": found, "false": false}
    return best


def nab(folder: Path, group: str) -> Iterator[Series]:
    """The series of one group of the benchmark with its windows."""
    labels = json.loads((folder / "labels" / "combined_windows.json").read_text())
    for file in sorted((folder / "data" / group).glob("*.csv")):
        with file.open(encoding="utf-8") as lines:
            rows = list(read_rows(lines, str(file)))
        at = [row.at for row in rows]
        windows = []
        for begin, end in labels[f"{group}/{file.name}"]:
            first, last = (datetime.fromisoformat(time).replace(tzinfo=UTC) for time in (begin, end))
            inside = [i for i, time in enumerate(at) if first <= time <= last]
            windows.append((inside[0], inside[-1]))
        yield Series(file.stem, rows, windows)


# Ranks of tickers whose counts are added up with --sums.
SUMS = {"all": (0, None), "ten most": (0, 10), "thirty next": (10, 40)}


def hourly(archive: Path, tickers: int, *, sums: bool) -> dict[str, Counter[datetime]]:
    """Tweets an hour: about each of the most talked-of tickers, or of `SUMS`."""
    counts: dict[str, Counter[datetime]] = {}
    with tarfile.open(archive) as tar:
        for member in tar:
            file = tar.extractfile(member) if member.isfile() else None
            ticker = Path(member.name).parent.name
            for line in file or ():
                at = datetime.strptime(json.loads(line)["created_at"], "%a %b %d %H:%M:%S %z %Y")
                counts.setdefault(ticker, Counter())[at.replace(minute=0, second=0)] += 1
    most = sorted(counts, key=lambda ticker: (-counts[ticker].total(), ticker))
    if not sums:
        return {ticker: counts[ticker] for ticker in most[:tickers]}
    return {
        name: sum((counts[ticker] for ticker in most[first:last]), Counter()) for name, (first, last) in SUMS.items()
    }


def planted(counts: dict[str, Counter[datetime]], seed: int) -> Iterator[Series]:
    """The counts as series, with level shifts planted."""
    g = np.random.default_rng(seed)
    begin = min(min(of_one) for of_one in counts.values())
    hours = int((max(max(of_one) for of_one in counts.values()) - begin) / timedelta(hours=1)) + 1
    for name, of_one in counts.items():
        values = np.array([of_one[begin + timedelta(hours=h)] for h in range(hours)], dtype=np.float64)
        usual = values.mean()
        starts: list[int] = []
        while len(starts) < SHIFTS:
            start = int(g.integers(int(PROBATION * hours), hours - 72))
            if all(abs(start - other) > 14 * 24 for other in starts):
                starts.append(start)
        for start in starts:
            length, factor = int(g.integers(6, 49)), float(math.exp(g.uniform(math.log(2.0), math.log(10.0))))
            values[start : start + length] += g.poisson(usual * factor, length)
        rows = [Row(str(h), begin + timedelta(hours=h), float(value)) for h, value in enumerate(values)]
        last = int(LABEL / timedelta(hours=1)) - 1
        yield Series(name, rows, sorted((start, start + last) for start in starts))


def main() -> None:
    """Score the detectors on the series named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--group", default="realTweets")
    parser.add_argument("--tickers", type=int, default=6)
    parser.add_argument("--sums", action="store_true")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1])
    options = parser.parse_args()
    if options.data.is_dir():
        corpora = {0: list(nab(options.data, options.group))}
    else:
        counts = hourly(options.data, options.tickers, sums=options.sums)
        corpora = {seed: list(planted(counts, seed)) for seed in options.seeds}
    for seed, corpus in corpora.items():
        result: dict[str, object] = {
            "seed": seed,
            "series": [f"{s.name}: {sum(row.value for row in s.rows) / len(s.rows):.2f} a row" for s in corpus],
            "rows": sum(len(s.rows) for s in corpus),
        }
        for name, detector in DETECTORS.items():
            result[name] = score(corpus, [detector(series.rows) for series in corpus])
        print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
