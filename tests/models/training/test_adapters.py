"""What is trained is what is saved: every kind of adapter, on text and on pictures."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch

from models.adapters import AdapterSettings, add_adapter, orthogonality, ranks_settle_at
from models.answers import LoadedModel
from models.backbones import load_text_backbone
from models.bundle import load_model, save_model
from models.classifier import Classifier
from models.model_file import ModelFile
from models.tokens import Row
from models.training import text_stage
from models.training import train as train_module
from models.training.config import Adaptation, FusionStage, TrainingConfig
from models.training.datasets import read_labelled
from models.training.train import fine_tune, train
from monitor.errors import ConfigurationError
from tests.models.tiny import picture
from tests.models.training.test_train import config_of, labelled

__all__ = ["labelled"]

ASKED = [Row("Firm1 profit surges"), Row("Firm2 shares tumble", (0, 5)), Row("Firm3 holds meeting", image=picture())]


@pytest.fixture
def before(monkeypatch: pytest.MonkeyPatch) -> list[np.ndarray]:
    """What the trained network said each time just before it was saved."""
    said: list[np.ndarray] = []

    def saving(network: Classifier, file: ModelFile, folder: Path, *, card: str) -> ModelFile:
        model = LoadedModel(copy.deepcopy(network), load_text_backbone(file.text_backbone), file, torch.device("cpu"))
        found = model.predict(ASKED)
        said.append(np.concatenate([found.sentiment, found.topic, found.chart], axis=1))
        return save_model(network, file, folder, card=card)

    monkeypatch.setattr(train_module, "save_model", saving)
    return said


def answers(folder: Path) -> np.ndarray:
    found = load_model(folder, device="cpu").predict(ASKED)
    return np.concatenate([found.sentiment, found.topic, found.chart], axis=1)


def adapted(backbone: Path, kind: Any, **changes: Any) -> TrainingConfig:
    settings = AdapterSettings(kind=kind, rank=2, alpha=4)
    return config_of(
        backbone, adapter=settings, averaging=0.0 if kind == "adalora" else 0.9, trackers=(), epochs=1, **changes
    )


@pytest.mark.parametrize("kind", ["lora", "dora", "adalora", "none"])
def test_a_loaded_model_answers_as_the_trained_one(
    tmp_path: Path, small_backbone: Path, labelled: Path, before: list[np.ndarray], kind: Any
) -> None:
    config = adapted(small_backbone, kind, validations_per_epoch=4)
    base = train(config, tmp_path / "base", data=[labelled])
    np.testing.assert_allclose(answers(base), before[-1], atol=1e-5)
    # Also where a run goes on from it; the config's own adapter then counts for nothing.
    further = config_of(small_backbone, base=str(base), epochs=1, seed=5, trackers=())
    out = train(further, tmp_path / "out", data=[labelled])
    np.testing.assert_allclose(answers(out), before[-1], atol=1e-5)
    assert np.abs(answers(out) - answers(base)).max() > 1e-4
    tuned = fine_tune(out, read_labelled(labelled), tmp_path / "tuned", learning_rate=5e-3)
    np.testing.assert_allclose(answers(tuned), before[-1], atol=1e-5)


@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_a_loaded_model_reads_pictures_as_the_trained_one(
    tmp_path: Path, small_backbone: Path, small_vision: Path, labelled: Path, before: list[np.ndarray], kind: Any
) -> None:
    config = adapted(
        small_backbone,
        "lora",
        vision_backbone=str(small_vision),
        vision_adapter=AdapterSettings(kind=kind, rank=2, alpha=4),
        fusion_stage=FusionStage(pictures=24, epochs=1, batch=8),
    )
    out = train(config, tmp_path / "out", data=[labelled])
    assert list((out / "vision").glob("adapter_model.safetensors"))
    np.testing.assert_allclose(answers(out), before[-1], atol=1e-5)


def test_without_an_adapter_the_heads_alone_are_trained(
    tmp_path: Path, small_backbone: Path, labelled: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: set[str] = set()
    begun = text_stage.TextStage._optimizer

    def watching(stage: text_stage.TextStage) -> torch.optim.Optimizer:
        trained.update(stage.named)
        return begun(stage)

    monkeypatch.setattr(text_stage.TextStage, "_optimizer", watching)
    base = train(adapted(small_backbone, "none"), tmp_path / "base", data=[labelled])
    train(config_of(small_backbone, base=str(base), epochs=1, trackers=()), tmp_path / "out", data=[labelled])
    assert trained
    assert not [name for name in trained if name.startswith("text.")]
    with pytest.raises(ConfigurationError, match="no adapter to adapt"):
        train(
            config_of(small_backbone, base=str(base), epochs=1, adaptation=Adaptation(epochs=1)),
            tmp_path / "adapted",
            data=[labelled],
        )


@pytest.mark.parametrize(("steps", "settled"), [(2, 3), (3, 3), (9, 5), (40, 20)])
def test_adalora_has_dropped_its_ranks_by_the_middle(small_backbone: Path, steps: int, settled: int) -> None:
    assert ranks_settle_at(steps) == settled
    torch.manual_seed(0)
    encoder = load_text_backbone(str(small_backbone)).encoder
    model: Any = add_adapter(encoder, AdapterSettings(kind="adalora", rank=1, alpha=2), total_steps=steps)
    optimizer = torch.optim.Adam([value for value in model.parameters() if value.requires_grad], lr=1e-2)
    found: list[dict[str, list[bool]]] = []
    for step in range(1, steps + 1):
        loss = model(input_ids=torch.randint(5, 500, (2, 6))).last_hidden_state[..., :3].sum()
        loss.backward()
        optimizer.step()
        model.base_model.update_and_allocate(step)
        optimizer.zero_grad()
        found.append(dict(model.peft_config["default"].rank_pattern or {}))
    assert not found[0]
    if settled <= steps:
        kept = found[settled - 1]
        assert sum(sum(ranks) for ranks in kept.values()) == len(kept)
        assert found[-1] == kept


def test_the_best_weights_are_taken_once_the_ranks_are_settled(
    tmp_path: Path, small_backbone: Path, labelled: Path, before: list[np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Falling from the first validation on, so that the first that counts is the best.
    scores = iter(np.linspace(1.0, 0.0, 50))
    monkeypatch.setattr(text_stage, "accuracies", lambda logits, data: {"sentiment": float(next(scores))})
    best: list[tuple[bool, bool]] = []
    validate = text_stage.TextStage._validate

    def watching(stage: text_stage.TextStage) -> dict[str, float]:
        found = validate(stage)
        best.append((bool(stage.best), stage.step >= ranks_settle_at(stage.total)))
        return found

    monkeypatch.setattr(text_stage.TextStage, "_validate", watching)
    config = msgspec.structs.replace(
        adapted(small_backbone, "adalora", validations_per_epoch=6), epochs=2, patience=2, learning_rate=2e-2
    )
    out = train(config, tmp_path / "out", data=[labelled])
    assert all(held == settled for held, settled in best)
    assert {held for held, _ in best} == {True, False}
    np.testing.assert_allclose(answers(out), before[-1], atol=1e-5)


def test_the_singular_vectors_are_kept_orthogonal(small_backbone: Path) -> None:
    encoder = load_text_backbone(str(small_backbone)).encoder
    model: Any = add_adapter(encoder, AdapterSettings(kind="adalora", rank=2, alpha=4), total_steps=10)
    start = orthogonality(model)
    # As the library draws them the vectors are short: each product is nearly 0 where it should be 1.
    assert float(start.detach()) == pytest.approx(0.5 * 3**0.5, rel=0.05)
    optimizer = torch.optim.Adam([value for value in model.parameters() if value.requires_grad], lr=0.05)
    for _ in range(150):
        optimizer.zero_grad()
        orthogonality(model).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    assert float(orthogonality(model).detach()) < 0.2 * float(start.detach())
