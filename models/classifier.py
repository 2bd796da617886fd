"""The network: a text backbone, a vision backbone, their fusion, and one head a task."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.backbones import VisionBackbone, VisionTokens
from models.fusion import Fusion, FusionKind, TextFeatures, make_fusion

__all__ = ["Batch", "Classifier", "Logits"]


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


# Rows that a head reads together when it serves on a CPU.
_TILE = 32


def _read(head: nn.Module, features: Tensor) -> Tensor:
    """`head` of features (B, W).

    The order in which a matrix product adds up depends on its shape. Serving on a CPU, a head always sees the same
    number of rows, so that a row's last bits do not depend on how many others there are.
    """
    if features.device.type != "cpu" or not torch.is_inference_mode_enabled():
        whole: Tensor = head(features)
        return whole
    count = len(features)
    filled = F.pad(features, (0, 0, 0, -count % _TILE))
    return torch.cat([head(tile) for tile in torch.split(filled, _TILE)])[:count]


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
