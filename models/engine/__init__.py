"""Batched scoring of items and charts: `open_scorer(settings, engine)`, then `scorer.score(requests)`."""

from typing import TYPE_CHECKING, Any

from models.engine.items import Flag, ScoringRequest

if TYPE_CHECKING:
    from models.engine.scorer import Scorer, open_scorer

__all__ = ["Flag", "Scorer", "ScoringRequest", "open_scorer"]


def __getattr__(name: str) -> Any:
    # Torch takes seconds to import: whoever only makes requests need not wait for it.
    if name in ("Scorer", "open_scorer"):
        from models.engine import scorer

        return getattr(scorer, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
