"""Training of the fusion on frozen features: cheap, and the text's own results stay as they are."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import msgspec
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from models.adapters import add_adapter
from models.answers import collate
from models.backbones import HuggingFaceVision, TextBackbone, VisionTokens, load_vision_backbone
from models.calibration import fit_temperature
from models.charts.dataset import NOT_A_CHART
from models.classifier import Classifier
from models.fusion import FusionKind, TextFeatures, make_fusion
from models.model_file import ModelFile
from models.tokens import RowTokenizer
from models.training.batches import batches_of
from models.training.config import TrainingConfig
from models.training.datasets import Example, Part
from models.training.measure import figures
from models.training.pairs import NEUTRAL, Pair, Pictures, bare_texts, draw_pictures, make_pairs
from models.training.text_stage import Cancelled, Progress

__all__ = [
    "Material",
    "PairLogits",
    "SplitExamples",
    "Texts",
    "attach_fusion",
    "attach_vision",
    "encode_texts",
    "fit_fusion",
    "pair_logits",
    "prepare",
    "train_fusion",
]

# Of the texts in the pairs: with a direction, neutral, and bare.
_DIRECTED, _NEUTRAL, _BARE = 0.5, 0.25, 0.25
_CHART_ONLY = 0.25


class SplitExamples(Protocol):
    """Examples of the three parts."""

    @property
    def train(self) -> list[Example]: ...

    @property
    def validation(self) -> list[Example]: ...

    @property
    def test(self) -> list[Example]: ...


class Texts(NamedTuple):
    """Texts with their frozen token vectors, each (L, H), and span masks (L,)."""

    examples: list[Example]
    tokens: list[Tensor]
    spans: list[Tensor]

    def features(self, index: Sequence[int], device: torch.device) -> TextFeatures:
        """The texts at `index`, padded."""
        tokens = [self.tokens[number] for number in index]
        length = max(len(held) for held in tokens)
        padded = torch.zeros(len(tokens), length, tokens[0].shape[1])
        mask = torch.zeros(len(tokens), length, dtype=torch.bool)
        span = torch.zeros(len(tokens), length, dtype=torch.bool)
        for row, number in enumerate(index):
            held = self.tokens[number]
            padded[row, : len(held)] = held
            mask[row, : len(held)] = True
            span[row, : len(held)] = self.spans[number]
        return TextFeatures(padded.to(device), mask.to(device), span.to(device))


def _choose(examples: Sequence[Example], part: Part, count: int, seed: int) -> list[Example]:
    """Texts of a part for pairs: with a direction, neutral, and bare ones."""
    generator = random.Random(f"{seed}-{part}")  # noqa: S311 - training data, no secrets
    directed = [example for example in examples if example.sentiment in (0, 2) and example.entity is None]
    neutral = [example for example in examples if example.sentiment == NEUTRAL and example.entity is None]
    generator.shuffle(directed)
    generator.shuffle(neutral)
    bare = bare_texts(part, int(count * _BARE), seed=seed)
    return directed[: int(count * _DIRECTED)] + neutral[: int(count * _NEUTRAL)] + bare


@torch.no_grad()
def encode_texts(network: Classifier, backbone: TextBackbone, config: TrainingConfig, examples: list[Example]) -> Texts:
    """`examples` through the frozen text part; those of which no token is left are dropped."""
    network.eval()
    device = network.device()
    rows = RowTokenizer(backbone, config.max_tokens)([example.row for example in examples])
    kept = [index for index, row in enumerate(rows) if row.ids]
    lengths = [len(row.ids) for row in rows]
    tokens: dict[int, Tensor] = {}
    spans: dict[int, Tensor] = {}
    for batch in batches_of(lengths, sorted(kept, key=lambda index: lengths[index]), 4096):
        features = network.encode_text(collate([rows[index] for index in batch], backbone.pad_id, device))
        for at, index in enumerate(batch):
            tokens[index] = features.tokens[at, : lengths[index]].cpu().clone()
            spans[index] = features.span[at, : lengths[index]].cpu().clone()
    return Texts([examples[i] for i in kept], [tokens[i] for i in kept], [spans[i] for i in kept])


class Material(NamedTuple):
    """What the fusion is trained and measured on: encoded texts and drawn pictures of each part."""

    texts: dict[Part, Texts]
    pictures: dict[Part, Pictures]


def attach_vision(network: Classifier, config: TrainingConfig) -> None:
    """Give `network` the vision backbone of `config`, frozen but for what is trained on it here."""
    vision = load_vision_backbone(config.vision_backbone)
    vision.requires_grad_(False)
    if isinstance(vision, HuggingFaceVision):
        vision.heads.requires_grad_(True)
        if config.vision_adapter.kind != "none":
            vision.encoder = add_adapter(vision.encoder, config.vision_adapter)
    network.vision = vision.to(network.device())


def attach_fusion(network: Classifier, kind: FusionKind, hidden_size: int) -> None:
    """Give `network` a fresh fusion that reads its vision backbone; the stand-in for an image is kept."""
    assert network.vision is not None
    fusion = make_fusion(kind, hidden_size, network.vision.hidden_size)
    with torch.no_grad():
        fusion.absent_image.copy_(network.fusion.absent_image)
    network.fusion = fusion.to(network.device())


def prepare(
    network: Classifier,
    backbone: TextBackbone,
    config: TrainingConfig,
    data: SplitExamples,
    *,
    progress: Progress | None = None,
) -> Material:
    """Encoded texts and freshly drawn pictures; `network` has its vision backbone."""
    vision = network.vision
    assert vision is not None
    pictures = config.fusion_stage.pictures
    counts: dict[Part, int] = {
        "train": pictures,
        "validation": max(60, pictures // 8),
        "test": config.fusion_stage.test_pictures or max(60, pictures // 5),
    }
    held: dict[Part, list[Example]] = {"train": data.train, "validation": data.validation, "test": data.test}
    found = Material({}, {})
    for done, (part, count) in enumerate(counts.items()):
        if progress is not None:
            progress("pictures", done, len(counts), f"drawing {count} for {part}")
        negatives = 0.15 if isinstance(vision, HuggingFaceVision) else 0.0
        found.pictures[part] = draw_pictures(vision, part, count, seed=config.seed, negatives=negatives)
        found.texts[part] = encode_texts(network, backbone, config, _choose(held[part], part, 2 * count, config.seed))
    return found


def train_fusion(
    network: Classifier,
    backbone: TextBackbone,
    file: ModelFile,
    config: TrainingConfig,
    data: SplitExamples,
    *,
    progress: Progress | None = None,
    cancelled: Callable[[], bool] | None = None,
) -> ModelFile:
    """Attach the vision backbone and train the fusion on drawn charts paired with texts of `data`.

    Returns `file` with the vision backbone, the temperatures of the fused answers and the figures on held-out pairs:
    text alone, chart alone, and both. Raises `ModelError` and `Cancelled`.
    """
    torch.manual_seed(config.seed)
    network.requires_grad_(False)
    attach_vision(network, config)
    attach_fusion(network, config.fusion, backbone.hidden_size)
    texts, drawn = prepare(network, backbone, config, data, progress=progress)
    fit_fusion(network, config, texts["train"], drawn["train"], progress, cancelled)
    pairs = make_pairs(texts["validation"].examples, drawn["validation"], seed=config.seed)
    logits = pair_logits(network, pairs, texts["validation"], drawn["validation"])
    trend = drawn["validation"].labels[[pair.picture for pair in pairs]]
    calibration = msgspec.structs.replace(
        file.calibration,
        fused=fit_temperature(logits.both.numpy(), np.array([pair.sentiment for pair in pairs])),
        chart_only=fit_temperature(logits.chart.numpy(), trend),
    )
    file = msgspec.structs.replace(file, vision_backbone=config.vision_backbone, calibration=calibration)
    return msgspec.structs.replace(
        file, metrics=dict(file.metrics) | _figures(network, file, texts["test"], drawn["test"], config.seed)
    )


def fit_fusion(
    network: Classifier,
    config: TrainingConfig,
    texts: Texts,
    pictures: Pictures,
    progress: Progress | None = None,
    cancelled: Callable[[], bool] | None = None,
) -> None:
    """Train the fusion of `network`, whose text part is frozen, and leave the network in evaluation mode.

    Raises `Cancelled`.
    """
    stage = config.fusion_stage
    for parameter in network.fusion.image_parameters():
        parameter.requires_grad_(True)
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=stage.learning_rate, weight_decay=config.weight_decay)
    steps = max(1, len(texts.examples) // stage.batch) * stage.epochs
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, stage.learning_rate, total_steps=steps, pct_start=0.1)
    generator = np.random.default_rng([config.seed, 11])
    done = 0
    for epoch in range(stage.epochs):
        pairs = make_pairs(texts.examples, pictures, seed=config.seed * 1000 + epoch)
        order = generator.permutation(len(pairs)).tolist()
        for start in range(0, len(order) - stage.batch + 1, stage.batch):
            index = order[start : start + stage.batch]
            alone = generator.choice(pictures.charts, size=max(1, int(stage.batch * _CHART_ONLY))).tolist()
            loss = _loss(network, [pairs[row] for row in index], index, texts, pictures, alone, config.label_smoothing)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(trained, config.gradient_norm)
            optimizer.step()
            schedule.step()
            done += 1
            if progress is not None:
                progress("fusion", done, steps, f"loss {float(loss.detach()):.3f}")
            if cancelled is not None and cancelled():
                raise Cancelled
            if done == steps:
                break
    network.requires_grad_(False)
    network.eval()


def _loss(
    network: Classifier,
    pairs: list[Pair],
    index: list[int],
    texts: Texts,
    pictures: Pictures,
    alone: list[int],
    smoothing: float,
) -> Tensor:
    device = network.device()
    shown = [pair.picture for pair in pairs]
    image = pictures.features(shown)
    both = network.sentiment_of_both(texts.features(index, device), image)
    loss = functional.cross_entropy(
        both, torch.tensor([pair.sentiment for pair in pairs], device=device), label_smoothing=smoothing
    )
    trend = torch.from_numpy(pictures.labels[alone]).to(device)
    only = network.sentiment_of_image(pictures.features(alone))
    loss = loss + _CHART_ONLY * functional.cross_entropy(only, trend, label_smoothing=smoothing)
    if isinstance(network.vision, HuggingFaceVision):
        loss = loss + _reading_loss(network.vision, pictures, shown)
    return loss


def _reading_loss(vision: HuggingFaceVision, pictures: Pictures, shown: list[int]) -> Tensor:
    """Loss of the heads that say whether a picture is a chart and what it shows."""
    others = np.flatnonzero(pictures.labels == NOT_A_CHART)[: len(shown) // 4].tolist()
    features = pictures.features(shown + others)
    trend, chart = vision.logits(features.pooled)
    labels = torch.from_numpy(pictures.labels[shown + others]).to(trend.device)
    known = labels != NOT_A_CHART
    return functional.cross_entropy(trend[known], labels[known]) + functional.binary_cross_entropy_with_logits(
        chart, known.float()
    )


class PairLogits(NamedTuple):
    """Logits (N, 3) of pairs: from both, from the text alone and from the chart alone."""

    both: Tensor
    text: Tensor
    chart: Tensor


@torch.no_grad()
def pair_logits(network: Classifier, pairs: Sequence[Pair], texts: Texts, pictures: Pictures) -> PairLogits:
    """What the network says about each pair; `pairs` are of `texts`, in their order."""
    parts: list[PairLogits] = []
    for start in range(0, len(pairs), 64):
        index = range(start, min(start + 64, len(pairs)))
        image: VisionTokens = pictures.features([pairs[row].picture for row in index])
        text = texts.features(index, network.device())
        parts.append(
            PairLogits(
                network.sentiment_of_both(text, image).cpu(),
                network.sentiment_of_text(text).cpu(),
                network.sentiment_of_image(image).cpu(),
            )
        )
    return PairLogits(*(torch.cat(held) for held in zip(*parts, strict=True)))


def _figures(network: Classifier, file: ModelFile, texts: Texts, pictures: Pictures, seed: int) -> dict[str, float]:
    """Held-out pairs: text alone, chart alone and both against the sentiment of the pair."""
    pairs = make_pairs(texts.examples, pictures, seed=seed)
    logits = pair_logits(network, pairs, texts, pictures)
    labels = np.array([pair.sentiment for pair in pairs])
    trend = pictures.labels[[pair.picture for pair in pairs]]
    temperatures = file.calibration
    found: dict[str, float] = {}
    for name, part, temperature, truth in (
        ("pairs.text_alone", logits.text, temperatures.item, labels),
        ("pairs.chart_alone", logits.chart, temperatures.chart_only, labels),
        ("pairs.both", logits.both, temperatures.fused, labels),
        ("charts.chart_only", logits.chart, temperatures.chart_only, trend),
    ):
        probabilities = torch.softmax(part / temperature, dim=-1).numpy()
        found |= {f"{name}.{figure}": round(value, 4) for figure, value in figures(probabilities, truth).items()}
    return found
