"""The judge held against the mixture that the design began from, on the same streams at the same rate of false alarms.

usage: python benchmarks/mixture.py [--seeds 400 401 ...] [--keys 200] [--days 24] [--budgets 0.01 0.001] [--stories 2]

The streams are those of `bars.py`. The mixture is p = p(Gamma-Poisson on the count) + .03 p(Beta-binomial on the
share), the smallest over windows of 15 minutes, 1 and 4 hours times their number; a window has to hold `--stories`
negatives. It is judged at every quarter of an hour, its alerts stamped with the beginning of the quarter or with its
end, when they can be known; and at the end of every minute, what is usual learned by minutes or, as the judge does, by
quarters. Season and excursions (calm score and time, hold-off) are the judge's. The bars of the mixture and of `judge`
are set so that the very stream has as many false alarms as the budget; `judge, history` has its bar from a history.

Prints one JSON object a seed, budget and detector; then means, standard deviations and median delays by size of the
surges found; then for each detector those that both it and `judge` have found: their number, both medians, and how many
`judge` found earlier, in the same minute and later.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from statistics import mean, median
from typing import Any, NamedTuple

import numpy as np
from bars import (
    BEGIN,
    DAY_MINUTES,
    SIZES,
    TICK_MINUTES,
    TICKS_A_DAY,
    WARM_DAYS,
    Alarm,
    Surge,
    alarms,
    draw,
    held_against,
    history_of,
    judged,
    minutes,
)
from numpy.typing import NDArray
from scipy.special import betainc

from monitor.surges.judge import Judge, JudgeConfig
from monitor.surges.mixture import mid_p
from monitor.surges.season import Season
from monitor.surges.sightings import Sightings

# All as the design measured the mixture: it is held against as it was, not tuned again.
# In minutes: the largest surges show at once, the smallest after about two hours.
WINDOWS = (15, 60, 240)
# A key's own sums fade by half in 5 days. While it is young it is shrunk to the pool of all keys: so many stories of
# the pool are imagined for its rate and its share. Its burstiness is learned with them, and there is always some left.
HALF_LIFE_DAYS, RATE_STORIES, SHARE_STORIES, MAX_SHAPE = 5.0, 0.3, 2.0, 8.0
# However many stories there are, they tell of the share as 61 do at the most; its p value is added with little weight
# (.01 to .1 do), as both have to be small.
STRENGTH, PI = 60.0, 0.03
# What all keys have more than expected is the market's, not a key's: by so many times at the most, and only where so
# many stories are expected that their number tells something.
HIGHEST, LEAST_EXPECTED = 20.0, 20.0
CONFIG = JudgeConfig()
JUDGE = "judge"
# Minutes a tick, minutes learned at once, and what alerts of a tick are stamped with: 0 its beginning, 1 its end.
MIXTURES = {
    "mixture, quarters by their beginning": (15, 15, 0),
    "mixture, quarters by their end": (15, 15, 1),
    "mixture, minutes": (1, 1, 1),
    "mixture, minutes, learned by quarters": (1, 15, 1),
}
Array = NDArray[np.float64]


class Excursion(NamedTuple):
    """A key's time above calm: the ticks that it was there in, and the highest score up to each."""

    key: int
    ticks: NDArray[np.int64]
    highest: Array


def exposures(stories: NDArray[np.int64]) -> Array:
    """Of each quarter of an hour, in days of mean season, by the `stories` of all keys in those before."""
    season = Season(CONFIG.season_half_life_days, CONFIG.season_day_stories, CONFIG.season_week_stories)
    keep = 0.5 ** (1 / TICKS_A_DAY / HALF_LIFE_DAYS)
    volume = exposure = 0.0
    found = np.zeros(len(stories))
    for tick, seen in enumerate(stories):
        block = BEGIN // TICK_MINUTES + tick
        if exposure > 0.0:
            season.learn(block - 1, float(stories[tick - 1]), volume / exposure / TICKS_A_DAY)
        found[tick] = season.factor(block) / TICKS_A_DAY
        volume, exposure = volume * keep + seen, exposure * keep + found[tick]
    return found


def learn(negatives: Array, stories: Array, exposure: Array, days: float) -> Array:
    """What is usual after so many updates, (3, updates + 1, keys): negatives a day of mean season, their share, and the
    shape of their number; from the counts (updates, keys) and exposure (updates,) of stretches of so many days.

    Negatives and stories are each winsorised at their own mean. All keys are there from the beginning, and their pool
    begins with one imagined story, a fifth of it negative.
    """
    updates, keys = negatives.shape
    keep = 0.5 ** (days / HALF_LIFE_DAYS)
    a, t, b = np.zeros(keys), np.zeros(keys), 0.0
    pool = np.array([0.2, 1.0, 1.0])
    usual = np.zeros((3, updates + 1, keys))
    for i in range(updates + 1):
        pool_rate, pool_share = pool[0] / pool[2], pool[0] / pool[1]
        rate = (a + RATE_STORIES) / (b + RATE_STORIES / pool_rate)
        share = (a + SHARE_STORIES) / (t + SHARE_STORIES / pool_share)
        shape = np.minimum(a + RATE_STORIES, MAX_SHAPE)
        usual[:, i] = rate, share, shape
        if i < updates:
            y, n = (
                np.minimum(seen, mu + 4.0 * np.sqrt(mu + mu * mu / shape) + 1.0)
                for seen, mu in ((negatives[i], rate * exposure[i]), (stories[i], rate / share * exposure[i]))
            )
            a, t, b = a * keep + y, t * keep + n, b * keep + exposure[i]
            pool = pool * keep + np.array([y.sum(), n.sum(), keys * exposure[i]])
    return usual


def scores(counted: NDArray[np.int64], exposure: Array, width: int, learned: int, stories: int) -> Array:
    """-log10 of the mixture's smallest p, (ticks, keys), from counts (2, ticks, keys) of ticks of `width` minutes."""
    ticks, each = counted.shape[1], learned // width
    usual = learn(
        *counted.reshape(2, ticks // each, each, -1).sum(axis=2).astype(np.float64),
        exposure.reshape(-1, each).sum(axis=1),
        learned / DAY_MINUTES,
    )
    # What has left the longest window is known.
    known = np.maximum(np.arange(1, ticks + 1) - max(WINDOWS) // width, 0) // each
    rate, share, shape = usual[:, known]
    sums = np.concatenate([np.zeros_like(counted[:, :1]), counted.cumsum(axis=1)], axis=1)
    exposed = np.concatenate([[0.0], exposure.cumsum()])
    best = np.ones(counted.shape[1:])
    for window in WINDOWS:
        since = np.maximum(np.arange(1, ticks + 1) - window // width, 0)
        y, n = sums[:, 1:] - sums[:, since]
        mu = rate * (exposed[1:] - exposed[since])[:, None]
        odds = share / (1.0 - share) * common(y, n * share)
        mu *= common(y, mu)
        # Where there are not more than expected, p is far from small.
        look = (y >= stories) & (y > mu)
        p = mid_p(y[look].astype(np.float64), mu[look], shape[look])
        p += PI * mid_p_of_share(y[look], n[look], (odds / (1.0 + odds))[look])
        best[look] = np.minimum(best[look], len(WINDOWS) * p)
    return -np.log10(np.clip(best, 1e-300, 1.0))


def common(observed: NDArray[np.int64], expected: Array) -> Array:
    """How many times the expected all keys have together, (ticks, 1), where enough is expected."""
    seen, wanted = observed.sum(axis=1, keepdims=True), expected.sum(axis=1, keepdims=True)
    return np.where(wanted > LEAST_EXPECTED, np.clip(seen / np.maximum(wanted, LEAST_EXPECTED), 1.0, HIGHEST), 1.0)


def mid_p_of_share(x: NDArray[np.int64], n: NDArray[np.int64], share: Array) -> Array:
    """Mid-p value of x or more of n stories, binomial and over-dispersed."""
    worth = (STRENGTH + 1.0) / (STRENGTH + n)
    more = np.where(x < n, betainc((x + 1) * worth, np.maximum(n - x, 1) * worth, share), 0.0)
    return 0.5 * (betainc(x * worth, (n - x + 1) * worth, share) + more)


def excursions(score: Array, width: int) -> Iterator[Excursion]:
    """All of them, key by key."""
    for key, of_key in enumerate(score.T):
        above = np.flatnonzero(of_key >= CONFIG.calm_score)
        for ticks in np.split(above, np.flatnonzero(np.diff(above) > CONFIG.calm_minutes // width) + 1):
            if len(ticks):
                yield Excursion(key, ticks, np.maximum.accumulate(of_key[ticks]))


def fired(found: list[Excursion], width: int, stamp: int, end: int, bar: float) -> list[Alarm]:
    """The alarms of a bar; those that go on are over at minute `end`."""
    raised = [
        Alarm(
            e.key,
            (int(e.ticks[np.searchsorted(e.highest, bar)]) + stamp) * width,
            min((int(e.ticks[-1]) + stamp) * width + CONFIG.calm_minutes, end),
        )
        for e in found
        if e.highest[-1] >= bar
    ]
    return [alarm for alarm in raised if alarm.resolved >= WARM_DAYS * DAY_MINUTES]


def at_rate(
    raised: Callable[[float], list[Alarm]], rate: Callable[[list[Alarm]], float], budget: float, low: float, high: float
) -> list[Alarm]:
    """The alarms of what has false alarms at a rate nearest to the budget, between `low` (more) and `high` (fewer)."""
    more, fewer = raised(low), raised(high)
    for _ in range(20):
        middle = (low + high) / 2
        found = raised(middle)
        if rate(found) > budget:
            low, more = middle, found
        else:
            high, fewer = middle, found
    return min(fewer, more, key=lambda found: abs(rate(found) - budget))


def measure(
    seed: int, keys: int, days: int, budgets: Sequence[float], stories: int
) -> dict[tuple[float, str], dict[str, Any]]:
    """One seed, by budget and detector; `delay` is that of each surge, None: not found."""
    end = days * DAY_MINUTES
    height = history_of(seed, keys, days).height
    g = np.random.default_rng([seed, 2])
    negatives, others, surges = draw(g, keys, days, surges=True)
    counted = minutes(g, negatives, others)

    def rate(raised: list[Alarm]) -> float:
        return float(held_against(surges, raised, keys, days)["false_alarms_per_key_day"])

    found: dict[tuple[float, str], list[Alarm]] = {}
    for budget in budgets:
        sightings = Sightings(JudgeConfig(budget=budget))
        list(judged(Judge(CONFIG, sightings=sightings), counted))

        def by_height(log_height: float, sightings: Sightings = sightings) -> list[Alarm]:
            return alarms(sightings.decide(10.0**log_height), end)

        found[budget, f"{JUDGE}, history"] = by_height(float(np.log10(height)))
        found[budget, JUDGE] = at_rate(by_height, rate, budget, -1.0, 1.0)
    exposure = exposures(counted[1].reshape(-1, TICK_MINUTES, keys).sum(axis=(1, 2), dtype=np.int64))
    for name, (width, learned, stamp) in MIXTURES.items():
        of_ticks = counted.reshape(2, -1, width, keys).sum(axis=2, dtype=np.int64)
        each = np.repeat(exposure, TICK_MINUTES // width) * width / TICK_MINUTES
        rises = list(excursions(scores(of_ticks, each, width, learned, stories), width))
        for budget in budgets:
            raised = partial(fired, rises, width, stamp, end)
            found[budget, name] = at_rate(raised, rate, budget, CONFIG.calm_score, 30.0)
    return {at: held_against(surges, raised, keys, days) | by_surge(surges, raised) for at, raised in found.items()}


def by_surge(surges: list[Surge], raised: list[Alarm]) -> dict[str, Any]:
    """Excess and delay of every surge by itself."""
    alone = [held_against([surge], raised, 1, WARM_DAYS + 1)["delays"] for surge in surges]
    delays = [next((delay for size in sizes for delay in size), None) for sizes in alone]
    return {"excess": [surge.excess for surge in surges], "delay": delays}


def tell(budget: float, name: str, rows: list[dict[str, Any]]) -> None:
    """Means and standard deviations of a detector, and its median delays by size."""
    figures = {
        figure: [round(mean(row[figure] for row in rows), 5), round(float(np.std([row[figure] for row in rows])), 5)]
        for figure in ("false_alarms_per_key_day", "precision", "recall")
    }
    delays = [[delay for row in rows for delay in row["delays"][size]] for size in range(len(SIZES))]
    told = {"budget": budget, "detector": name, "surges": sum(row["surges"] for row in rows)} | figures
    told |= {"found": list(map(len, delays)), "median_delay_min": [median(d) if d else None for d in delays]}
    print(json.dumps(told))


def compare(budget: float, name: str, rows: list[dict[str, Any]], judges: list[dict[str, Any]]) -> None:
    """The delays of a detector and of the judge where both have found a surge, by size."""
    both = [
        (excess, delay, of_judge)
        for row, by_judge in zip(rows, judges, strict=True)
        for excess, delay, of_judge in zip(row["excess"], row["delay"], by_judge["delay"], strict=True)
        if delay is not None and of_judge is not None
    ]
    told: dict[str, Any] = {"budget": budget, "found_by_both": name}
    for low, high in SIZES:
        pairs = [(delay, of_judge) for excess, delay, of_judge in both if low <= excess < high]
        theirs, ours = [[pair[side] for pair in pairs] for side in (0, 1)]
        told[f"{low}-{high:.0f}" if high < 1e9 else f"{low}+"] = {
            "surges": len(pairs),
            "median": median(theirs) if pairs else None,
            "median_of_judge": median(ours) if pairs else None,
            "judge_earlier_same_later": [int(sum(np.sign(b - a) == s for a, b in pairs)) for s in (-1, 0, 1)],
        }
    print(json.dumps(told))


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(400, 408)))
    parser.add_argument("--keys", type=int, default=200)
    parser.add_argument("--days", type=int, default=24)
    parser.add_argument("--budgets", type=float, nargs="+", default=[0.01, 0.001])
    parser.add_argument("--stories", type=int, default=2)
    parser.add_argument("--processes", type=int, default=1)
    o = parser.parse_args()
    told: dict[tuple[float, str], list[dict[str, Any]]] = {}
    with ProcessPoolExecutor(o.processes) as pool:
        jobs = {seed: pool.submit(measure, seed, o.keys, o.days, o.budgets, o.stories) for seed in o.seeds}
        for seed, job in jobs.items():
            for (budget, name), row in job.result().items():
                told.setdefault((budget, name), []).append(row)
                shown = {k: v for k, v in row.items() if k not in ("delays", "delay", "excess")}
                print(json.dumps({"seed": seed, "budget": budget, "detector": name} | shown), flush=True)
    for (budget, name), rows in told.items():
        tell(budget, name, rows)
    for (budget, name), rows in told.items():
        if name != JUDGE:
            compare(budget, name, rows, told[budget, JUDGE])


if __name__ == "__main__":
    main()
