"""The judge: what must and must not change its decisions, and what it says about itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from monitor.surges.decisions import Decision, MinuteCounts, episode_id
from monitor.surges.judge import Judge, JudgeConfig
from monitor.surges.sorts import SURGES

WEEK = 7 * 24 * 60
DAY = 24 * 60
# Short windows and a few hours of history are enough to judge by here, so that the tests need not replay weeks.
CONFIG = JudgeConfig(windows=(5, 15, 60), min_age_minutes=240, calm_minutes=20, bar=3.5)

# Stories, negatives and, where there are any, positives.
Minute = Mapping[str, tuple[int, ...]]


def counts(minute: Minute) -> MinuteCounts:
    rows = [(*row, 0)[:3] for row in minute.values()]
    return MinuteCounts(list(minute), *np.array(rows, dtype=np.int64).reshape(-1, 3).T)


def scenario(seed: int, minutes: int = 480, keys: int = 8, surge: bool = True) -> dict[int, Minute]:
    """Counts by minute after a start: every key quietly active, the first with a surge from minute 360 on."""
    g = np.random.default_rng(seed)
    rate = 10 ** g.uniform(-1.5, -0.7, keys)
    rate[0] = 0.05
    made: dict[int, Minute] = {}
    for minute in range(minutes):
        negative, rest = g.poisson(rate * 0.2), g.poisson(rate * 0.8)
        if surge and 360 <= minute < 400:
            negative[0] += g.poisson(0.5)
        tickers = {f"ticker:K{k}": (int(negative[k] + rest[k]), int(negative[k])) for k in range(keys)}
        topics: dict[str, tuple[int, int]] = {}
        for k in range(keys):
            n, y = topics.get(f"topic:{k % 3}", (0, 0))
            topics[f"topic:{k % 3}"] = (n + int(negative[k] + rest[k]), y + int(negative[k]))
        made[minute] = {key: value for key, value in (tickers | topics).items() if value[0]}
    return made


def judged(made: Mapping[int, Minute], start: int, config: JudgeConfig = CONFIG) -> tuple[list[Decision], Judge]:
    judge = Judge(config)
    decisions = [d for minute in sorted(made) for d in judge.step(start + minute, counts(made[minute]))]
    return decisions, judge


def shape(decisions: list[Decision], rename: Callable[[str], str] = str) -> set[tuple[object, ...]]:
    return {
        (d.action, rename(d.key), d.at, d.window_minutes, d.observed, d.stories, round(d.score, 6)) for d in decisions
    }


START = 2922 * WEEK


def test_a_surge_fires_explains_itself_and_resolves() -> None:
    decisions, judge = judged(scenario(1), START)
    mine = [d for d in decisions if d.key == "ticker:K0"]
    assert [d.action for d in mine if d.action != "update"] == ["fire", "resolve"]
    fire, resolve = mine[0], mine[-1]
    assert fire.episode_id == resolve.episode_id
    begun = int(fire.started_at.timestamp()) // 60
    assert fire.episode_id == episode_id("negative-surge", "ticker:K0", begun)
    assert START + 360 <= begun <= START + 380
    assert fire.observed >= 3 > 2 * fire.expected
    assert fire.score >= 3.5
    assert fire.p_value == pytest.approx(10**-fire.score)
    assert fire.share > fire.expected_share
    assert judge.explain("ticker:K0").verdict in {"below_bar", "too_few_stories"}
    assert judge.explain("ticker:none").verdict == "unknown"


def test_the_score_is_the_harmonic_mean_of_the_windows_p_values_weighed_by_their_length() -> None:
    judge = judged({m: row for m, row in scenario(1).items() if m < 385}, START)[1]
    standing = judge.explain("ticker:K0")
    weights = np.array([window.minutes for window in standing.windows]) ** CONFIG.window_weight
    p = np.array([window.p_value for window in standing.windows])
    assert standing.score > 1.0
    assert standing.score == pytest.approx(np.log10((weights / weights.sum() / p).sum()))
    assert standing.score < -np.log10(p.min())


def of_sort(made: Mapping[int, Minute], surge: str) -> dict[int, Minute]:
    """The same stories with what is negative positive instead, or with as many more neutral ones."""
    change: dict[str, Callable[[int, int], tuple[int, ...]]] = {
        "negative": lambda n, y: (n, y),
        "positive": lambda n, y: (n, 0, y),
        "volume": lambda n, y: (n + y, 0, 0),
    }
    return {m: {key: change[surge](*row[:2]) for key, row in minute.items()} for m, minute in made.items()}


@pytest.mark.parametrize("surge", SURGES)
def test_a_planted_surge_is_found_by_the_judge_of_its_sort_alone(surge: str) -> None:
    made = {m: dict(minute) for m, minute in scenario(1, surge=False).items()}
    for m, minute in made.items():
        n, y = minute.get("ticker:K1", (0, 0))
        # A story a minute, which turns negative or positive; or three, which say nothing.
        more = (
            {"negative": (1, 1, 0), "positive": (1, 0, 1), "volume": (3, 0, 0)}[surge] if 360 <= m < 390 else (1, 0, 0)
        )
        minute["ticker:K1"] = (n + more[0], y + more[1], more[2])
    found = {}
    for watched in SURGES:
        decisions, judge = judged(made, START, CONFIG.watching(watched))
        found[watched] = {d.key for d in decisions if d.action == "fire"}
        for d in decisions:
            assert (d.surge, d.rule) == (watched, f"{watched}-surge")
            assert d.share == pytest.approx(d.observed / d.stories)
            assert watched != "volume" or (d.share, d.expected_share) == (1.0, 1.0)
        assert judge.explain("ticker:K1").surge == watched
    assert found == {sort: {"ticker:K1"} if sort == surge else set() for sort in SURGES}


def test_negative_and_positive_are_judged_by_the_same_statistic() -> None:
    made = scenario(1)
    negative = judged(made, START)[0]
    positive = judged(of_sort(made, "positive"), START, CONFIG.watching("positive"))[0]
    assert shape(positive) == shape(negative)
    assert len({d.episode_id for d in (*negative, *positive)}) == 2 * len({d.episode_id for d in negative})


def test_quiet_keys_raise_nothing() -> None:
    fired = [d for seed in range(3) for d in judged(scenario(seed, surge=False), START)[0] if d.action == "fire"]
    assert fired == []


def test_a_young_key_abstains_and_says_so() -> None:
    decisions, judge = judged(scenario(1), START, msgspec.structs.replace(CONFIG, min_age_minutes=DAY))
    assert decisions == []
    standing = judge.explain("ticker:K0")
    assert standing.verdict == "too_young"
    assert "24" in standing.reason


def test_minimum_evidence() -> None:
    made: dict[int, Minute] = {minute: {"ticker:B": (1, 0)} if minute % 7 == 0 else {} for minute in range(400)}
    made[0] = {"ticker:B": (1, 0), "ticker:A": (1, 0)}
    made |= {390: {"ticker:A": (2, 2)}}
    few, judge = judged(made, START)
    assert few == []
    assert judge.explain("ticker:A").verdict == "too_few_stories"
    made |= {390: {"ticker:A": (6, 6)}}
    assert [d.key for d in judged(made, START)[0]] == ["ticker:A"]


def test_the_market_is_the_sum_of_topics() -> None:
    made: dict[int, Minute] = {
        m: {"topic:a": (4, 1), "topic:b": (3, 1)} if m < 800 else {"topic:a": (8, 6), "topic:b": (7, 5)}
        for m in range(830)
    }
    decisions, judge = judged(made, START)
    assert any(d.key == "market" and d.action == "fire" for d in decisions)
    window = judge.explain("market").windows[0]
    assert (window.stories, window.observed) == (5 * 15, 5 * 11)


def test_topics_are_held_to_a_bar_of_their_own() -> None:
    made: dict[int, Minute] = {m: {"topic:a": (4, 1), "ticker:A": (2, 1)} for m in range(400)}
    online = judged(made, START, msgspec.structs.replace(CONFIG, bar=None))[1]
    fixed = judged(made, START, msgspec.structs.replace(CONFIG, bar=9.0))[1]
    bars = [[judge.explain(key).bar for key in ("ticker:A", "topic:a", "market")] for judge in (online, fixed)]
    assert bars[0][2] == bars[0][0] < bars[0][1]
    assert bars[1] == [9.0, 9.0, 9.0]


def test_what_all_keys_do_is_no_surprise_for_one() -> None:
    """Common mode: a shock over all tickers fires the market, hardly any ticker; the same for one ticker fires it."""
    g = np.random.default_rng(5)
    keys = [f"ticker:K{k}" for k in range(60)]
    plain = g.poisson(0.02, (600, 60))
    rest = g.poisson(0.06, (600, 60))
    shocked, alone = plain.copy(), plain.copy()
    shocked[540:] = g.poisson(0.12, (60, 60))
    alone[540:, 7] = shocked[540:, 7]

    def run(negative: np.ndarray) -> set[str]:
        made = {}
        for m in range(600):
            row = {key: (int(negative[m, k] + rest[m, k]), int(negative[m, k])) for k, key in enumerate(keys)}
            total = (sum(n for n, _ in row.values()), sum(y for _, y in row.values()))
            made[m] = {key: value for key, value in (row | {"topic:all": total}).items() if value[0]}
        return {d.key for d in judged(made, START)[0] if d.action == "fire"}

    together = run(shocked)
    assert "market" in together
    assert len([key for key in together if key.startswith("ticker:")]) <= 2
    assert "ticker:K7" in run(alone)


def test_one_busy_keys_surge_is_no_excuse_for_the_others() -> None:
    """What a key has far beyond its own usual does not count as what all others do."""
    g = np.random.default_rng(5)
    keys = [f"ticker:K{k}" for k in range(60)]
    rest, negative = g.poisson(0.05, (601, 60)), g.poisson(0.01, (601, 60))
    rest[:, 0], negative[:, 0] = g.poisson(1.0, 601), g.poisson(0.2, 601)
    negative[570:, 7] += g.poisson(0.4, 31)
    # What hour it is must not be learned from an hour. To the first minute of a block: what is far beyond is worked out
    # when one begins.
    config = msgspec.structs.replace(CONFIG, season_day_stories=1e6, season_week_stories=1e6)

    def run(loud: int) -> Judge:
        made = {}
        for m in range(601):
            more = np.array([loud if m >= 540 else 0] + [0] * 59)
            row = zip(keys, negative[m] + more, rest[m], strict=True)
            made[m] = {key: (int(y + z), int(y)) for key, y, z in row if y + z}
        return judged(made, START, config)[1]

    alone, beside = (run(loud).explain("ticker:K7") for loud in (0, 8))
    assert (alone.verdict, beside.verdict) == ("firing", "firing")
    assert beside.score == pytest.approx(alone.score, rel=0.2)
    # All others have 540 negative stories in the hour, of which 60 or so can be usual.
    assert beside.windows[-1].common < 2.5


@settings(max_examples=4, deadline=None)
@given(st.integers(0, 100), st.integers(1, 5))
def test_whole_weeks_later_all_is_the_same(seed: int, weeks: int) -> None:
    made = scenario(seed)
    first, _ = judged(made, START)
    later, _ = judged(made, START + weeks * WEEK)
    assert [(d.action, d.key, d.score, d.observed) for d in first] == [
        (d.action, d.key, d.score, d.observed) for d in later
    ]
    assert all((b.at - a.at).days == 7 * weeks for a, b in zip(first, later, strict=True))


@settings(max_examples=5, deadline=None)
@given(st.integers(0, 100), st.randoms(use_true_random=False), st.sampled_from(SURGES))
def test_names_and_order_of_keys_do_not_matter(seed: int, r: st.DataObject, surge: str) -> None:
    made, config = of_sort(scenario(seed), surge), CONFIG.watching(surge)
    names = [f"ticker:K{k}" for k in range(8)]
    others = names.copy()
    r.shuffle(others)  # type: ignore[attr-defined]
    to = dict(zip(names, others, strict=True))
    back = {new: old for old, new in to.items()}
    renamed = {m: {to.get(key, key): value for key, value in minute.items()} for m, minute in made.items()}
    reversed_ = {m: dict(reversed(minute.items())) for m, minute in made.items()}
    first = judged(made, START, config)[0]
    assert judged(reversed_, START, config)[0] == first
    assert shape(judged(renamed, START, config)[0], lambda key: back.get(key, key)) == shape(first)


@settings(max_examples=5, deadline=None)
@given(st.integers(0, 100), st.lists(st.integers(0, 479), min_size=1, max_size=4), st.sampled_from(SURGES))
def test_snapshot_and_restore_anywhere_change_nothing(seed: int, cuts: list[int], surge: str) -> None:
    made, config = of_sort(scenario(seed), surge), CONFIG.watching(surge)
    whole, end = judged(made, START, config)
    judge = Judge(config)
    decisions: list[Decision] = []
    for minute in sorted(made):
        decisions += judge.step(START + minute, counts(made[minute]))
        if minute in cuts:
            judge = Judge.restore(config, judge.snapshot())
    assert decisions == whole
    assert judge.snapshot() == end.snapshot()


def test_a_snapshot_of_another_configuration_is_refused() -> None:
    judge = Judge(CONFIG)
    judge.step(START, counts({}))
    with pytest.raises(ValueError, match="another configuration"):
        Judge.restore(msgspec.structs.replace(CONFIG, min_stories=4), judge.snapshot())
    with pytest.raises(ValueError, match="another configuration"):
        Judge.restore(CONFIG.watching("volume"), judge.snapshot())


def test_minutes_must_follow_each_other() -> None:
    judge = Judge(CONFIG)
    judge.step(START, counts({}))
    for minute in (START, START + 2):
        with pytest.raises(ValueError, match="does not follow"):
            judge.step(minute, counts({}))


@pytest.mark.parametrize("wrong", [{"windows": (15, 100)}, {"windows": ()}, {"budget": 0.0}, {"surge": "odd"}])
def test_a_wrong_configuration_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="must be"):
        JudgeConfig(**wrong)  # type: ignore[arg-type]


def test_a_key_not_heard_of_for_long_is_forgotten() -> None:
    config = msgspec.structs.replace(CONFIG, rate_half_life_days=0.1)
    made: dict[int, Minute] = {m: {"ticker:B": (1, 0)} if m % 5 == 0 else {} for m in range(2 * DAY)}
    made[3] = {"ticker:A": (1, 1)}
    _, judge = judged(made, START, config)
    assert judge.explain("ticker:A").verdict == "unknown"
    assert judge.explain("ticker:B").verdict != "unknown"
    other = Judge.restore(config, judge.snapshot())
    assert other.explain("ticker:B") == judge.explain("ticker:B")


def test_a_hold_off_keeps_a_second_episode_back() -> None:
    made: dict[int, Minute] = {m: {"ticker:A": (1, 0)} if m % 30 == 0 else {} for m in range(1100)}
    for m in (500, 501, 502, 900, 901, 902):
        made[m] = {"ticker:A": (4, 4)}
    fires = lambda config: sum(d.action == "fire" for d in judged(made, START, config)[0])  # noqa: E731
    assert fires(CONFIG) == 2
    assert fires(msgspec.structs.replace(CONFIG, hold_off_minutes=DAY)) == 1
