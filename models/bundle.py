"""A model as one folder: made, saved, loaded for serving.

Folder
------
- `adapter_config.json`, `adapter_model.safetensors`: the text adapter, standard PEFT layout;
- `heads.safetensors`, `fusion.safetensors`: what belongs to no backbone;
- `vision/`: the chart encoder's weights and config, or the adapter and heads on a Hugging Face image encoder;
- `model.json`: backbones, taxonomy, calibration and the SHA-256 of every weights file;
- `README.md`: the model card.
"""

from __future__ import annotations

import hashlib
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, cast

import msgspec
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from models.adapters import add_adapter, load_adapter, merge_adapter, save_adapter
from models.answers import LoadedModel
from models.backbones import (
    ChartVision,
    HuggingFaceVision,
    TextBackbone,
    load_text_backbone,
    load_vision_backbone,
    sha256_of,
)
from models.classifier import Classifier
from models.model_file import MODEL_JSON, ModelFile, read_model_file
from monitor.errors import ModelError

if TYPE_CHECKING:
    from peft import PeftModel

__all__ = [
    "assemble",
    "load_model",
    "model_folder",
    "new_model",
    "restore_model",
    "save_model",
]

_HEADS = "heads.safetensors"
_FUSION = "fusion.safetensors"
_VISION = "vision"


def assemble(file: ModelFile, *, vision_folder: Path | None = None) -> tuple[Classifier, TextBackbone]:
    """The network of `file` with fresh heads and without adapters. Raises `ModelError`.

    The text backbone's own weights are frozen: a model folder holds adapters and heads alone.
    """
    backbone = load_text_backbone(file.text_backbone)
    backbone.encoder.requires_grad_(False)
    vision = load_vision_backbone(file.vision_backbone, vision_folder) if file.vision_backbone else None
    network = Classifier(backbone.encoder, backbone.hidden_size, len(file.taxonomy.topics), vision, fusion=file.fusion)
    return network, backbone


def new_model(file: ModelFile, *, seed: int = 0, total_steps: int = 0) -> tuple[Classifier, TextBackbone]:
    """A network to train: fresh adapters, fusion and heads, drawn with `seed`. Raises `ModelError`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network, backbone = assemble(file)
        if file.adapter.kind != "none":
            network.text = add_adapter(network.text, file.adapter, total_steps=total_steps)
        if isinstance(network.vision, HuggingFaceVision) and file.vision_adapter.kind != "none":
            network.vision.encoder = add_adapter(network.vision.encoder, file.vision_adapter, total_steps=total_steps)
    return network, backbone


def save_model(network: Classifier, file: ModelFile, folder: Path, *, card: str) -> ModelFile:
    """Write a model folder; `model.json` comes last, so that a torn write is found out.

    `network` holds its adapters unmerged. Returns `file` with `version` and `files` filled in.
    """
    from models.charts.encoder import save_chart_encoder

    folder.mkdir(parents=True, exist_ok=True)
    (folder / MODEL_JSON).unlink(missing_ok=True)
    if file.adapter.kind != "none":
        save_adapter(cast("PeftModel", network.text), folder, base_model=file.text_backbone)
    _save(network.heads, folder / _HEADS)
    _save(network.fusion, folder / _FUSION)
    if isinstance(network.vision, ChartVision):
        save_chart_encoder(network.vision.encoder, folder / _VISION)
    elif isinstance(network.vision, HuggingFaceVision):
        (folder / _VISION).mkdir(exist_ok=True)
        _save(network.vision.heads, folder / _VISION / _HEADS)
        if file.vision_adapter.kind != "none":
            adapted = cast("PeftModel", network.vision.encoder)
            save_adapter(adapted, folder / _VISION, base_model=file.vision_backbone)
    (folder / "README.md").write_text(card, encoding="utf-8")
    files = {path.relative_to(folder).as_posix(): sha256_of(path) for path in sorted(folder.rglob("*.safetensors"))}
    digest = hashlib.sha256(msgspec.json.encode([files, file.calibration])).hexdigest()
    final = msgspec.structs.replace(file, files=files, version=f"{file.name}-{digest[:10]}")
    (folder / MODEL_JSON).write_bytes(msgspec.json.format(msgspec.json.encode(final), indent=1) + b"\n")
    return final


def restore_model(folder: Path, *, trainable: bool = False) -> tuple[Classifier, TextBackbone, ModelFile]:
    """The network saved in `folder`, adapters unmerged, to train on or to merge. Raises `ModelError`."""
    file = read_model_file(folder)
    vision_folder = folder / _VISION
    network, backbone = assemble(file, vision_folder=vision_folder)
    if file.adapter.kind != "none":
        network.text = load_adapter(network.text, folder, trainable=trainable)
    try:
        network.heads.load_state_dict(load_file(folder / _HEADS))
        network.fusion.load_state_dict(load_file(folder / _FUSION))
        if isinstance(network.vision, HuggingFaceVision):
            network.vision.heads.load_state_dict(load_file(vision_folder / _HEADS))
            if file.vision_adapter.kind != "none":
                network.vision.encoder = load_adapter(network.vision.encoder, vision_folder, trainable=trainable)
    except (OSError, SafetensorError, RuntimeError, ValueError) as error:
        raise ModelError(f"The weights in {folder} do not fit: {str(error).splitlines()[0][:200]}") from error
    return network, backbone, file


def model_folder(name_or_path: str | Path) -> Path:
    """Folder of a model: `default` for the shipped one, else a path. Raises `ModelError` when there is none."""
    if str(name_or_path) == "default":
        return Path(str(resources.files("models") / "weights" / "default"))
    folder = Path(name_or_path)
    if not folder.is_dir():
        raise ModelError(
            f"There is no model {name_or_path}.", "Name `default`, a version of the registry, or an adapter's folder."
        )
    return folder


def load_model(name_or_path: str | Path, *, device: str | None = None) -> LoadedModel:
    """A model for serving, its adapters merged: `default` (the shipped one) or the path of a model folder.

    `device` is `cpu`, `cuda` or `cuda:N`; None takes CUDA where there is a card. Raises `ModelError`.
    """
    try:
        place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    except RuntimeError as error:
        raise ModelError(f"There is no device called {device}.", "Known are cpu, cuda and cuda:N.") from error
    if place.type == "cuda" and not torch.cuda.is_available():
        raise ModelError("CUDA was asked for, but there is no usable card.", "Use --device cpu.")
    network, backbone, file = restore_model(model_folder(name_or_path))
    if file.adapter.kind != "none":
        network.text = merge_adapter(cast("PeftModel", network.text))
    if isinstance(network.vision, HuggingFaceVision) and file.vision_adapter.kind != "none":
        network.vision.encoder = merge_adapter(cast("PeftModel", network.vision.encoder))
    return LoadedModel(network, backbone, file, place)


def _save(module: nn.Module, path: Path) -> None:
    save_file({name: tensor.detach().cpu().contiguous() for name, tensor in module.state_dict().items()}, path)
    # The library makes the file private; a model folder is read by whoever may read the package.
    path.chmod(0o644)
