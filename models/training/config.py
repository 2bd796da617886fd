"""What a training run is made of, as a TOML file."""

from __future__ import annotations

import tomllib
from importlib import resources
from pathlib import Path
from typing import Literal

import msgspec

from models.adapters import AdapterSettings
from models.backbones import DEFAULT_TEXT_BACKBONE, DEFAULT_VISION_BACKBONE
from models.fusion import FusionKind
from models.tokens import MAX_TOKENS
from models.training.datasets import BUNDLED, TEST_SHARE, VALIDATION_SHARE
from models.training.trackers import Tracker
from monitor.errors import ConfigurationError

__all__ = ["Adaptation", "FusionStage", "TrainingConfig", "load_config"]


class Adaptation(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Masked language modelling of the adapter before the tasks, on the training texts and on unlabelled ones.

    Attributes
    ----------
    epochs : passes over the texts; 0 leaves it out.
    learning_rate : peak, AdamW.
    hidden : share of the tokens to be guessed.
    files : JSON Lines files of further texts, one `text` a line.
    """

    epochs: int = 0
    learning_rate: float = 5e-4
    hidden: float = 0.15
    files: tuple[str, ...] = ()


class FusionStage(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Training of the fusion on frozen text and image features.

    Attributes
    ----------
    pictures : chart images rendered for it.
    test_pictures : chart images of the held-out pairs; 0 takes a fifth of `pictures`.
    epochs : passes over the pairs; 0 keeps the fusion and the vision backbone of the config's `base`.
    learning_rate : peak, AdamW.
    batch : pairs in a step.
    """

    pictures: int = 3000
    test_pictures: int = 0
    epochs: int = 6
    learning_rate: float = 5e-4
    batch: int = 64


class TrainingConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One training run.

    Attributes
    ----------
    name : of the model that comes out.
    base : a model to go on from (`default`, or a model's folder) instead of a fresh adapter; its text backbone and
        adapter are kept. With `epochs` 0 only the fusion is trained, as after a change of the chart encoder.
    taxonomy : path of a JSON file of topics (`monitor.taxonomy`); empty: the bundled ones. Of the bundled sets only
        topics of the same names are learned from.
    sets : bundled sets to train on.
    base_blend : with a `base`, how much of it is mixed into the trained text part at the end, from 0 to below 1:
        most of what was learned is kept, and nearly all of what was known (WiSE-FT, Wortsman et al. 2022).
    average_with : models begun alike whose text parts are averaged with the trained one at the end, all weighing the
        same (a model soup, Wortsman et al. 2022); with `epochs` 0 and a `base`, nothing else happens to the text part.
    teachers : models whose mean answer is learned from as well, as soft labels for every task of every row.
    distillation : what the soft labels weigh, against the labels, from 0 to 1.
    set_share : share of the bundled sets' training rows that is taken (drawn by the seed); the user's are all taken.
    test_share, validation_share : of rows that do not say which part they belong to.
    text_backbone, vision_backbone : see `models.backbones`; an empty vision backbone makes a model for text alone.
    epochs : passes over the texts.
    learning_rate : peak of the schedule (linear warm-up, then cosine to zero), AdamW.
    head_learning_rate_factor : what the heads' learning rate is multiplied by.
    warmup : share of the steps that the learning rate rises over.
    token_budget : padded tokens in a step.
    label_smoothing : share of the target spread over all classes.
    backbone_dropout : inside the text backbone; on a CPU dropout costs nearly half of the speed.
    token_dropout : share of a text's tokens hidden in training, a regulariser that costs nothing.
    report_sentences : made-up sentences about company results to train on as well (`models.training.report_sentences`).
    class_weight_power : 0 weighs all rows alike, 1 all classes alike.
    consistency : weight of R-Drop (Liang et al. 2021), the divergence between two passes under dropout; 0 turns it off
        and halves the cost.
    keep : the weights of the `best` validation, or the `last` ones.
    averaging : decay of the moving average of the weights that is validated and kept; 0 keeps the last weights.
    precision : `bfloat16` or `float32`; `auto` is bfloat16 on a GPU and float32 on a CPU, where it was measured to be
        three times faster in training.
    patience : validations without improvement after which training stops.
    validations_per_epoch : how often an epoch is interrupted to validate.
    checkpoint_s : seconds between checkpoints.
    threads : of the CPU; 0 leaves torch's own choice.
    trackers : what plots the run: `tensorboard` (in the run's folder), `mlflow`, `wandb`; each is an optional package.
    """

    name: str = "model"
    seed: int = 0
    base: str = ""
    taxonomy: str = ""
    sets: tuple[str, ...] = BUNDLED
    base_blend: float = 0.0
    average_with: tuple[str, ...] = ()
    teachers: tuple[str, ...] = ()
    distillation: float = 0.0
    set_share: float = 1.0
    test_share: float = TEST_SHARE
    validation_share: float = VALIDATION_SHARE
    text_backbone: str = DEFAULT_TEXT_BACKBONE
    vision_backbone: str = DEFAULT_VISION_BACKBONE
    fusion: FusionKind = "cross"
    adapter: AdapterSettings = AdapterSettings()
    vision_adapter: AdapterSettings = AdapterSettings(kind="none")
    max_tokens: int = MAX_TOKENS
    epochs: int = 3
    learning_rate: float = 1e-3
    head_learning_rate_factor: float = 1.0
    weight_decay: float = 0.01
    warmup: float = 0.06
    token_budget: int = 1024
    label_smoothing: float = 0.05
    backbone_dropout: float = 0.0
    token_dropout: float = 0.06
    report_sentences: int = 0
    class_weight_power: float = 0.2
    consistency: float = 0.0
    gradient_norm: float = 1.0
    keep: Literal["best", "last"] = "best"
    averaging: float = 0.998
    precision: Literal["auto", "bfloat16", "float32"] = "auto"
    patience: int = 6
    validations_per_epoch: int = 2
    checkpoint_s: float = 60.0
    threads: int = 0
    trackers: tuple[Tracker, ...] = ("tensorboard",)
    adaptation: Adaptation = Adaptation()
    fusion_stage: FusionStage = FusionStage()

    def __post_init__(self) -> None:
        if self.epochs < 0 or (self.epochs == 0 and not self.base):
            raise ValueError("`epochs` must be at least 1, or 0 with a `base`")
        for name in ("token_budget", "patience", "validations_per_epoch"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be at least 1")
        if self.fusion_stage.epochs < 1 and not (self.base and self.epochs):
            raise ValueError("`fusion_stage.epochs` must be at least 1, or 0 where a `base` is trained further")
        if not 0.0 <= self.averaging < 1.0:
            raise ValueError("`averaging` must be at least 0 and below 1")
        if self.averaging and self.adapter.kind == "adalora" and not self.base:
            raise ValueError("`averaging` must be 0 with adalora, which drops ranks on the way")
        if self.vision_adapter.kind == "adalora":
            raise ValueError("`vision_adapter.kind` must be lora, dora or none: adalora is for the text backbone alone")
        if not 0.0 <= self.base_blend < 1.0 or (self.base_blend and not self.base):
            raise ValueError("`base_blend` must be at least 0 and below 1, and needs a `base`")
        if not 0.0 <= self.distillation <= 1.0 or bool(self.distillation) != bool(self.teachers):
            raise ValueError("`distillation` must be from 0 to 1, and above 0 exactly where there are `teachers`")
        if self.adaptation.epochs < 0 or not 0.0 < self.adaptation.hidden < 1.0:
            raise ValueError("`adaptation.epochs` must not be negative, `adaptation.hidden` between 0 and 1")
        if self.adaptation.epochs and self.adapter.kind == "none":
            raise ValueError("`adaptation` needs an `adapter`")
        if not 0.0 < self.set_share <= 1.0:
            raise ValueError("`set_share` must be above 0 and at most 1")
        if min(self.test_share, self.validation_share) < 0 or self.test_share + self.validation_share >= 1:
            raise ValueError("`test_share` and `validation_share` must leave rows to train on")
        if self.learning_rate <= 0:
            raise ValueError("`learning_rate` must be above 0")


def load_config(name_or_path: str) -> TrainingConfig:
    """A config that ships with the package, by name, or a TOML file.

    Raises `ConfigurationError` when it cannot be read, or a value is wrong or unknown.
    """
    path = Path(name_or_path)
    folder = Path(str(resources.files("models.training") / "configs"))
    if path.suffix != ".toml" and not path.is_file():
        path = folder / f"{name_or_path}.toml"
        if not path.is_file():
            known = ", ".join(sorted(file.stem for file in folder.glob("*.toml")))
            raise ConfigurationError(
                f"There is no training config {name_or_path}.", f"Known are {known}, or a TOML file."
            )
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
        return msgspec.convert(raw, type=TrainingConfig)
    except OSError as error:
        raise ConfigurationError(f"The training config {path} cannot be read: {error.strerror}.") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, msgspec.ValidationError, ValueError) as error:
        raise ConfigurationError(f"The training config {path} is not valid: {error}.") from error
