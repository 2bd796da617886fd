from __future__ import annotations

from pathlib import Path

from models.training.config import FusionStage, TrainingConfig


def test_every_option_is_documented() -> None:
    told = (Path(__file__).parents[3] / "docs" / "training.md").read_text(encoding="utf-8")
    names = (*TrainingConfig.__struct_fields__, *FusionStage.__struct_fields__)
    assert [name for name in names if f"`{name}" not in told and f"`[{name}]" not in told] == []
