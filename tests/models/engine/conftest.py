"""A scorer with the small model."""

from __future__ import annotations

from pathlib import Path

import pytest

from models.engine import Scorer, open_scorer
from monitor.settings import Settings


@pytest.fixture(scope="session")
def backbone(small_backbone: Path) -> Path:
    return small_backbone


@pytest.fixture(scope="session")
def model_dir(small_model: Path) -> Path:
    return small_model


@pytest.fixture
def settings(tmp_path: Path, model_dir: Path) -> Settings:
    return Settings(data_dir=tmp_path, model=str(model_dir), device="cpu", cpu_precision="fp32", model_languages="en")


@pytest.fixture
def scorer(settings: Settings) -> Scorer:
    return open_scorer(settings)
