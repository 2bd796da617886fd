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


@pytest.mark.parametrize(
    ("cores", "asked", "found"), [(2, None, "false"), (2, "true", "true"), (64, None, None), (64, "false", "false")]
)
def test_what_is_loaded_is_no_garbage_and_on_few_cores_texts_are_split_by_the_thread_that_asks(
    cores: int, asked: str | None, found: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: cores)
    if asked is not None:
        monkeypatch.setenv("TOKENIZERS_PARALLELISM", asked)
    share_the_interpreter()
    assert gc.get_threshold()[0] > 700
    assert gc.get_freeze_count() > 1000
    assert os.environ.get("TOKENIZERS_PARALLELISM") == found
