"""Batched scoring of items and charts: `open_scorer(settings, engine)`, then `scorer.score(requests)`."""

from models.engine.items import Flag, ScoringRequest
from models.engine.scorer import Scorer, open_scorer

__all__ = ["Flag", "Scorer", "ScoringRequest", "open_scorer"]
