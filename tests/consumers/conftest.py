"""A pipeline without a broker."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from sqlalchemy import Engine

from tests.consumers.pipeline_bench import Bench, Gated


@pytest.fixture
def bench(store: Engine) -> Iterator[Bench]:
    found = Bench(store)
    yield found
    found.pipeline.close()


@pytest.fixture
def gated(store: Engine) -> Iterator[Bench]:
    found = Bench(store, Gated())
    yield found
    assert isinstance(found.scorer, Gated)
    found.scorer.gate.set()
    found.pipeline.close()
