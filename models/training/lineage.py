"""What a run came from: the fingerprint that its checkpoints are held against, and the sets that are in its model."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import msgspec

from models.bundle import model_folder
from models.model_file import read_model_file
from models.training.adaptation import read_unlabelled
from models.training.config import TrainingConfig
from models.training.datasets import Example

__all__ = ["fingerprint_of", "learned_from"]

_TEXT_FIELDS = (
    "seed", "text_backbone", "adapter", "max_tokens", "epochs", "learning_rate", "head_learning_rate_factor",
    "weight_decay", "warmup", "token_budget", "label_smoothing", "class_weight_power", "consistency", "gradient_norm",
    "averaging", "precision", "patience", "backbone_dropout", "token_dropout", "validations_per_epoch", "teachers",
    "distillation", "adaptation",
)  # fmt: skip


def fingerprint_of(config: TrainingConfig, examples: Sequence[Example], base: str = "") -> str:
    """What a checkpoint of the text part depends on: the config's part for it, the data and the model begun with."""
    digest = hashlib.blake2b(digest_size=16)
    digest.update(msgspec.json.encode([msgspec.to_builtins(getattr(config, name)) for name in _TEXT_FIELDS]))
    digest.update(base.encode())
    for name in (*config.teachers, *config.average_with):
        digest.update(read_model_file(model_folder(name)).version.encode())
    for path in config.adaptation.files:
        digest.update(msgspec.json.encode(read_unlabelled(Path(path))))
    for example in examples:
        digest.update(msgspec.json.encode(example))
    return digest.hexdigest()


def learned_from(config: TrainingConfig, names: tuple[str, ...]) -> tuple[str, ...]:
    """The sets in a model: those it is trained on, and those of the models that it is made from or learns from."""
    others = [read_model_file(model_folder(name)).data for name in (*config.average_with, *config.teachers)]
    unlabelled = [Path(path).stem for path in config.adaptation.files] if config.adaptation.epochs else []
    return tuple(dict.fromkeys((*names, *(name for data in others for name in data), *unlabelled)))
