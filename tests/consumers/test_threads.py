"""The interpreter's settings of a worker's process."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator

import pytest

from consumers.threads import share_the_interpreter


@pytest.fixture(autouse=True)
def as_before(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv("TOKENIZERS_PARALLELISM", raising=False)
    threshold = gc.get_threshold()
    yield
    gc.set_threshold(*threshold)
    gc.unfreeze()
    os.environ.pop("TOKENIZERS_PARALLELISM", None)


def test_what_is_loaded_is_no_garbage_and_a_small_batch_wakes_no_other_threads() -> None:
    share_the_interpreter()
    assert gc.get_threshold()[0] > 700
    assert gc.get_freeze_count() > 1000
    assert os.environ["TOKENIZERS_PARALLELISM"] == "false"
