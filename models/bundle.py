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
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, cast

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from models.adapters import AdapterSettings, add_adapter, load_adapter, merge_adapter, save_adapter
from models.backbones import (
    DEFAULT_TEXT_BACKBONE,
    DEFAULT_VISION_BACKBONE,
    ChartVision,
    HuggingFaceVision,
    TextBackbone,
    VisionTokens,
    load_text_backbone,
    load_vision_backbone,
    sha256_of,
)
from models.calibration import Calibration
from models.classifier import Batch, Classifier
from models.fusion import FusionKind, TextFeatures
from models.tokens import MAX_TOKENS, Row, RowTokenizer, TokenizedRow
from monitor.errors import ModelError
from monitor.taxonomy import Taxonomy

if TYPE_CHECKING:
    from peft import PeftModel

__all__ = [
    "SENTIMENTS",
    "LoadedModel",
    "ModelFile",
    "Predictions",
    "Row",
    "TokenizedRow",
    "assemble",
    "collate",
    "load_model",
    "model_folder",
    "new_model",
    "read_model_file",
    "restore_model",
    "save_model",
]

SENTIMENTS = ("negative", "neutral", "positive")
FORMAT = 1
_HEADS = "heads.safetensors"
_FUSION = "fusion.safetensors"
_VISION = "vision"
_MODEL = "model.json"


class ModelFile(msgspec.Struct, frozen=True, kw_only=True):
    """What `model.json` holds.

    `prior` gives the shares of the sentiments and topics in the training data: the answer to an empty text.
    `files` maps every weights file to its SHA-256. `metrics` are the held-out figures of the training run.
    """

    format: int = FORMAT
    name: str
    version: str = ""
    text_backbone: str = DEFAULT_TEXT_BACKBONE
    vision_backbone: str = DEFAULT_VISION_BACKBONE
    fusion: FusionKind = "cross"
    adapter: AdapterSettings = AdapterSettings()
    vision_adapter: AdapterSettings = AdapterSettings(kind="none")
    taxonomy: Taxonomy
    max_tokens: int = MAX_TOKENS
    calibration: Calibration = Calibration()
    sentiment_prior: tuple[float, float, float] = (0.2, 0.6, 0.2)
    topic_prior: tuple[float, ...] = ()
    data: tuple[str, ...] = ()
    metrics: dict[str, float] = {}
    files: dict[str, str] = {}


@dataclass(frozen=True)
class Predictions:
    """Calibrated probabilities, float32, free of NaN.

    Attributes
    ----------
    sentiment : (N, 3) negative, neutral, positive.
    topic : (N, T) in the taxonomy's order.
    chart : (N, 3) down, flat, up; a third each where there was no picture.
    p_chart : (N,) that the picture is a chart; 0 where there was none.
    used_chart : (N,) True where a chart took part in the sentiment.
    """

    sentiment: NDArray[np.float32]
    topic: NDArray[np.float32]
    chart: NDArray[np.float32]
    p_chart: NDArray[np.float32]
    used_chart: NDArray[np.bool_]


def collate(rows: Sequence[TokenizedRow], pad_id: int, device: torch.device) -> Batch:
    """Rows with a text, padded to the longest."""
    length = max(len(row.ids) for row in rows)
    ids = torch.full((len(rows), length), pad_id, dtype=torch.long)
    mask = torch.zeros((len(rows), length), dtype=torch.bool)
    span = torch.zeros((len(rows), length), dtype=torch.bool)
    for index, row in enumerate(rows):
        ids[index, : len(row.ids)] = torch.tensor(row.ids, dtype=torch.long)
        mask[index, : len(row.ids)] = True
        start, end = row.span or (0, len(row.ids))
        span[index, start:end] = True
    return Batch(ids.to(device), mask.to(device), span.to(device))


class LoadedModel:
    """A model that answers: deterministic, in evaluation mode, with its adapter merged.

    `network`, `backbone` and `file` are there for engines that run the text encoder another way; `encoder` is such a
    way: rows with a text to their features.
    """

    encoder: Callable[[Sequence[TokenizedRow]], TextFeatures] | None = None

    def __init__(self, network: Classifier, backbone: TextBackbone, file: ModelFile, device: torch.device) -> None:
        self.network = network.to(device).eval()
        self.backbone = backbone
        self.file = file
        self.device = device
        self._tokenizer = RowTokenizer(backbone, file.max_tokens)

    @property
    def version(self) -> str:
        """Name and weights of this model in one short string."""
        return self.file.version

    @property
    def taxonomy(self) -> Taxonomy:
        """The topics, in the order of `Predictions.topic`."""
        return self.file.taxonomy

    def tokenize(self, rows: Sequence[Row]) -> list[TokenizedRow]:
        """Token ids and pixels of N rows. A picture that cannot be used leaves `image_problem` instead of pixels."""
        from models.charts.images import decode_image
        from monitor.records import Rejected

        tokenized = self._tokenizer(rows)
        for row, ready in zip(rows, tokenized, strict=True):
            if row.image is None:
                continue
            if self.network.vision is None:
                ready.image_problem = "This model reads no pictures."
                continue
            image = decode_image(row.image)
            if isinstance(image, Rejected):
                ready.image_problem = image.reason
            else:
                ready.pixels = self.network.vision.preprocess(image)
        return tokenized

    def encode_text(self, rows: Sequence[TokenizedRow]) -> TextFeatures:
        """Features of rows with a text: the one expensive step, for which an engine may set `encoder`."""
        if self.encoder is not None:
            return self.encoder(rows)
        return self.network.encode_text(collate(rows, self.backbone.pad_id, self.device))

    @torch.inference_mode()
    def forward(self, rows: Sequence[TokenizedRow]) -> Predictions:
        """Answers for N rows as one batch; N = 0 gives empty arrays."""
        said = [index for index, row in enumerate(rows) if row.ids]
        text = self.encode_text([rows[index] for index in said]) if said else None
        return self.finish(rows, text)

    @torch.inference_mode()
    def finish(self, rows: Sequence[TokenizedRow], text: TextFeatures | None) -> Predictions:
        """Answers for N rows whose texts are encoded; `text` holds those with ids, in order (None: none)."""
        count = len(rows)
        prior = self.file.topic_prior or (1.0 / len(self.taxonomy.topics),) * len(self.taxonomy.topics)
        sentiment = torch.tensor(self.file.sentiment_prior).repeat(count, 1)
        topic = torch.tensor(prior).repeat(count, 1)
        chart = torch.full((count, 3), 1.0 / 3.0)
        p_chart = torch.zeros(count)
        used = torch.zeros(count, dtype=torch.bool)

        shown = [index for index, row in enumerate(rows) if row.pixels is not None]
        image: VisionTokens | None = None
        if shown and self.network.vision is not None:
            pixels = torch.stack([pixels for row in rows if (pixels := row.pixels) is not None]).to(self.device)
            image = self.network.encode_images(pixels)
            trend, is_chart = self.network.vision.read(image.pooled)
            chart[shown], p_chart[shown] = trend.float().cpu(), is_chart.float().cpu()
            used[shown] = p_chart[shown] >= self.network.vision.threshold

        said = [index for index, row in enumerate(rows) if row.ids]
        calibration = self.file.calibration
        if text is not None and said:
            place = {row: at for at, row in enumerate(said)}
            # Both heads read all texts and their answers are fetched together: on a card each copy waits for it.
            read = (
                torch.cat([self.network.topic_logits(text), self.network.sentiment_of_text(text)], dim=1).float().cpu()
            )
            topic[said] = _probabilities(read[:, :-3], calibration.topic)
            temperatures = [calibration.item if rows[row].span is None else calibration.entity for row in said]
            sentiment[said] = _probabilities(read[:, -3:], torch.tensor(temperatures).unsqueeze(1))
            both = [row for row in said if used[row]]
            if both and image is not None:
                logits = self.network.sentiment_of_both(
                    text.select(self._index([place[row] for row in both])), self._pictures(image, shown, both)
                )
                sentiment[both] = _probabilities(logits, calibration.fused)
        only = [index for index in shown if used[index] and not rows[index].ids]
        if only and image is not None:
            logits = self.network.sentiment_of_image(self._pictures(image, shown, only))
            sentiment[only] = _probabilities(logits, calibration.chart_only)
        return Predictions(
            _clean(sentiment), _clean(topic), _clean(chart), np.nan_to_num(p_chart.numpy()), used.numpy()
        )

    def predict(self, rows: Sequence[Row], *, token_budget: int = 4096, image_budget: int = 32) -> Predictions:
        """Answers for any number of rows, batched by length under a budget of padded tokens and of images."""
        tokenized = self.tokenize(rows)
        order = sorted(range(len(rows)), key=lambda index: len(tokenized[index].ids))
        parts: list[Predictions] = []
        start = 0
        while start < len(order):
            end, images = start, 0
            while end < len(order):
                row = tokenized[order[end]]
                images += row.pixels is not None
                if end > start and (len(row.ids) * (end - start + 1) > token_budget or images > image_budget):
                    break
                end += 1
            parts.append(self.forward([tokenized[index] for index in order[start:end]]))
            start = end
        if not parts:
            return self.forward([])
        back = np.argsort(np.array(order))
        return Predictions(
            *(
                np.concatenate([getattr(part, name) for part in parts])[back]
                for name in ("sentiment", "topic", "chart", "p_chart", "used_chart")
            )
        )

    def _index(self, places: list[int]) -> Tensor:
        return torch.tensor(places, device=self.device)

    def _pictures(self, image: VisionTokens, shown: list[int], rows: list[int]) -> VisionTokens:
        place = {row: at for at, row in enumerate(shown)}
        index = self._index([place[row] for row in rows])
        return _Pictures(image.tokens[index], image.pooled[index])


@dataclass(frozen=True)
class _Pictures:
    tokens: Tensor
    pooled: Tensor


def _probabilities(logits: Tensor, temperature: float | Tensor) -> Tensor:
    return torch.softmax(logits.float() / temperature, dim=-1).cpu()


def _clean(probabilities: Tensor) -> NDArray[np.float32]:
    """As numpy; a row that is not finite (a number that overflowed in half precision) becomes uniform."""
    found: NDArray[np.float32] = probabilities.numpy().astype(np.float32)
    bad = ~np.isfinite(found).all(axis=1)
    found[bad] = 1.0 / max(found.shape[1], 1)
    return found


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
    (folder / _MODEL).unlink(missing_ok=True)
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
    (folder / _MODEL).write_bytes(msgspec.json.format(msgspec.json.encode(final), indent=1) + b"\n")
    return final


def read_model_file(folder: Path) -> ModelFile:
    """`model.json` of a folder, with every weights file checked against its hash. Raises `ModelError`."""
    try:
        file = msgspec.json.decode((folder / _MODEL).read_bytes(), type=ModelFile)
    except OSError as error:
        raise ModelError(
            f"There is no model in {folder}: {_MODEL} cannot be read.",
            "`sentiment-monitor models list` names those known.",
        ) from error
    except msgspec.MsgspecError as error:
        raise ModelError(f"{folder / _MODEL} is not valid: {error}.") from error
    if file.format != FORMAT:
        raise ModelError(f"The model in {folder} has format {file.format}; this version reads format {FORMAT}.")
    for name, expected in file.files.items():
        path = folder / name
        if not path.is_file():
            raise ModelError(f"The model in {folder} lacks the file {name}.")
        if sha256_of(path) != expected:
            raise ModelError(
                f"{path} is damaged or was exchanged: its hash is not the one in {_MODEL}.",
                "Install or train the model again.",
            )
    return file


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
