"""Adaptation to unlabelled text, soft labels of teachers, and averaged models."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from models.bundle import load_model
from models.classifier import Logits
from models.model_file import read_model_file
from models.tokens import Row
from models.training.adaptation import hide, read_unlabelled
from models.training.config import Adaptation, TrainingConfig
from models.training.datasets import Example
from models.training.distillation import soft_labels
from models.training.losses import SoftLabels, distillation_loss
from models.training.report_sentences import MADE_UP
from models.training.train import Cancelled, train
from monitor.errors import InputError, ModelError
from tests.models.tiny import tiny_backbone
from tests.models.training.test_train import config_of, weights_of


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    lines: list[dict[str, Any]] = []
    for number in range(40):
        part = "train" if number < 30 else "validation" if number < 35 else "test"
        word, label = ("profit rises", "positive") if number % 2 else ("profit falls", "negative")
        lines.append({"text": f"Firm{number} says {word} again", "sentiment": label, "part": part})
    path.write_text("\n".join(json.dumps(line) for line in lines))
    return path


@given(share=st.floats(0.05, 0.95), seed=st.integers(0, 1000))
def test_only_allowed_tokens_are_hidden_and_every_answer_is_what_stood_there(share: float, seed: int) -> None:
    ids = torch.arange(2000).reshape(4, 500) % 997 + 200
    allowed = torch.rand(ids.shape, generator=torch.Generator().manual_seed(seed)) < 0.7
    shown, answers = hide(ids, allowed, share, 103, 30522, torch.Generator().manual_seed(seed + 1))
    asked = answers != -100
    assert not bool((asked & ~allowed).any())
    assert torch.equal(answers[asked], ids[asked])
    assert torch.equal(shown[~asked], ids[~asked])
    assert abs(float(asked.sum()) / float(allowed.sum()) - share) < 0.08
    assert float((shown[asked] == 103).float().mean()) == pytest.approx(0.8, abs=0.25)


def test_adaptation_learns_its_texts_and_a_stopped_run_resumes_to_the_same_weights(
    tmp_path: Path, small_backbone: Path, rows: Path
) -> None:
    further = tmp_path / "further.jsonl"
    further.write_text("\n".join(json.dumps({"text": f"the bank lends more {n % 3}"}) for n in range(30)))
    config = config_of(small_backbone, epochs=1, trackers=(), adaptation=Adaptation(3, 2e-2, 0.15, (str(further),)))
    notes: list[float] = []

    def told(stage: str, done: int, total: int, note: str) -> None:
        if stage == "adaptation":
            notes.append(float(note.split()[-1]))

    whole = train(config, tmp_path / "whole", data=[rows], progress=told)
    assert notes[-1] < notes[0]
    assert len(notes) > 8
    plain = train(msgspec.structs.replace(config, adaptation=Adaptation()), tmp_path / "plain", data=[rows])
    assert any(not torch.equal(value, weights_of(plain)[name]) for name, value in weights_of(whole).items())

    adapted = len(notes)
    for stop_after in (3, adapted + 2):
        steps = 0

        def cancelled() -> bool:
            nonlocal steps
            steps += 1
            return steps == stop_after  # noqa: B023 - called before the next turn

        out = tmp_path / f"stopped{stop_after}"
        with pytest.raises(Cancelled):
            train(config, out, data=[rows], cancelled=cancelled)
        train(config, out, data=[rows], resume=True)
        for name, value in weights_of(out).items():
            assert torch.equal(value, weights_of(whole)[name]), name


def test_an_unusable_line_of_unlabelled_text_is_named(tmp_path: Path) -> None:
    path = tmp_path / "texts.jsonl"
    path.write_text('{"text": "fine"}\n{"words": 1}\n')
    with pytest.raises(InputError, match="line 2"):
        read_unlabelled(path)
    with pytest.raises(InputError, match="cannot be read"):
        read_unlabelled(tmp_path / "none.jsonl")


def test_soft_labels_teach_a_task_that_no_row_has_a_label_for(tmp_path: Path, small_backbone: Path, rows: Path) -> None:
    config = config_of(small_backbone, epochs=1, trackers=())
    teacher = train(config, tmp_path / "teacher", data=[rows])
    weights = load_file(teacher / "heads.safetensors")
    asked = [Row(f"Firm{number} says profit falls again") for number in range(8)]
    before = load_model(teacher, device="cpu").predict(asked).topic
    pupil_of = msgspec.structs.replace(
        config, seed=7, epochs=8, patience=99, averaging=0.0, teachers=(str(teacher),), distillation=1.0
    )
    alone = msgspec.structs.replace(pupil_of, teachers=(), distillation=0.0)
    taught = load_model(train(pupil_of, tmp_path / "pupil", data=[rows]), device="cpu").predict(asked).topic
    untaught = load_model(train(alone, tmp_path / "alone", data=[rows]), device="cpu").predict(asked).topic
    assert abs(taught - before).mean() < 0.85 * abs(untaught - before).mean()
    assert weights.keys() == load_file(teacher / "heads.safetensors").keys()
    # About a made-up sentence the teacher is not asked.
    texts = [Example(text="Firm1 says profit falls again"), Example(text="Sales 5 vs 3", sentiment=2, origin=MADE_UP)]
    soft = soft_labels([str(teacher)], texts, read_model_file(teacher).taxonomy.labels)
    assert soft.sentiment[1].tolist() == [0.0, 0.0, 1.0]
    assert not soft.topic[1].any()
    assert soft.topic[0].sum() == pytest.approx(1.0, abs=1e-4)


def test_the_distillation_loss_is_least_at_the_teachers_answer() -> None:
    soft = SoftLabels(torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.1, 0.8]]), torch.tensor([[0.5, 0.5], [0.9, 0.1]]))
    asked = torch.tensor([False, True])
    least = distillation_loss(Logits(soft.sentiment.log(), soft.topic.log()), soft, asked)
    moved = soft.sentiment.log().clone()
    moved[0, 1] += 0.3
    assert distillation_loss(Logits(moved, soft.topic.log()), soft, asked) > least
    # An entity row teaches no topic.
    other = soft.topic.log().clone()
    other[1] = torch.tensor([0.0, 5.0])
    assert distillation_loss(Logits(soft.sentiment.log(), other), soft, asked) == least


def test_the_card_names_the_data_of_every_model_that_went_in(tmp_path: Path, small_backbone: Path, rows: Path) -> None:
    bank = tmp_path / "phrasebank.jsonl"
    bank.write_text(rows.read_text())
    restricted = train(config_of(small_backbone, epochs=1, trackers=()), tmp_path / "restricted", data=[bank])
    free = config_of(small_backbone, epochs=1, trackers=(), sets=("sentfin",), set_share=0.002)
    ways: list[dict[str, Any]] = [
        {"teachers": (str(restricted),), "distillation": 0.5},
        {"average_with": (str(restricted),)},
    ]
    for number, changes in enumerate(ways):
        out = train(msgspec.structs.replace(free, **changes), tmp_path / str(number))
        card = (out / "README.md").read_text()
        assert "license: cc-by-nc-sa-3.0" in card
        assert str(tmp_path) not in card
        assert "phrasebank" in read_model_file(out).data


def test_an_adaptation_of_another_run_is_not_taken_up(tmp_path: Path, small_backbone: Path, rows: Path) -> None:
    config = config_of(small_backbone, epochs=1, trackers=(), adaptation=Adaptation(1))
    out, steps = tmp_path / "out", 0

    def cancelled() -> bool:
        nonlocal steps
        steps += 1
        return (out / "adapted.pt").exists()

    with pytest.raises(Cancelled):
        train(config, out, data=[rows], cancelled=cancelled)
    (out / "checkpoint.pt").unlink()
    other = msgspec.structs.replace(config, adaptation=Adaptation(1, learning_rate=1e-4))
    with pytest.raises(InputError, match="belongs to another config"):
        train(other, out, data=[rows], resume=True)
    (out / "adapted.pt").write_bytes(b"torn")
    with pytest.raises(InputError, match="is damaged"):
        train(config, out, data=[rows], resume=True)


def test_averaging_gives_the_mean_of_models_begun_alike(tmp_path: Path, small_backbone: Path, rows: Path) -> None:
    first = train(config_of(small_backbone, epochs=1, trackers=()), tmp_path / "first", data=[rows])
    again = config_of(small_backbone, base=str(first), epochs=2, seed=5, trackers=(), learning_rate=1e-2)
    second = train(again, tmp_path / "second", data=[rows])
    soup_of = msgspec.structs.replace(again, average_with=(str(first),))
    soup = train(soup_of, tmp_path / "soup", data=[rows])
    for name in ("adapter_model.safetensors/", "heads.safetensors/"):
        keys = [key for key in weights_of(soup) if key.startswith(name)]
        assert keys
        for key in keys:
            mean = (weights_of(first)[key] + weights_of(second)[key]) / 2
            torch.testing.assert_close(weights_of(soup)[key], mean)
    wider = tiny_backbone(tmp_path / "wider")
    other = train(
        config_of(wider, epochs=1, adapter=msgspec.structs.replace(again.adapter, rank=2)), tmp_path / "o", data=[rows]
    )
    with pytest.raises(ModelError, match="another backbone"):
        train(msgspec.structs.replace(again, average_with=(str(other),)), tmp_path / "no", data=[rows])


@pytest.mark.parametrize(
    "wrong", [{"distillation": 0.5}, {"teachers": ("a",)}, {"adaptation": Adaptation(epochs=1, hidden=1.0)}]
)
def test_half_given_options_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"distillation|adaptation"):
        TrainingConfig(**wrong)
