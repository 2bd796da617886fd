"""A model that answers: rows to calibrated probabilities."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from models.backbones import TextBackbone, VisionTokens
from models.classifier import Batch, Classifier, TextReader
from models.fusion import TextFeatures
from models.model_file import ModelFile
from models.tokens import Row, RowTokenizer, TokenizedRow
from monitor.taxonomy import Taxonomy

__all__ = ["SENTIMENTS", "LoadedModel", "Predictions", "collate"]

SENTIMENTS = ("negative", "neutral", "positive")


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
    way: rows with a text to their features. `reader` is a `TextReader`, or the same compiled.
    """

    encoder: Callable[[Sequence[TokenizedRow]], TextFeatures] | None = None

    def __init__(self, network: Classifier, backbone: TextBackbone, file: ModelFile, device: torch.device) -> None:
        self.network = network.to(device).eval()
        self.backbone = backbone
        self.file = file
        self.device = device
        self._tokenizer = RowTokenizer(backbone, file.max_tokens)
        self.reader: nn.Module = TextReader(self.network).eval()

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
        shown = [index for index, row in enumerate(rows) if row.pixels is not None]
        if text is not None and not shown and all(row.ids for row in rows):
            # The common case, which is served hundreds of times a second: nothing is missing and nothing fused.
            return self._read_texts(rows, text)
        count = len(rows)
        prior = self.file.topic_prior or (1.0 / len(self.taxonomy.topics),) * len(self.taxonomy.topics)
        sentiment = torch.tensor(self.file.sentiment_prior).repeat(count, 1)
        topic = torch.tensor(prior).repeat(count, 1)
        chart = torch.full((count, 3), 1.0 / 3.0)
        p_chart = torch.zeros(count)
        used = torch.zeros(count, dtype=torch.bool)

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
            read = self._read_texts([rows[row] for row in said], text)
            topic[said], sentiment[said] = torch.from_numpy(read.topic), torch.from_numpy(read.sentiment)
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

    def _read_texts(self, rows: Sequence[TokenizedRow], text: TextFeatures) -> Predictions:
        """Answers for N rows that all have a text, from the text alone."""
        calibration = self.file.calibration
        temperatures = torch.tensor([calibration.item if row.span is None else calibration.entity for row in rows])
        # Both heads' answers are fetched together: on a card each copy waits for it.
        read = self.reader(text.pooled(), temperatures.unsqueeze(1).to(self.device), calibration.topic).cpu()
        count = len(rows)
        return Predictions(
            _clean(read[:, -3:]),
            _clean(read[:, :-3]),
            np.full((count, 3), 1.0 / 3.0, dtype=np.float32),
            np.zeros(count, dtype=np.float32),
            np.zeros(count, dtype=np.bool_),
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
