from __future__ import annotations

import shutil
from pathlib import Path
from typing import cast

import numpy as np
import pytest
import torch
from peft import PeftModel
from transformers import BertModel

from models.adapters import merge_adapter
from models.answers import LoadedModel
from models.backbones import load_text_backbone
from models.bundle import load_model, model_folder, restore_model
from models.model_file import read_model_file
from models.tokens import Row
from monitor.errors import ModelError
from tests.models.tiny import picture, tiny_model

TEXTS = ("Apple beats estimates", "Oil falls on weak demand and a strong dollar", "$TSLA chart", "利润大增", "😀")


@pytest.fixture(scope="module")
def model(small_model: Path) -> LoadedModel:
    return load_model(small_model, device="cpu")


def test_answers_do_not_depend_on_the_batch(model: LoadedModel) -> None:
    rows = [Row(text) for text in TEXTS] + [Row(TEXTS[1], (0, 3)), Row(TEXTS[0], image=picture()), Row("")]
    together = model.predict(rows, token_budget=64)
    for number, row in enumerate(rows):
        alone = model.predict([row])
        assert np.allclose(together.sentiment[number], alone.sentiment[0], atol=1e-5)
        assert np.allclose(together.topic[number], alone.topic[0], atol=1e-5)
        assert np.allclose(together.chart[number], alone.chart[0], atol=1e-5)


def test_probabilities_sum_to_one_whatever_comes(model: LoadedModel) -> None:
    rows = [
        Row("x" * 50_000),
        Row("\ud800"),
        Row("<b>&amp;</b>"),
        Row("", image=picture()),
        Row("a", (5, 9)),
        Row("word " * 20_000, (60_000, 60_004)),
    ]
    found = model.predict(rows)
    for probabilities in (found.sentiment, found.topic, found.chart):
        assert probabilities.dtype == np.float32
        assert np.isfinite(probabilities).all()
        assert np.allclose(probabilities.sum(axis=1), 1.0, atol=1e-5)


def test_no_rows_give_empty_arrays(model: LoadedModel) -> None:
    found = model.predict([])
    assert found.sentiment.shape == (0, 3)
    assert found.topic.shape == (0, 20)


def test_an_entity_has_its_own_answer(model: LoadedModel) -> None:
    text = "Apple gains while Tesla loses"
    found = model.predict([Row(text), Row(text, (0, 5)), Row(text, (18, 23))])
    assert not np.allclose(found.sentiment[1], found.sentiment[2], atol=1e-4)
    assert not np.allclose(found.sentiment[0], found.sentiment[1], atol=1e-4)


def test_nothing_said_and_nothing_shown_gives_the_prior(model: LoadedModel) -> None:
    found = model.predict([Row("")])
    assert np.allclose(found.sentiment[0], model.file.sentiment_prior)
    assert found.p_chart[0] == 0.0
    assert np.allclose(found.chart[0], 1 / 3)


def test_each_modality_is_paid_for_only_when_there(model: LoadedModel) -> None:
    seen: list[str] = []
    vision = model.network.vision
    assert vision is not None
    hooks = [
        vision.register_forward_hook(lambda *_: seen.append("vision")),
        model.network.text.register_forward_hook(lambda *_: seen.append("text")),
    ]
    try:
        model.predict([Row("Apple beats estimates")])
        assert seen == ["text"]
        seen.clear()
        found = model.predict([Row("", image=picture())])
        assert seen == ["vision"]
        assert found.used_chart[0]
    finally:
        for hook in hooks:
            hook.remove()


def test_a_picture_that_cannot_be_used_says_why(model: LoadedModel) -> None:
    ready = model.tokenize([Row("Apple", image=b"no picture"), Row("Apple")])
    assert ready[0].pixels is None
    assert ready[0].image_problem
    found = model.forward(ready)
    assert np.allclose(found.sentiment[0], found.sentiment[1])


def test_a_picture_that_is_no_chart_does_not_change_the_sentiment(tmp_path: Path, small_backbone: Path) -> None:
    tiny_model(tmp_path / "m", small_backbone, p_chart=0.02)
    model = load_model(tmp_path / "m", device="cpu")
    found = model.predict([Row("Apple beats", image=picture()), Row("Apple beats")])
    assert not found.used_chart.any()
    assert found.p_chart[0] == pytest.approx(0.02, abs=0.01)
    assert np.allclose(found.sentiment[0], found.sentiment[1], atol=1e-6)


def test_merging_the_adapter_changes_nothing(small_model: Path) -> None:
    network, backbone, file = restore_model(small_model)
    with torch.no_grad():
        for name, parameter in network.text.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    rows = [Row(text) for text in TEXTS]
    apart = LoadedModel(network, backbone, file, torch.device("cpu")).predict(rows)
    network.text = merge_adapter(cast(PeftModel, network.text))
    merged = LoadedModel(network, backbone, file, torch.device("cpu")).predict(rows)
    assert np.allclose(apart.sentiment, merged.sentiment, atol=1e-5)


def test_the_adapter_is_in_the_standard_layout(small_model: Path, small_backbone: Path) -> None:
    adapted = PeftModel.from_pretrained(BertModel.from_pretrained(small_backbone, add_pooling_layer=False), small_model)
    ours = restore_model(small_model)[0].text
    for (_, one), (_, other) in zip(
        sorted((n, p) for n, p in adapted.named_parameters() if "lora" in n),
        sorted((n, p) for n, p in ours.named_parameters() if "lora" in n),
        strict=True,
    ):
        assert torch.equal(one, other)
    assert not list(small_model.rglob("*.bin"))


def test_the_version_follows_the_weights(tmp_path: Path, small_backbone: Path, small_model: Path) -> None:
    same = tiny_model(tmp_path / "same", small_backbone)
    other = tiny_model(tmp_path / "other", small_backbone, seed=9)
    assert same.version == read_model_file(small_model).version
    assert other.version != same.version


@pytest.mark.parametrize("name", ["heads.safetensors", "adapter_model.safetensors", "fusion.safetensors"])
def test_damaged_or_missing_weights_are_found(tmp_path: Path, small_model: Path, name: str) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(small_model, folder)
    path = folder / name
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(ModelError, match="damaged"):
        load_model(folder)
    path.unlink()
    with pytest.raises(ModelError, match="lacks"):
        load_model(folder)


def test_a_torn_model_file_is_found(tmp_path: Path, small_model: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(small_model, folder)
    file = folder / "model.json"
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(ModelError, match="not valid"):
        load_model(folder)
    file.unlink()
    with pytest.raises(ModelError, match="no model"):
        load_model(folder)
    with pytest.raises(ModelError, match="no model"):
        model_folder(tmp_path / "nowhere")


def test_an_unknown_device_is_one_sentence(small_model: Path) -> None:
    with pytest.raises(ModelError, match="device"):
        load_model(small_model, device="quantum")


def test_the_shipped_model_reads_the_plainest_news() -> None:
    model = load_model("default", device="cpu")
    text = "Infosys gains 3%, TCS slips"
    found = model.predict(
        [
            Row("Profit surges to a record, shares jump"),
            Row("Company files for bankruptcy, shares plunge"),
            Row("The annual general meeting will be held on Tuesday in Helsinki"),
            Row(text, (0, 7)),
            Row(text, (18, 21)),
        ]
    )
    assert found.sentiment.argmax(axis=1).tolist() == [2, 0, 1, 2, 0]
    assert model.taxonomy.labels == tuple(topic.name for topic in model.taxonomy.topics)
    assert sum(path.stat().st_size for path in model_folder("default").rglob("*") if path.is_file()) < 40e6
    assert load_text_backbone(model.file.text_backbone).hidden_size == 384
