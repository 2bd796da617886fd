"""After fine-tuning: part of the way back to the model begun with, and temperatures that fit again.

A model that was fine-tuned on a few hundred rows has moved further than they justify. The weights between it and the
model that it began with keep most of what was learned and nearly all of what was known (WiSE-FT, Wortsman et al. 2022).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.bundle import load_model, restore_model, save_model
from models.calibration import Calibration, fit_temperature
from models.classifier import Classifier
from models.training.datasets import Example
from models.training.frozen import ask
from models.training.gate import Answers, answers
from monitor.errors import ModelError

__all__ = ["average_text", "blend", "recalibrate"]

# With fewer rows a temperature is worse than the one before: from 150 it came out a fifth off.
_LEAST_ROWS = 500


def blend(parent: Path, candidate: Path, share: float) -> None:
    """Move the weights in the folder `candidate` to `share` of the way from those in `parent`, from 0 to 1.

    `candidate` was fine-tuned from `parent`. Raises `ModelError`.
    """
    network, _, file = restore_model(candidate)
    before, _, _ = restore_model(parent)
    old = before.state_dict()
    with torch.no_grad():
        for name, value in network.state_dict().items():
            if value.is_floating_point():
                value.lerp_(old[name], 1.0 - share)
    save_model(network, file, candidate, card=_card(candidate))


def average_text(network: Classifier, folders: Sequence[Path]) -> None:
    """Make the text part of `network` the mean of it and of those of the models in `folders`, all weighing the same.

    Holds for models that were trained from one beginning (model soups, Wortsman et al. 2022). The vision part and the
    fusion stay, but for the stand-in of a missing image. Raises `ModelError` when a model has another shape.
    """
    own = _text_state(network)
    others = [_text_state(restore_model(folder)[0]) for folder in folders]
    for folder, other in zip(folders, others, strict=True):
        if {name: value.shape for name, value in other.items()} != {name: value.shape for name, value in own.items()}:
            raise ModelError(f"The model in {folder} has another backbone, adapter or taxonomy.")
    with torch.no_grad():
        for name, value in own.items():
            if value.is_floating_point():
                value.copy_(torch.stack([value, *(other[name].to(value.device) for other in others)]).mean(0))


def _text_state(network: Classifier) -> dict[str, Tensor]:
    parts = {"text": network.text, "heads": network.heads}
    state = {f"{part}.{name}": value for part, held in parts.items() for name, value in held.state_dict().items()}
    return state | {"absent_image": network.fusion.absent_image.data}


def recalibrate(
    folder: Path, validation: Sequence[Example], stopped: Callable[[], bool], *, device: str | None = None
) -> Calibration:
    """Fit the temperatures of text anew on rows that the model was not trained on; returns what was written.

    A head with fewer than 500 such rows keeps its temperature, and so do the answers about charts. Raises `Cancelled`.
    """
    said = answers(ask(load_model(folder, device=device), validation, stopped), validation)
    network, _, file = restore_model(folder)
    now = file.calibration
    fitted = {
        name: round(getattr(now, name) * fit_temperature(_logits(said[head]), said[head].labels), 4)
        for name, head in (("item", "sentiment"), ("entity", "entities"), ("topic", "topic"))
        if head in said and len(said[head].labels) >= _LEAST_ROWS
    }
    calibration = msgspec.structs.replace(now, **fitted)
    save_model(network, msgspec.structs.replace(file, calibration=calibration), folder, card=_card(folder))
    return calibration


def _logits(answered: Answers) -> NDArray[np.float64]:
    """What the answers were made of, divided by the temperature in force, but for a constant a row."""
    return np.log(np.clip(answered.probabilities.astype(np.float64), 1e-12, 1.0))


def _card(folder: Path) -> str:
    return (folder / "README.md").read_text(encoding="utf-8")
