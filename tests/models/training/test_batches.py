from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from models.training.batches import epoch_batches


@given(st.lists(st.integers(1, 256), max_size=300), st.integers(1, 2000), st.integers(0, 5))
def test_an_epoch_has_every_row_once_under_the_budget(lengths: list[int], budget: int, epoch: int) -> None:
    batches = epoch_batches(lengths, budget, seed=1, epoch=epoch)
    assert sorted(row for batch in batches for row in batch) == list(range(len(lengths)))
    for batch in batches:
        assert len(batch) == 1 or max(lengths[row] for row in batch) * len(batch) <= budget
    assert batches == epoch_batches(lengths, budget, seed=1, epoch=epoch)


def test_epochs_differ() -> None:
    lengths = [10] * 200
    assert epoch_batches(lengths, 100, seed=1, epoch=0) != epoch_batches(lengths, 100, seed=1, epoch=1)
