"""Which library computes int8 here."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, Literal

import torch

from models.engine.fbgemm import FbgemmLayer
from models.engine.int8 import Recipe
from models.engine.onednn import OneDnnLayer, adds_exactly
from models.engine.packed import Layer

__all__ = ["Library", "int8_layers", "library"]

Library = Literal["onednn", "fbgemm"]

_LAYERS: Final[dict[Library, type[FbgemmLayer | OneDnnLayer]]] = {"onednn": OneDnnLayer, "fbgemm": FbgemmLayer}


def library() -> Library:
    """FBGEMM on x86 without VNNI, if this torch has it; else oneDNN, which makes more of newer instructions.

    By what the processor does and not by the clock, because the two round differently in the last place: all processes
    of a machine are to score alike. Raises `RuntimeError` or `AttributeError` where torch is without oneDNN's.
    """
    return "fbgemm" if not adds_exactly() and "fbgemm" in torch.backends.quantized.supported_engines else "onednn"


def int8_layers(recipes: Iterable[Recipe], by: Library | None = None) -> list[Layer]:
    """Layers after their recipes, by a library; by default by the one for this processor.

    Raises `RuntimeError` or `AttributeError` where this build of torch has no integer kernels for this processor.
    """
    kind = _LAYERS[by or library()]
    return [kind(one) for one in recipes]
