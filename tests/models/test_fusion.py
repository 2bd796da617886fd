from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from models.fusion import Fusion, FusionKind, TextFeatures, make_fusion

KINDS: tuple[FusionKind, ...] = ("cross", "concat", "pool")


class Picture(NamedTuple):
    tokens: Tensor
    pooled: Tensor


def features(lengths: list[int], width: int = 12) -> TextFeatures:
    torch.manual_seed(3)
    tokens = torch.randn(len(lengths), max(lengths), width)
    mask = torch.arange(max(lengths))[None] < torch.tensor(lengths)[:, None]
    return TextFeatures(tokens, mask, mask)


def pictures(count: int) -> Picture:
    torch.manual_seed(4)
    tokens = torch.randn(count, 5, 8)
    return Picture(tokens, tokens.mean(1))


def fusion(kind: FusionKind) -> Fusion:
    torch.manual_seed(5)
    return make_fusion(kind, 12, 8).eval()


@pytest.mark.parametrize("kind", KINDS)
def test_shapes_with_and_without_each_modality(kind: FusionKind) -> None:
    part, text, image = fusion(kind), features([4, 2]), pictures(2)
    assert part.text_only(text).shape == part.both(text, image).shape == part.image_only(image).shape == (2, 24)


@pytest.mark.parametrize("kind", KINDS)
def test_padding_changes_nothing(kind: FusionKind) -> None:
    part, text, image = fusion(kind), features([4, 2]), pictures(2)
    short = TextFeatures(text.tokens[1:, :2], text.mask[1:, :2], text.span[1:, :2])
    one = Picture(image.tokens[1:], image.pooled[1:])
    assert torch.allclose(part.both(text, image)[1], part.both(short, one)[0], atol=1e-6)
    assert torch.allclose(part.text_only(text)[1], part.text_only(short)[0], atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_text_alone_does_not_depend_on_what_reads_images(kind: FusionKind) -> None:
    part, text = fusion(kind), features([3])
    before = part.text_only(text)
    with torch.no_grad():
        for parameter in part.image_parameters():
            parameter.add_(1.0)
    assert torch.equal(part.text_only(text), before)


@pytest.mark.parametrize("kind", KINDS)
def test_the_picture_matters(kind: FusionKind) -> None:
    part, text, image = fusion(kind), features([3]), pictures(1)
    other = Picture(image.tokens + 1.0 * torch.randn(8), image.pooled + torch.randn(8))
    assert not torch.allclose(part.both(text, image), part.both(text, other), atol=1e-4)
    assert not torch.allclose(part.image_only(image), part.image_only(other), atol=1e-4)


def test_the_span_is_pooled_apart() -> None:
    text = features([3])
    span = torch.tensor([[False, True, False]])
    pooled = TextFeatures(text.tokens, text.mask, span).pooled()
    assert torch.allclose(pooled[0, :12], text.tokens[0].mean(0), atol=1e-6)
    assert torch.allclose(pooled[0, 12:], text.tokens[0, 1], atol=1e-6)


def test_the_base_class_is_no_fusion() -> None:
    with pytest.raises(TypeError, match="abstract"):
        Fusion(12)  # type: ignore[abstract]
