"""Why did this not alert: asked of the past, the judge says what it said then."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from monitor.surges.decisions import MinuteCounts
from monitor.surges.judge import Judge
from monitor.surges.why import account
from tests.monitor.surges.test_judge import CONFIG, START, counts, scenario

KEY = "ticker:K0"


class Stored:
    def __init__(self) -> None:
        self.made = {START + minute: counts(row) for minute, row in scenario(1).items()}

    def __call__(self, first: int, last: int) -> Mapping[int, MinuteCounts]:
        return {minute: row for minute, row in self.made.items() if first <= minute <= last}


def test_any_minute_of_the_past_is_explained_as_it_was_judged() -> None:
    stored, live = Stored(), Judge(CONFIG)
    said, snapshots = {}, {}
    for minute, row in sorted(stored.made.items()):
        live.step(minute, row)
        said[minute] = live.explain(KEY)
        snapshots[minute] = live.snapshot()
    assert {standing.verdict for standing in said.values()} > {"too_young", "below_bar", "firing"}
    for minute in (START + 100, START + 350, START + 385, START + 470):
        found = account(Judge(CONFIG), KEY, START, minute, stored)
        assert found.standing == said[minute]
        assert found.highest == max(said[m].score for m in range(max(START, minute - 59), minute + 1))
        early = Judge.restore(CONFIG, snapshots[minute - 80])
        assert account(early, KEY, minute - 79, minute, stored) == found


def test_what_was_decided_in_the_hour_before_is_told() -> None:
    found = account(Judge(CONFIG), KEY, START, START + 400, Stored())
    assert found.decisions[0].action == "fire"
    assert found.standing.verdict == "firing"
    assert found.highest >= found.standing.bar > 0
    quiet = account(Judge(CONFIG), "ticker:K1", START, START + 400, Stored())
    assert not quiet.decisions
    assert quiet.standing.verdict in {"below_bar", "too_few_stories"}


def test_a_minute_behind_the_judge_is_refused() -> None:
    with pytest.raises(ValueError, match="past that minute"):
        account(Judge(CONFIG), KEY, START + 5, START + 4, Stored())
