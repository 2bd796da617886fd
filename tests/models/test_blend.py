"""Between two models, and temperatures that fit."""

from __future__ import annotations

import shutil
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch

from models.bundle import load_model, restore_model, save_model
from models.calibration import Calibration, expected_calibration_error
from models.model_file import read_model_file
from models.registry import check_folder
from models.tokens import Row
from models.training.blend import blend, recalibrate
from models.training.datasets import Example
from models.training.text_stage import Cancelled

TEXTS = [
    f"{name} shares {verb} {n}" for name in ("Boeing", "Tesla") for verb in ("fall", "rise", "move") for n in range(90)
]


def go_on() -> bool:
    return False


@pytest.fixture
def two(tmp_path: Path, small_model: Path) -> tuple[Path, Path]:
    """A model, and one like it whose weights are all a little off."""
    network, _, file = restore_model(small_model)
    torch.manual_seed(0)
    with torch.no_grad():
        for name, value in network.named_parameters():
            if "lora_" in name or "head" in name:
                value.add_(0.1 * torch.randn_like(value))
    save_model(network, file, tmp_path / "moved", card="# Card\n")
    return small_model, tmp_path / "moved"


def trained(folder: Path) -> dict[str, torch.Tensor]:
    network, _, _ = restore_model(folder)
    return {name: value for name, value in network.named_parameters() if "lora_" in name or "head" in name}


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_a_blend_lies_on_the_line_between_both(two: tuple[Path, Path], tmp_path: Path, share: float) -> None:
    parent, candidate = two
    blended = Path(shutil.copytree(candidate, tmp_path / "blended"))
    blend(parent, blended, share)
    old, new, found = trained(parent), trained(candidate), trained(blended)
    for name, value in found.items():
        assert torch.allclose(value, old[name] + share * (new[name] - old[name]), atol=1e-6), name
    assert check_folder(blended).version == read_model_file(blended).version
    assert (blended / "README.md").read_text() == "# Card\n"
    same = {0.0: parent, 1.0: candidate}.get(share)
    if same is not None:
        ours, theirs = (load_model(one, device="cpu").predict([Row(TEXTS[0])]).sentiment for one in (blended, same))
        assert np.allclose(ours, theirs, atol=1e-5)


def test_temperatures_are_made_to_fit(small_model: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(small_model, tmp_path / "model"))
    network, _, file = restore_model(folder)
    save_model(network, msgspec.structs.replace(file, calibration=Calibration(item=0.3, topic=0.7)), folder, card="")
    model = load_model(folder, device="cpu")
    # Labels drawn from what the model says at a temperature of 1.2.
    said = model.predict([Row(text) for text in TEXTS]).sentiment.astype(np.float64) ** (0.3 / 1.2)
    said /= said.sum(axis=1, keepdims=True)
    rng = np.random.default_rng(0)
    labels = [int(rng.choice(3, p=p)) for p in said]
    examples = [Example(text=text, sentiment=label) for text, label in zip(TEXTS, labels, strict=True)]
    found = recalibrate(folder, examples, go_on, device="cpu")
    assert found.item == pytest.approx(1.2, rel=0.25)
    # Nothing was asked about topics and entities.
    assert (found.topic, found.entity) == (0.7, 1.0)
    assert check_folder(folder).calibration == found
    again = load_model(folder, device="cpu").predict([Row(text) for text in TEXTS]).sentiment
    assert expected_calibration_error(again, np.array(labels)) < 0.06
    # From a few rows nothing is fitted.
    assert recalibrate(folder, examples[:100], go_on, device="cpu") == found
    with pytest.raises(Cancelled):
        recalibrate(folder, examples, lambda: True, device="cpu")
