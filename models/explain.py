"""Why the model said what it said: the words, the regions of the chart, the share of each, and the nearest examples.

Words: integrated gradients (Sundararajan et al. 2017) over the token embeddings with the padding token as the
baseline, of the logit of the label that won against the mean of the others, together with the chart where one took
part; the steps of the path are one batch.
Chart: occlusion (Zeiler and Fergus 2014), how much of the winning trend's probability is lost when a cell is covered;
all cells are one batch. Neighbours: cosine similarity of mean text vectors over labelled examples that come with the
package; the index of the shipped model comes with it too (`scripts/build_neighbours.py`), that of any other is made
once and kept in the data folder.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save
from torch import Tensor

from models.answers import SENTIMENTS, LoadedModel, collate
from models.charts.encoder import VisionOutput
from models.charts.images import decode_image
from models.engine.scorer import Scorer
from models.fusion import TextFeatures
from models.tokens import Row, TokenizedRow
from models.training.datasets import BUNDLED, LabelledText, bundled_path, read_labelled
from monitor.errors import InputError
from monitor.records import Rejected, Trend

if TYPE_CHECKING:
    from monitor.settings import Settings

__all__ = [
    "Explanation",
    "Neighbour",
    "NeighbourIndex",
    "WordShare",
    "explain",
    "index_folder",
    "neighbours",
    "packaged_index",
    "write_index",
]

_STEPS: Final = 16
_CELLS: Final = (6, 8)
_MAX_TOKENS: Final = 96
_PER_SET: Final = 1_000
_VECTORS: Final = "vectors"


class WordShare(msgspec.Struct, frozen=True):
    """One word and its share in the answer: above 0 it speaks for the label, below 0 against it; |shares| sum to 1."""

    text: str
    share: float


class Neighbour(msgspec.Struct, frozen=True):
    """A labelled example that is like the text: `similarity` is the cosine, from -1 to 1; `labels` what it carries."""

    text: str
    similarity: float
    labels: dict[str, str]
    origin: str


class Explanation(msgspec.Struct, frozen=True, kw_only=True):
    """Why one answer was given.

    Attributes
    ----------
    label, probability : the sentiment that won.
    words : in the order of the text; empty where there is none.
    heat_map : rows of cells, top to bottom; each the loss of the trend's probability when it is covered (0 or more).
    trend : what the chart shows; None without a usable picture.
    text_share, chart_share : of the two in the sentiment; they sum to 1.
    neighbours : nearest labelled examples, most similar first.
    """

    label: str
    probability: float
    words: tuple[WordShare, ...] = ()
    heat_map: tuple[tuple[float, ...], ...] = ()
    trend: str | None = None
    text_share: float = 1.0
    chart_share: float = 0.0
    neighbours: tuple[Neighbour, ...] = ()


def _embedding(model: LoadedModel) -> torch.nn.Embedding:
    found = cast(Any, model.network.text).get_input_embeddings()
    if not isinstance(found, torch.nn.Embedding):
        raise TypeError("the text backbone has no plain embedding of tokens")
    return found


def _integrated_gradients(
    model: LoadedModel, row: TokenizedRow, target: int, *, with_chart: bool = False
) -> NDArray[np.float64]:
    """Attribution of each token of `row` to the logit of `target` against the mean of the others: (L,).

    `with_chart`: of the answer that the text gives together with the row's chart, which stays as it is.
    """
    network, device = model.network, model.device
    batch = collate([row], model.backbone.pad_id, device)
    embedding = _embedding(model)
    with torch.enable_grad():
        inputs = embedding(batch.ids).detach()
        baseline = embedding(torch.full_like(batch.ids, model.backbone.pad_id)).detach()
        # Special tokens and markers stay as they are: they are the question, not the text.
        kept = torch.tensor([[token in _specials(model) for token in row.ids]], device=device)
        baseline = torch.where(kept.unsqueeze(-1), inputs, baseline)
        steps = ((torch.arange(_STEPS, device=device) + 0.5) / _STEPS).view(-1, 1, 1)
        path = (baseline + steps * (inputs - baseline)).requires_grad_(True)
        mask = batch.mask.expand(_STEPS, -1)
        hidden: Tensor = network.text(inputs_embeds=path, attention_mask=mask.long()).last_hidden_state
        features = TextFeatures(hidden, mask, batch.span.expand(_STEPS, -1))
        if with_chart:
            assert row.pixels is not None
            seen = network.encode_images(row.pixels[None].to(device))
            image = VisionOutput(seen.tokens.expand(_STEPS, -1, -1), seen.pooled.expand(_STEPS, -1))
            logits = network.sentiment_of_both(features, image)
        else:
            logits = network.sentiment_of_text(features)
        others = [i for i in range(3) if i != target]
        (gradient,) = torch.autograd.grad((logits[:, target] - logits[:, others].mean(dim=1)).sum(), path)
    share = (gradient.mean(dim=0) * (inputs - baseline)[0]).sum(dim=-1)
    return np.asarray(share.double().cpu().numpy(), dtype=np.float64)


def _specials(model: LoadedModel) -> frozenset[int]:
    backbone = model.backbone
    return frozenset((*backbone.prefix, *backbone.suffix, *backbone.markers))


def _words(model: LoadedModel, row: TokenizedRow, shares: NDArray[np.float64]) -> tuple[WordShare, ...]:
    """Tokens put together to words, with their summed shares scaled so that their sizes add up to 1."""
    specials = _specials(model)
    tokenizer = model.backbone.tokenizer
    words: list[tuple[list[int], float]] = []
    for token, share in zip(row.ids, shares.tolist(), strict=True):
        if token in specials:
            continue
        piece = tokenizer.id_to_token(token) or ""
        # WordPiece marks what goes on a word (##), byte-level BPE and SentencePiece what begins one.
        starts = piece.startswith(("Ġ", "▁")) if _marks_starts(model) else not piece.startswith("##")
        if words and not starts:
            words[-1][0].append(token)
            words[-1] = (words[-1][0], words[-1][1] + share)
        else:
            words.append(([token], share))
    size = sum(abs(share) for _, share in words) or 1.0
    return tuple(WordShare(tokenizer.decode(tokens).strip(), round(share / size, 4)) for tokens, share in words)


def _marks_starts(model: LoadedModel) -> bool:
    pieces = model.backbone.tokenizer.encode("one two", add_special_tokens=False).tokens
    return bool(pieces) and pieces[-1].startswith(("Ġ", "▁"))


@torch.inference_mode()
def _heat_map(model: LoadedModel, pixels: Tensor) -> tuple[str, tuple[tuple[float, ...], ...]]:
    """The trend of a chart's `pixels` (3, H, W), and what covering each cell costs it."""
    vision = model.network.vision
    assert vision is not None
    rows, columns = _CELLS
    height, width = pixels.shape[1] // rows, pixels.shape[2] // columns
    # Covered with what most of the picture's edge is: the ground.
    ground = torch.cat([pixels[:, 0], pixels[:, -1]], dim=1).median(dim=1).values.view(3, 1, 1)
    covered = pixels.repeat(rows * columns + 1, 1, 1, 1)
    for cell in range(rows * columns):
        top, left = cell // columns * height, cell % columns * width
        covered[cell + 1, :, top : top + height, left : left + width] = ground
    trend, _ = vision.read(vision(covered.to(model.device)).pooled)
    winner = int(trend[0].argmax())
    lost = (trend[0, winner] - trend[1:, winner]).clamp(min=0).view(rows, columns).cpu()
    return str(list(Trend)[winner]), tuple(tuple(round(float(x), 4) for x in row) for row in lost)


@torch.inference_mode()
def _shares(model: LoadedModel, row: TokenizedRow) -> tuple[float, float]:
    """Share of text and chart in the sentiment of a row that has both.

    Measured by what changes when either is taken away (total variation of the probabilities). How much attention
    the picture got does not tell: the text goes past the attention.
    """
    both, text_only, chart_only = (
        model.forward([one]).sentiment[0]
        for one in (row, TokenizedRow(row.ids, row.span), TokenizedRow([], None, row.pixels))
    )
    without_chart, without_text = float(np.abs(both - text_only).sum()), float(np.abs(both - chart_only).sum())
    total = without_chart + without_text
    return (0.5, 0.5) if total == 0 else (without_text / total, without_chart / total)


class NeighbourIndex:
    """Mean text vectors of labelled examples, normalised: nearest by cosine."""

    def __init__(self, rows: list[LabelledText], vectors: NDArray[np.float32]) -> None:
        self.rows = rows
        self.vectors = vectors

    @classmethod
    def of(cls, model: LoadedModel, folder: Path | None) -> NeighbourIndex:
        """The index of a model: the one that comes with the package, or kept in `folder`; else made and kept there."""
        rows = _examples()
        key = _index_key(model, rows)
        kept = folder / f"neighbours-{key}.safetensors" if folder is not None else None
        for path in (packaged_index(), kept):
            vectors = _read_index(path, key) if path is not None else None
            if vectors is not None:
                return cls(rows, vectors)
        vectors = _vectors(model, [row.text for row in rows])
        if kept is not None:
            _write_index(kept, key, vectors)
        return cls(rows, vectors)

    def nearest(self, model: LoadedModel, text: str, count: int) -> tuple[Neighbour, ...]:
        """The `count` most similar examples; a copy of the text itself is left out."""
        (vector,) = _vectors(model, [text])
        similarity = self.vectors @ vector
        found = []
        for i in np.argsort(-similarity)[: count + 5]:
            row = self.rows[int(i)]
            if row.text.strip() == text.strip():
                continue
            labels = {"sentiment": row.sentiment, "topic": row.topic} | dict(row.entities)
            told = {name: value for name, value in labels.items() if value}
            found.append(Neighbour(row.text, round(float(similarity[i]), 4), told, row.origin))
        return tuple(found[:count])


def packaged_index() -> Path:
    """The index of the shipped model."""
    return Path(str(resources.files("models") / "data" / "neighbours.safetensors"))


def _index_key(model: LoadedModel, rows: list[LabelledText]) -> str:
    """What an index depends on: the model and the texts."""
    digest = hashlib.sha256(model.version.encode())
    for row in rows:
        digest.update(row.text.encode("utf-8", "surrogatepass"))
    return digest.hexdigest()[:16]


def _read_index(path: Path, key: str) -> NDArray[np.float32] | None:
    """The vectors in a file; None when there is none, when it is another model's, or cut short."""
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="np") as file:
            if (file.metadata() or {}).get("key") != key:
                return None
            vectors: NDArray[np.float16] = file.get_tensor(_VECTORS)
    except (SafetensorError, OSError):
        return None
    return vectors.astype(np.float32)


def _write_index(path: Path, key: str, vectors: NDArray[np.float32]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    part.write_bytes(save({_VECTORS: vectors.astype(np.float16)}, {"key": key}))
    part.replace(path)


def write_index(model: LoadedModel, path: Path) -> None:
    """Make the index of a model (half a minute on one core) and write it to `path`."""
    rows = _examples()
    _write_index(path, _index_key(model, rows), _vectors(model, [row.text for row in rows]))


def index_folder(settings: Settings) -> Path:
    """Where the indexes of other models than the shipped one are kept."""
    return settings.data_dir / "explanations"


@lru_cache(maxsize=1)
def _examples() -> list[LabelledText]:
    """Every n-th training row of the bundled sets, so that each set has about 1,000."""
    found = []
    for name in BUNDLED:
        rows = [row for row in read_labelled(bundled_path(name)) if row.part in (None, "train")]
        found += rows[:: max(1, len(rows) // _PER_SET)]
    return found


@torch.inference_mode()
def _vectors(model: LoadedModel, texts: list[str]) -> NDArray[np.float32]:
    """Normalised mean token vectors (N, H); a text without tokens is zero."""
    tokenized = model.tokenize([Row(text) for text in texts])
    width = model.backbone.hidden_size
    found = np.zeros((len(texts), width), dtype=np.float32)
    order = sorted((i for i, row in enumerate(tokenized) if row.ids), key=lambda i: len(tokenized[i].ids))
    for start in range(0, len(order), 64):
        chosen = order[start : start + 64]
        pooled = model.encode_text([tokenized[i] for i in chosen]).pooled()[:, :width].float()
        found[chosen] = torch.nn.functional.normalize(pooled, dim=1).cpu().numpy()
    return found


_indexes: dict[str, NeighbourIndex] = {}


def neighbours(model: LoadedModel, text: str, count: int = 5, folder: Path | None = None) -> tuple[Neighbour, ...]:
    """Nearest labelled examples of a text. The first call of a model makes the index, and keeps it in `folder`."""
    index = _indexes.get(model.version)
    if index is None:
        _indexes.clear()
        index = _indexes[model.version] = NeighbourIndex.of(model, folder)
    return index.nearest(model, text, count)


def explain(
    scorer_or_model: Scorer | LoadedModel,
    text: str,
    entity: tuple[int, int] | None = None,
    image: bytes | None = None,
    *,
    count: int = 5,
    folder: Path | None = None,
) -> Explanation:
    """Why the model says what it says of a text, of an entity in it (character span), or of a chart, or of both.

    Of a text that names several companies give what is read for this one (`models.sentences.entity_rows`).

    `count` neighbours are looked for (0: none; their index may be kept in `folder`). A long text is explained by its
    first 96 tokens. Raises `InputError` when there is neither a text nor a chart, or the chart cannot be read.
    """
    model = scorer_or_model.model if isinstance(scorer_or_model, Scorer) else scorer_or_model
    # Of a text about an entity the tokenizer takes what stands round it.
    (row,) = model.tokenize([Row(text if entity else text[: 20 * _MAX_TOKENS], entity)])
    if entity is None and len(row.ids) > _MAX_TOKENS:
        row.ids = [*row.ids[: _MAX_TOKENS - len(model.backbone.suffix)], *model.backbone.suffix]
    vision = model.network.vision
    if image is not None and vision is not None:
        picture = decode_image(image)
        if isinstance(picture, Rejected):
            raise InputError(picture.reason)
        row.pixels = vision.preprocess(picture)
    if not row.ids and row.pixels is None:
        raise InputError("There is nothing to explain: neither a text nor a chart that this model reads.")
    said = model.forward([row])
    target = int(said.sentiment[0].argmax())
    words: tuple[WordShare, ...] = ()
    if row.ids:
        with_chart = row.pixels is not None and bool(said.used_chart[0])
        words = _words(model, row, _integrated_gradients(model, row, target, with_chart=with_chart))
    trend: str | None = None
    heat: tuple[tuple[float, ...], ...] = ()
    shares = (1.0, 0.0) if row.ids else (0.0, 1.0)
    if row.pixels is not None and bool(said.used_chart[0]):
        trend, heat = _heat_map(model, row.pixels)
        shares = _shares(model, row) if row.ids else shares
    elif row.pixels is not None:
        trend = str(Trend.NOT_A_CHART)
        shares = (1.0, 0.0)
    return Explanation(
        label=SENTIMENTS[target],
        probability=round(float(said.sentiment[0, target]), 4),
        words=words,
        heat_map=heat,
        trend=trend,
        text_share=round(shares[0], 4),
        chart_share=round(shares[1], 4),
        neighbours=neighbours(model, text, count, folder) if count and row.ids else (),
    )
