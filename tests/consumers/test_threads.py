"""The interpreter's settings of a worker's process."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator

import pytest

from consumers.threads import share_the_interpreter


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    interval, threshold = sys.getswitchinterval(), gc.get_threshold()
    yield
    sys.setswitchinterval(interval)
    gc.set_threshold(*threshold)
    gc.unfreeze()


def test_threads_wait_less_for_each_other_and_what_is_loaded_is_no_garbage() -> None:
    before = sys.getswitchinterval()
    share_the_interpreter()
    assert sys.getswitchinterval() < before / 5
    assert gc.get_threshold()[0] > 700
    assert gc.get_freeze_count() > 1000
