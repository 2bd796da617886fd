"""One small text backbone and one small model for all tests of this room."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import ViTConfig, ViTModel

from tests.models.tiny import tiny_backbone, tiny_model


@pytest.fixture(scope="session")
def small_backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_backbone(tmp_path_factory.mktemp("small-backbone"))


@pytest.fixture(scope="session")
def small_model(tmp_path_factory: pytest.TempPathFactory, small_backbone: Path) -> Path:
    folder = tmp_path_factory.mktemp("small-models") / "small"
    tiny_model(folder, small_backbone)
    return folder


@pytest.fixture(scope="session")
def small_vision(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A two-layer ViT of 32 x 32 pixels with random weights."""
    folder = tmp_path_factory.mktemp("small-vision")
    torch.manual_seed(2)
    config = ViTConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, image_size=32, patch_size=8
    )
    ViTModel(config, add_pooling_layer=False).save_pretrained(folder)
    described = {"size": {"height": 32, "width": 32}, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    (folder / "preprocessor_config.json").write_text(json.dumps(described))
    return folder
