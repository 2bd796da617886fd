"""One small text backbone and one small model for all tests of this room."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.models.tiny import tiny_backbone, tiny_model


@pytest.fixture(scope="session")
def small_backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_backbone(tmp_path_factory.mktemp("small-backbone"))


@pytest.fixture(scope="session")
def small_model(tmp_path_factory: pytest.TempPathFactory, small_backbone: Path) -> Path:
    folder = tmp_path_factory.mktemp("small-models") / "small"
    tiny_model(folder, small_backbone)
    return folder
