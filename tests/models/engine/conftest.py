"""One small model for all tests of the engine."""

from __future__ import annotations

from pathlib import Path

import pytest

from models.engine import Scorer, open_scorer
from monitor.settings import Settings
from tests.models.tiny import tiny_backbone, tiny_model


@pytest.fixture(scope="session")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_backbone(tmp_path_factory.mktemp("backbone"))


@pytest.fixture(scope="session")
def model_dir(tmp_path_factory: pytest.TempPathFactory, backbone: Path) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny"
    tiny_model(folder, backbone)
    return folder


@pytest.fixture
def settings(tmp_path: Path, model_dir: Path) -> Settings:
    return Settings(data_dir=tmp_path, model=str(model_dir), device="cpu", cpu_precision="fp32", model_languages="en")


@pytest.fixture
def scorer(settings: Settings) -> Scorer:
    return open_scorer(settings)
