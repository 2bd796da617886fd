"""Fusion of text and chart into the features that the sentiment head reads.

All three ways share one interface, so that they can be measured against each other:

- `cross`: every text token looks at the image's tokens and at its pooled vector (cross-attention, Vaswani et al. 2017,
  section 3.2.3), and at a null token, by which a text that needs no chart can look away;
- `concat`: pooled text and pooled image side by side through a small network;
- `pool`: the mean of pooled text and projected pooled image.

Text alone and image alone are the common case. A learned stand-in takes the missing modality's place, and neither
case pays for what is missing. What a text alone gives does not depend on the weights that read images, so the fusion
can be trained afterwards without touching the text's own results.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from models.backbones import VisionTokens

__all__ = [
    "ConcatFusion",
    "CrossAttentionFusion",
    "Fusion",
    "FusionKind",
    "PoolFusion",
    "TextFeatures",
    "make_fusion",
    "without_image",
]

FusionKind = Literal["cross", "concat", "pool"]


@dataclass(frozen=True)
class TextFeatures:
    """Encoded texts: `tokens` (B, L, H), `mask` (B, L) True at tokens, `span` (B, L) True at what is asked about.

    `span` marks the entity (with its markers) in an entity row and every token in an item row. `means` (B, 2H) are
    the means over text and span where whoever encoded the texts has them; `tokens` may then be empty (L = 0) as long
    as no row has a picture.
    """

    tokens: Tensor
    mask: Tensor
    span: Tensor
    means: Tensor | None = None

    def pooled(self) -> Tensor:
        """Mean over the text and mean over the span, side by side: (B, 2H)."""
        if self.means is not None:
            return self.means
        return torch.cat([_mean(self.tokens, self.mask), _mean(self.tokens, self.span)], dim=-1)

    def select(self, index: Tensor) -> TextFeatures:
        """The rows at `index` (K,)."""
        means = None if self.means is None else self.means[index]
        return TextFeatures(self.tokens[index], self.mask[index], self.span[index], means)


def _mean(tokens: Tensor, mask: Tensor) -> Tensor:
    weight = mask.to(tokens.dtype).unsqueeze(-1)
    return (tokens * weight).sum(1) / weight.sum(1).clamp(min=1.0)


def without_image(pooled: Tensor, absent: Tensor) -> Tensor:
    """Features (B, 2H) of texts without an image, from their means (B, 2H) and the stand-in (H,)."""
    return pooled + absent.repeat(2)


class Fusion(nn.Module, ABC):
    """Base of the three ways. `width` = 2H is the size of the features that come out."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.width = 2 * hidden_size
        self.absent_image = nn.Parameter(torch.zeros(hidden_size))

    def text_only(self, text: TextFeatures) -> Tensor:
        """Features (B, 2H) of texts without an image."""
        return without_image(text.pooled(), self.absent_image)

    @abstractmethod
    def both(self, text: TextFeatures, image: VisionTokens) -> Tensor:
        """Features (B, 2H) of texts, each with its image."""

    @abstractmethod
    def image_only(self, image: VisionTokens) -> Tensor:
        """Features (B, 2H) of images without a text."""

    def image_parameters(self) -> list[nn.Parameter]:
        """Parameters that text alone does not use."""
        return [parameter for name, parameter in self.named_parameters() if name != "absent_image"]


class CrossAttentionFusion(Fusion):
    """Text tokens attend to image tokens; learned queries stand in for a missing text."""

    def __init__(self, hidden_size: int, image_size: int, *, heads: int = 6, queries: int = 4) -> None:
        super().__init__(hidden_size)
        self.project = nn.Sequential(nn.Linear(image_size, hidden_size), nn.LayerNorm(hidden_size))
        # The pooled vector holds what the encoder makes of the whole picture, such as where its curve begins and ends:
        # no single place of it does.
        self.project_whole = nn.Sequential(nn.Linear(image_size, hidden_size), nn.LayerNorm(hidden_size))
        self.null = nn.Parameter(torch.randn(hidden_size) * 0.02)
        self.absent_text = nn.Parameter(torch.randn(queries, hidden_size) * 0.02)
        self.norm = nn.LayerNorm(hidden_size)
        self.attention = nn.MultiheadAttention(hidden_size, heads, batch_first=True)
        self.inner = nn.Sequential(
            nn.LayerNorm(hidden_size),
            nn.Linear(hidden_size, 2 * hidden_size),
            nn.GELU(),
            nn.Linear(2 * hidden_size, hidden_size),
        )

    def _attend(self, tokens: Tensor, image: VisionTokens) -> Tensor:
        seen = self.project(image.tokens)
        whole = self.project_whole(image.pooled).unsqueeze(1)
        keys = torch.cat([self.null.to(seen.dtype).expand(len(seen), 1, -1), whole, seen], dim=1)
        found, _ = self.attention(self.norm(tokens), keys, keys, need_weights=False)
        fused = tokens + found
        read: Tensor = fused + self.inner(fused)
        return read

    def both(self, text: TextFeatures, image: VisionTokens) -> Tensor:
        """Features (B, 2H) of texts, each with its image."""
        return TextFeatures(self._attend(text.tokens, image), text.mask, text.span).pooled()

    def image_only(self, image: VisionTokens) -> Tensor:
        """Features (B, 2H) of images: the stand-in's queries read them."""
        queries = self.absent_text.expand(len(image.tokens), -1, -1)
        return self._attend(queries, image).mean(1).repeat(1, 2)


class ConcatFusion(Fusion):
    """Pooled text and pooled image through a two-layer network, added to the pooled text."""

    def __init__(self, hidden_size: int, image_size: int) -> None:
        super().__init__(hidden_size)
        self.absent_text = nn.Parameter(torch.randn(self.width) * 0.02)
        self.inner = nn.Sequential(
            nn.LayerNorm(self.width + image_size),
            nn.Linear(self.width + image_size, self.width),
            nn.GELU(),
            nn.Linear(self.width, self.width),
        )

    def both(self, text: TextFeatures, image: VisionTokens) -> Tensor:
        """Features (B, 2H) of texts, each with its image."""
        pooled = text.pooled()
        added: Tensor = self.inner(torch.cat([pooled, image.pooled], dim=-1))
        return pooled + added

    def image_only(self, image: VisionTokens) -> Tensor:
        """Features (B, 2H) of images."""
        pooled = self.absent_text.expand(len(image.pooled), -1)
        added: Tensor = self.inner(torch.cat([pooled, image.pooled], dim=-1))
        return pooled + added


class PoolFusion(Fusion):
    """The mean of pooled text and projected pooled image."""

    def __init__(self, hidden_size: int, image_size: int) -> None:
        super().__init__(hidden_size)
        self.project = nn.Sequential(nn.LayerNorm(image_size), nn.Linear(image_size, self.width))

    def both(self, text: TextFeatures, image: VisionTokens) -> Tensor:
        """Features (B, 2H) of texts, each with its image."""
        projected: Tensor = self.project(image.pooled)
        return 0.5 * (text.pooled() + projected)

    def image_only(self, image: VisionTokens) -> Tensor:
        """Features (B, 2H) of images."""
        projected: Tensor = self.project(image.pooled)
        return projected


def make_fusion(kind: FusionKind, hidden_size: int, image_size: int) -> Fusion:
    """The fusion `kind` for text features of size H and image features of size D."""
    if kind == "cross":
        heads = next(count for count in (6, 4, 3, 2, 1) if hidden_size % count == 0)
        return CrossAttentionFusion(hidden_size, image_size, heads=heads)
    return ConcatFusion(hidden_size, image_size) if kind == "concat" else PoolFusion(hidden_size, image_size)
