"""What a model card says of each class, and of how rows were kept apart."""

from __future__ import annotations

import numpy as np

from models.answers import SENTIMENTS
from models.model_card import write_card
from models.model_file import ModelFile
from models.training.config import TrainingConfig
from models.training.measure import figures
from monitor.taxonomy import bundled_taxonomy

ROWS = {"train": 5, "validation": 2, "test": 4}


def card(metrics: dict[str, float], *data: str) -> str:
    file = ModelFile(name="mine", taxonomy=bundled_taxonomy(), data=data, metrics=metrics)
    return write_card(file, TrainingConfig(), ROWS)


def measured(group: str, names: tuple[str, ...]) -> dict[str, float]:
    probabilities = np.eye(3)[[0, 1, 1, 2]]
    found = figures(probabilities, np.array([0, 1, 2, 2]), names)
    return {f"{group}.{name}": value for name, value in found.items()}


def test_every_class_has_its_precision_recall_and_f1() -> None:
    told = card(measured("sentfin.sentiment", SENTIMENTS) | measured("charts.chart_only", ("down", "flat", "up")))
    assert "| held-out part | class | precision | recall | F1 |" in told
    assert "| sentfin.sentiment | negative | 1.000 | 1.000 | 1.000 |" in told
    assert "| charts.chart_only | flat | 0.500 | 1.000 | 0.667 |" in told
    assert "| charts.chart_only | up | 1.000 | 0.500 | 0.667 |" in told
    assert "50% of up taken for flat" in told
    # A model that was measured before keeps what it has.
    assert "| sentfin.topic | macro |  |  | 0.800 |" in card({"sentfin.topic.f1.macro": 0.8})


def test_near_duplicates_are_promised_only_as_far_as_they_were_kept_apart() -> None:
    assert "never lie on both sides.\n" in card({}, "sentfin", "twitter_topic")
    own = card({}, "sentfin", "rows")
    assert "never lie on both sides.\n" not in own
    assert "the others lie where the user put\nthem." in own
