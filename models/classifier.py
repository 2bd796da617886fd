"""The network: a text backbone, a vision backbone, their fusion, and one head a task."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.backbones import VisionBackbone, VisionTokens
from models.fusion import Fusion, FusionKind, TextFeatures, make_fusion, without_image

__all__ = ["Batch", "Classifier", "Logits", "TextReader"]


@dataclass(frozen=True)
class Batch:
    """Rows padded to one length.

    Attributes
    ----------
    ids : (B, L) token ids.
    mask : (B, L) True at tokens.
    span : (B, L) True at the entity with its markers; at every token in an item row.
    """

    ids: Tensor
    mask: Tensor
    span: Tensor


class _Tiled(nn.Module):
    """A head that reads so many rows at a time, the last ones filled up.

    The order in which a matrix product adds up depends on its shape. Serving on a CPU, a head always sees the same
    number of rows, so that a row's last bits do not depend on how many others there are.
    """

    __constants__ = ("tile",)
    tile = 8

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.head = head

    def forward(self, features: Tensor) -> Tensor:
        """The head of features (B, W). TorchScript compiles it, too."""
        count = features.size(0)
        filled = F.pad(features, [0, 0, 0, -count % self.tile])
        return torch.cat([self.head(tile) for tile in torch.split(filled, self.tile)])[:count]


def _read(head: nn.Module, features: Tensor) -> Tensor:
    """`head` of features (B, W)."""
    serving = features.device.type == "cpu" and torch.is_inference_mode_enabled()
    found: Tensor = _Tiled(head)(features) if serving else head(features)
    return found


@dataclass(frozen=True)
class Logits:
    """Uncalibrated logits: `sentiment` (B, 3) negative, neutral, positive; `topic` (B, T)."""

    sentiment: Tensor
    topic: Tensor


class Classifier(nn.Module):
    """Text and charts to sentiment and topic.

    Parameters
    ----------
    text : encoder of token ids (any Hugging Face encoder).
    hidden_size : H of `text`.
    topics : number of topics T.
    vision : image encoder, or None for a model that reads text only.
    fusion : how the two come together.
    dropout : in the heads.
    """

    def __init__(
        self,
        text: nn.Module,
        hidden_size: int,
        topics: int,
        vision: VisionBackbone | None,
        *,
        fusion: FusionKind = "cross",
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self.text = text
        self.topics = topics
        self.vision = vision
        # Without a vision backbone the fusion holds the stand-in alone and no image ever reaches it.
        self.fusion: Fusion = make_fusion(fusion, hidden_size, vision.hidden_size if vision is not None else 1)
        width = self.fusion.width
        self.sentiment_head = nn.Sequential(
            nn.Dropout(dropout),
            nn.Linear(width, hidden_size),
            nn.GELU(),
            nn.Dropout(dropout),
            nn.Linear(hidden_size, 3),
        )
        self.topic_head = nn.Sequential(nn.Dropout(dropout), nn.Linear(hidden_size, topics))

    @property
    def heads(self) -> nn.ModuleDict:
        """The heads that belong to no backbone, for saving."""
        return nn.ModuleDict({"sentiment": self.sentiment_head, "topic": self.topic_head})

    def encode_text(self, batch: Batch) -> TextFeatures:
        """Contextual token vectors of a batch."""
        tokens: Tensor = self.text(input_ids=batch.ids, attention_mask=batch.mask.long()).last_hidden_state
        return TextFeatures(tokens, batch.mask, batch.span)

    def encode_images(self, pixels: Tensor) -> VisionTokens:
        """Features of `pixels` (B, 3, height, width); the model must have a vision backbone."""
        if self.vision is None:
            raise ValueError("this model has no vision backbone")
        features: VisionTokens = self.vision(pixels)
        return features

    def topic_logits(self, text: TextFeatures) -> Tensor:
        """(B, T) from the mean over each text."""
        width = text.tokens.shape[-1]
        return _read(self.topic_head, text.pooled()[:, :width])

    def sentiment_of_text(self, text: TextFeatures) -> Tensor:
        """(B, 3) of texts without a chart."""
        return _read(self.sentiment_head, self.fusion.text_only(text))

    def sentiment_of_both(self, text: TextFeatures, image: VisionTokens) -> Tensor:
        """(B, 3) of texts, each with its chart."""
        return _read(self.sentiment_head, self.fusion.both(text, image))

    def sentiment_of_image(self, image: VisionTokens) -> Tensor:
        """(B, 3) of charts without a text."""
        return _read(self.sentiment_head, self.fusion.image_only(image))

    def forward(self, batch: Batch) -> Logits:
        """Logits of texts alone: what the text part is trained on."""
        text = self.encode_text(batch)
        return Logits(self.sentiment_of_text(text), self.topic_logits(text))

    def text_parameters(self) -> list[nn.Parameter]:
        """Trainable parameters that a text alone uses: adapter, heads and the stand-in for an image."""
        parts = (self.text, self.sentiment_head, self.topic_head)
        found = [parameter for part in parts for parameter in part.parameters() if parameter.requires_grad]
        return [*found, self.fusion.absent_image]

    def device(self) -> torch.device:
        """Where the weights are."""
        return self.fusion.absent_image.device


class TextReader(nn.Module):
    """What a served model makes of a text's features, in one call that TorchScript can compile."""

    def __init__(self, network: Classifier) -> None:
        super().__init__()
        cpu = network.device().type == "cpu"
        self.topic = _Tiled(network.topic_head) if cpu else network.topic_head
        self.sentiment = _Tiled(network.sentiment_head) if cpu else network.sentiment_head
        self.absent_image = network.fusion.absent_image

    def forward(self, pooled: Tensor, sentiment_temperature: Tensor, topic_temperature: float) -> Tensor:
        """Probabilities (B, T + 3) of topics, then of sentiments, from `TextFeatures.pooled` (B, 2H).

        `sentiment_temperature` is (B, 1).
        """
        width = pooled.size(1) // 2
        topic = self.topic(pooled[:, :width]).float() / topic_temperature
        sentiment = self.sentiment(without_image(pooled, self.absent_image)).float() / sentiment_temperature
        return torch.cat([torch.softmax(topic, dim=1), torch.softmax(sentiment, dim=1)], dim=1)
