"""One bad row never holds up the others."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from consumers.scoring import score_groups
from models.engine import ScoringRequest
from monitor.errors import ModelError
from monitor.pairing import Group
from monitor.records import (
    Rejected,
    ScoredItem,
)
from tests.consumers.running import news
from tests.consumers.word_scorer import POISON, WordScorer


def test_one_bad_row_costs_a_logarithm_of_calls() -> None:
    scorer = WordScorer()
    groups: list[Group[int]] = [Group(news(n), tokens=[n]) for n in range(128)]
    groups[77] = Group(news(77, title=POISON), tokens=[77])
    scored = score_groups(scorer, groups)
    assert len(scored.entries) == 127
    ((group, charts, rejected),) = scored.refused
    assert (group.tokens, charts, rejected.code) == ([77], frozenset(), "scoring_failed")
    assert len(scorer.calls) <= 2 * 7 + 2


def test_only_poison_is_not_a_broken_classifier_but_failing_at_everything_is() -> None:
    scorer = WordScorer()
    assert len(score_groups(scorer, [Group(news(1, title=POISON), tokens=[1])]).refused) == 1
    scorer.broken = RuntimeError("gone")
    with pytest.raises(ModelError, match="every item"):
        score_groups(scorer, [Group(news(1), tokens=[1])])
    scorer.broken = MemoryError()
    with pytest.raises(ModelError, match="memory"):
        score_groups(scorer, [Group(news(1), tokens=[1])])
    scorer.broken = ModelError("The weights are damaged.")
    with pytest.raises(ModelError, match="damaged"):
        score_groups(scorer, [Group(news(1), tokens=[1])])


def test_a_row_that_memory_does_not_suffice_for_is_no_dead_letter() -> None:
    class Short(WordScorer):
        def score(self, requests: Sequence[ScoringRequest]) -> list[ScoredItem | Rejected]:
            if any("LARGE" in request.item.title for request in requests):
                raise MemoryError
            return super().score(requests)

    groups = [Group(news(n, title="LARGE" if n == 3 else "small"), tokens=[n]) for n in range(8)]
    # The others can be scored: but to refuse this one would lose it for good.
    with pytest.raises(ModelError, match="memory"):
        score_groups(Short(), groups)
