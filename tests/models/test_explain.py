"""Explanations: shares of words, heat maps, shares of text and chart, neighbours."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from models import explain as module
from models.answers import LoadedModel, Predictions
from models.bundle import load_model
from models.deletion import delete
from models.engine.precision import prepare
from models.explain import explain, neighbours
from models.tokens import Row
from models.training.datasets import LabelledText
from monitor.errors import InputError
from monitor.settings import Settings
from tests.models.tiny import picture, tiny_model

TEXT = "Boeing shares plunge after regulators' unflattering report, $BA"


@pytest.fixture(scope="module")
def model(small_model: Path) -> LoadedModel:
    return load_model(small_model, device="cpu")


@pytest.fixture(autouse=True)
def few_examples(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [
        LabelledText(text="Boeing shares plunge after report", sentiment="negative", origin="made"),
        LabelledText(text="Central bank leaves rates", topic="central_banks", origin="made"),
        LabelledText(text="Airline orders jets from Airbus", entities={"Airbus": "positive"}, origin="made"),
        LabelledText(text=TEXT, sentiment="negative", origin="made"),
    ]
    monkeypatch.setattr(module, "_examples", lambda: rows)
    module._indexes.clear()


def test_words_of_the_text_with_shares_that_sum_to_one(model: LoadedModel) -> None:
    found = explain(model, TEXT)
    said = model.predict([Row(TEXT)]).sentiment[0]
    assert found.label == ("negative", "neutral", "positive")[int(said.argmax())]
    assert found.probability == pytest.approx(float(said.max()), abs=1e-3)
    words = [word.text for word in found.words]
    assert words[:5] == ["boeing", "shares", "plunge", "after", "regulators"]
    assert "unflattering" in words
    assert sum(abs(word.share) for word in found.words) == pytest.approx(1.0, abs=0.01)
    assert len({word.share for word in found.words}) > 5
    assert (found.text_share, found.chart_share, found.trend, found.heat_map) == (1.0, 0.0, None, ())


def test_shares_add_up_to_the_change_from_the_baseline(model: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    # Completeness of integrated gradients: the attributions sum to f(text) - f(baseline).
    monkeypatch.setattr(module, "_STEPS", 64)
    (row,) = model.tokenize([Row("Profit falls sharply")])
    shares = module._integrated_gradients(model, row, 0)
    pad = model.backbone.pad_id
    specials = module._specials(model)
    blank = [token if token in specials else pad for token in row.ids]

    def logit(ids: list[int]) -> float:
        from models.classifier import Batch

        whole = torch.ones(1, len(ids), dtype=torch.bool)
        with torch.no_grad():
            said = model.network(Batch(torch.tensor([ids]), whole, whole)).sentiment[0]
        return float(said[0] - said[1:].mean())

    assert shares.sum() == pytest.approx(logit(row.ids) - logit(blank), rel=0.05, abs=0.02)


@pytest.mark.parametrize("precision", ["int8", "bf16"])
def test_faster_arithmetic_is_explained_alike(
    small_model: Path, model: LoadedModel, tmp_path: Path, precision: str
) -> None:
    quick = load_model(small_model, device="cpu")
    prepare(quick, Settings(data_dir=tmp_path, cpu_precision=precision))
    exact = [word.share for word in explain(model, TEXT, count=0).words]
    found = [word.share for word in explain(quick, TEXT, count=0).words]
    assert np.corrcoef(exact, found)[0, 1] > 0.9


def test_an_entity_and_a_long_text(model: LoadedModel) -> None:
    start = TEXT.index("Boeing")
    entity = explain(model, TEXT, entity=(start, start + 6), count=0)
    assert [word.text for word in entity.words][:2] == ["boeing", "shares"]
    assert entity.words != explain(model, TEXT, count=0).words
    assert 50 < len(explain(model, "profit falls " * 400, count=0).words) <= 96


def test_a_charts_heat_map(model: LoadedModel) -> None:
    found = explain(model, "", image=picture())
    assert found.trend in {"down", "flat", "up"}
    assert (len(found.heat_map), len(found.heat_map[0])) == (6, 8)
    assert min(min(row) for row in found.heat_map) >= 0
    assert (found.text_share, found.chart_share, found.words, found.neighbours) == (0.0, 1.0, (), ())
    both = explain(model, TEXT, image=picture(), count=0)
    assert both.text_share + both.chart_share == pytest.approx(1.0, abs=1e-3)
    assert 0 < both.chart_share < 1


def test_a_picture_that_is_no_chart_has_no_share(tmp_path: Path, small_backbone: Path) -> None:
    tiny_model(tmp_path / "blind", small_backbone, p_chart=0.02)
    found = explain(load_model(tmp_path / "blind", device="cpu"), TEXT, image=picture(), count=0)
    assert (found.trend, found.chart_share, found.heat_map) == ("not_a_chart", 0.0, ())


def test_nothing_to_explain_is_one_clear_error(model: LoadedModel) -> None:
    with pytest.raises(InputError, match="nothing to explain"):
        explain(model, "https://t.co/x")
    with pytest.raises(InputError, match="none of PNG"):
        explain(model, TEXT, image=b"GIF89a")


def test_neighbours_and_their_kept_index(model: LoadedModel, tmp_path: Path) -> None:
    found = neighbours(model, TEXT, 2, tmp_path)
    assert found[0].text == "Boeing shares plunge after report"
    assert found[0].labels == {"sentiment": "negative"}
    assert found[0].similarity >= found[1].similarity
    assert TEXT not in {one.text for one in neighbours(model, TEXT, 4, tmp_path)}
    (kept,) = tmp_path.glob("neighbours-*.safetensors")
    module._indexes.clear()
    again = neighbours(model, TEXT, 2, tmp_path)
    assert [one.text for one in again] == [one.text for one in found]
    kept.write_bytes(b"torn")
    module._indexes.clear()
    assert [one.text for one in neighbours(model, TEXT, 2, tmp_path)] == [one.text for one in found]


def test_the_shipped_index_is_that_of_the_shipped_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    model = load_model("default", device="cpu")
    rows = module._examples()
    vectors = module._read_index(module.packaged_index(), module._index_key(model, rows))
    assert vectors is not None, "The shipped model has changed: run python scripts/build_neighbours.py"
    chosen = [0, len(rows) // 2, len(rows) - 1]
    again = module._vectors(model, [rows[i].text for i in chosen])
    assert np.allclose(vectors[chosen], again, atol=2e-3)


def test_highlighted_words_matter_more_than_random_ones() -> None:
    texts = [
        "Infosys shares plunge on Monday",
        "Analysts downgrade Wipro to sell after profit warning",
        "Tesla soars to a record high this week",
        "Nordea raises its dividend for the year",
        "Boeing loses a big order to Airbus",
    ]
    shipped = load_model("default", device="cpu")
    found = [one for text in texts if (one := delete(shipped, text)) is not None]
    assert len(found) == len(texts)
    assert sum(one.highlighted for one in found) > 3 * sum(one.random for one in found)
    assert all(one.highlighted >= one.random for one in found)


def test_what_is_compared_with_what(model: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "alpha beta gamma delta omega"
    asked: list[str] = []
    answer = model.predict

    def spy(rows: list[Row], **more: int) -> Predictions:
        asked.extend(row.text for row in rows)
        return answer(rows, **more)

    monkeypatch.setattr(model, "predict", spy)
    found = delete(model, text, draws=3, share=0.4)
    assert found is not None
    assert found.removed == 2
    words = explain(model, text, count=0).words
    strongest = {word.text for word in sorted(words, key=lambda word: -word.share)[:2]}
    assert asked[0] == text
    assert set(asked[0].split()) - set(asked[1].split()) == strongest
    assert [len(one.split()) for one in asked] == [5, 3, 3, 3, 3]
    said = answer([Row(one) for one in asked]).sentiment
    lost = said[0, said[0].argmax()] - said[:, said[0].argmax()]
    assert found.highlighted == pytest.approx(lost[1], abs=1e-5)
    assert found.random == pytest.approx(lost[2:].mean(), abs=1e-5)
    assert delete(model, "profit falls") is None
