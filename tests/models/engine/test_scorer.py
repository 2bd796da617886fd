"""Items and charts in, scored items out."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from models import registry
from models.bundle import load_model
from models.engine import Flag, Scorer, ScoringRequest, open_scorer
from models.engine import scorer as scorer_module
from models.engine.batching import token_budget
from models.engine.lanes import SHORT_PASS_TOKENS
from models.engine.language import LanguageGuard
from models.engine.scorer import _Asked, _Serving
from models.tokens import Row, TokenizedRow
from monitor.errors import ConfigurationError, ModelError
from monitor.records import Chart, Modality, NewsItem, Rejected, ScoredItem, Trend
from monitor.settings import Settings
from monitor.storage.engine import open_engine
from monitor.storage.migrate import upgrade
from monitor.surges.keys import keys_of
from tests.models.tiny import picture, tiny_model

AT = datetime(2024, 5, 6, 7, 8, tzinfo=UTC)


def news(
    title: str, *, item_id: str = "i", body: str = "", charts: tuple[Chart, ...] = (), **more: object
) -> ScoringRequest:
    return ScoringRequest(NewsItem(id=item_id, published_at=AT, title=title, body=body, **more), charts)  # type: ignore[arg-type]


def chart(image: bytes | None = None, **more: object) -> Chart:
    return Chart(chart_id="c", image=image or picture(), published_at=AT, **more)  # type: ignore[arg-type]


def one(scorer: Scorer, request: ScoringRequest) -> ScoredItem:
    (result,) = scorer.score([request])
    assert isinstance(result, ScoredItem), result
    return result


def test_a_text_is_scored_with_its_companies(scorer: Scorer) -> None:
    item = one(scorer, news("Tesla falls while Boeing gains", tickers=("XYZ",), source="wire", url="http://x/1"))
    assert item.modality is Modality.TEXT
    assert item.model_version == scorer.model_version
    assert (item.source, item.url, item.tickers, item.flags) == ("wire", "http://x/1", ("XYZ",), ())
    towards = {e.ticker: e for e in item.entities}
    assert set(towards) == {"TSLA", "BA", "XYZ"}
    assert towards["TSLA"].sentiment != towards["BA"].sentiment
    assert towards["XYZ"].sentiment == item.sentiment
    assert sum(item.topic.probabilities.values()) == pytest.approx(1.0, abs=1e-4)
    assert set(keys_of(item)) == {"ticker:TSLA", "ticker:BA", "ticker:XYZ", f"topic:{item.topic.label}"}


def test_companies_are_read_by_their_own_sentences_however_they_are_written(scorer: Scorer) -> None:
    item = news(
        "Apple, Tesla and Boeing report",
        body="Apple shares plunged after it warned of losses. $TSLA soared. Orders rose.\nBoeing hires.",
        tickers=("IBM",),
    ).item
    read = {ticker: row.text.strip() for ticker, row in scorer.rows_about(item, item.text).items()}
    assert read == {
        "AAPL": "Apple shares plunged after it warned of losses.",
        "TSLA": "$TSLA soared.",
        "BA": "Boeing hires.",
    }
    towards = {entity.ticker: entity.sentiment for entity in one(scorer, ScoringRequest(item)).entities}
    alone = {e.ticker: e.sentiment for e in one(scorer, news("Boeing hires.")).entities}
    assert towards["BA"] == alone["BA"]
    assert set(towards) == {"AAPL", "TSLA", "BA", "IBM"}


def test_where_nothing_can_be_compiled_it_scores_all_the_same(
    settings: Settings, scorer: Scorer, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled = one(scorer, news("Apple beats, Tesla misses"))
    assert isinstance(scorer.model.reader, torch.jit.ScriptModule)
    monkeypatch.delattr(torch.jit, "script")
    plain = open_scorer(settings)
    found = one(plain, news("Apple beats, Tesla misses"))
    assert not isinstance(plain.model.reader, torch.jit.ScriptModule)
    plain.close()
    assert found == msgspec.structs.replace(compiled, scored_at=found.scored_at)


def test_it_says_how_many_tokens_a_pass_takes_on_its_device(scorer: Scorer, settings: Settings) -> None:
    assert scorer.token_budget == token_budget(settings, scorer.model.device)


def test_results_are_those_of_the_model_alone_whatever_the_batch(scorer: Scorer, model_dir: Path) -> None:
    texts = ["Shares rise.", "A much longer text " * 30, "Profit warning", "", "Dividend cut"] * 3
    results = scorer.score([news(t, item_id=str(i)) for i, t in enumerate(texts)])
    model = load_model(model_dir, device="cpu")
    for text, result in zip(texts, results, strict=True):
        if not text:
            assert isinstance(result, Rejected)
            assert result.code == "no_text"
            continue
        assert isinstance(result, ScoredItem)
        expected = model.forward(model.tokenize([registry_row(text)])).sentiment[0]
        found = result.sentiment
        assert [found.negative, found.neutral, found.positive] == pytest.approx(expected.tolist(), abs=1e-4)


def registry_row(text: str):  # type: ignore[no-untyped-def]
    from models.tokens import Row

    return Row(text.strip())


def test_chart_alone_and_with_a_text(scorer: Scorer) -> None:
    alone = one(scorer, ScoringRequest(NewsItem(id="chart:c", published_at=AT), (chart(),)))
    both = one(scorer, news("$AAPL chart", charts=(chart(),)))
    text = one(scorer, news("$AAPL chart"))
    assert (alone.modality, both.modality, text.modality) == (Modality.CHART, Modality.BOTH, Modality.TEXT)
    assert alone.chart is not None
    assert alone.chart.label in set(Trend) - {Trend.NOT_A_CHART}
    assert alone.flags == ()
    assert both.sentiment != text.sentiment
    assert both.chart_ids == ("c",)
    # The only company of the text is what the chart shows.
    assert both.entities[0].sentiment != text.entities[0].sentiment


def test_a_charts_tickers_are_entities(scorer: Scorer) -> None:
    request = ScoringRequest(NewsItem(id="chart:c", published_at=AT), (chart(tickers=("MSFT",)),))
    (entity,) = one(scorer, request).entities
    assert (entity.ticker, entity.name) == ("MSFT", "Microsoft")


@pytest.mark.parametrize("broken", [b"", b"GIF89a", picture()[:60], b"\x89PNG\r\n\x1a\n" + b"\0" * 50])
def test_a_broken_chart_spoils_only_itself(scorer: Scorer, broken: bytes) -> None:
    results = scorer.score(
        [
            ScoringRequest(
                NewsItem(id="chart:c", published_at=AT), (Chart(chart_id="c", image=broken, published_at=AT),)
            ),
            news("Tesla falls", charts=(Chart(chart_id="c", image=broken, published_at=AT),)),
            news("Tesla falls", charts=(Chart(chart_id="b", image=broken, published_at=AT), chart())),
        ]
    )
    assert isinstance(results[0], Rejected)
    assert results[0].code in {"empty", "unsupported_image", "undecodable_image"}
    assert isinstance(results[1], ScoredItem)
    assert results[1].flags == (Flag.CHART_UNREADABLE,)
    assert results[1].sentiment == one(scorer, news("Tesla falls")).sentiment
    assert isinstance(results[2], ScoredItem)
    assert results[2].modality is Modality.BOTH


def test_a_picture_that_is_no_chart_leaves_the_text_alone(tmp_path: Path, backbone: Path, settings: Settings) -> None:
    tiny_model(tmp_path / "blind", backbone, p_chart=0.02)
    scorer = open_scorer(settings, name=str(tmp_path / "blind"))
    item = one(scorer, news("Tesla falls", charts=(chart(),)))
    assert item.flags == (Flag.NOT_A_CHART,)
    assert item.modality is Modality.TEXT
    assert item.chart is not None
    assert item.chart.label is Trend.NOT_A_CHART
    assert item.sentiment == one(scorer, news("Tesla falls")).sentiment
    alone = one(scorer, ScoringRequest(NewsItem(id="chart:c", published_at=AT), (chart(),)))
    assert Flag.NOT_A_CHART in alone.flags
    assert alone.sentiment.neutral == pytest.approx(0.7)


def test_a_model_without_vision_says_so(tmp_path: Path, backbone: Path, settings: Settings) -> None:
    tiny_model(tmp_path / "text", backbone, vision=False)
    scorer = open_scorer(settings, name=str(tmp_path / "text"))
    (alone,) = scorer.score([ScoringRequest(NewsItem(id="chart:c", published_at=AT), (chart(),))])
    assert isinstance(alone, Rejected)
    assert alone.code == "charts_not_supported"
    assert one(scorer, news("Tesla falls", charts=(chart(),))).flags == (Flag.CHART_UNREADABLE,)


def test_a_language_that_the_model_cannot_read_is_marked_not_guessed(scorer: Scorer) -> None:
    item = one(scorer, news("特斯拉股价大跌，投资者恐慌"))
    assert item.flags == (Flag.LANGUAGE,)
    assert [item.sentiment.negative, item.sentiment.neutral] == pytest.approx([0.1, 0.7])
    assert item.lang == "zh"
    assert [e.ticker for e in item.entities] == ["TSLA"]
    shown = one(scorer, news("特斯拉股价大跌，投资者恐慌", charts=(chart(),)))
    assert shown.modality is Modality.CHART
    assert shown.sentiment != item.sentiment


def test_a_text_of_links_alone_says_nothing(scorer: Scorer) -> None:
    item = one(scorer, news("https://t.co/abcdef"))
    assert item.flags == (Flag.NO_TEXT,)
    assert item.sentiment.neutral == pytest.approx(0.7)


def test_a_rule_overrides_and_says_so(scorer: Scorer) -> None:
    texts = [
        f"Hertz files for bankruptcy {word}" for word in ("today", "again", "soon", "now", "late", "early", "first")
    ]
    for text in texts:
        item = one(scorer, news(text))
        assert item.sentiment.label != "positive"
        assert item.sentiment.positive <= 0.2 + 1e-6
        assert ("rule:bankruptcy" in item.flags) == (item.sentiment.positive == pytest.approx(0.2))
        assert [rule.name for rule in item.rules] == ["bankruptcy"] * len(item.rules)
        for rule in item.rules:
            assert rule.words == "files for bankruptcy"
            assert rule.before is not None
            assert rule.before.positive > 0.2
            assert rule.entity in ("", "Hertz Global Holdings Inc", *(entity.name for entity in item.entities))


def test_repeated_content_is_scored_once(scorer: Scorer, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    forward = scorer.model.forward

    def counted(rows: list[TokenizedRow]) -> object:
        seen.append(len(rows))
        return forward(rows)

    monkeypatch.setattr(scorer.model, "forward", counted)
    first = scorer.score(
        [news("Markets close", item_id="a"), news("Markets close", item_id="b"), news("Other news", item_id="c")]
    )
    again = scorer.score([news("Markets close", item_id="d")])
    assert sum(seen) == 2
    assert [r.id for r in (*first, *again) if isinstance(r, ScoredItem)] == ["a", "b", "c", "d"]
    assert isinstance(again[0], ScoredItem)
    assert isinstance(first[0], ScoredItem)
    assert again[0].sentiment == first[0].sentiment


def test_a_row_that_breaks_the_network_is_isolated(scorer: Scorer, monkeypatch: pytest.MonkeyPatch) -> None:
    forward = scorer.model.forward
    poison = tuple(scorer.model.tokenize([registry_row("poison pill")])[0].ids)

    def fragile(rows: list[TokenizedRow]) -> object:
        if any(tuple(row.ids) == poison for row in rows):
            raise ValueError("bad row")
        return forward(rows)

    monkeypatch.setattr(scorer.model, "forward", fragile)
    texts = ["first text", "second text", "poison pill", "fourth text", "fifth text"]
    results = scorer.score([news(t, item_id=t) for t in texts])
    assert [isinstance(r, Rejected) for r in results] == [False, False, True, False, False]
    assert isinstance(results[2], Rejected)
    assert results[2].code == "unscorable"
    assert "bad row" in results[2].reason


def test_when_memory_runs_out_batches_become_smaller(scorer: Scorer, monkeypatch: pytest.MonkeyPatch) -> None:
    forward = scorer.model.forward
    sizes: list[int] = []

    def small(rows: list[TokenizedRow]) -> object:
        sizes.append(len(rows))
        if len(rows) > 4:
            raise torch.OutOfMemoryError("out of memory")
        return forward(rows)

    monkeypatch.setattr(scorer.model, "forward", small)
    results = scorer.score([news(f"headline number {i}", item_id=str(i)) for i in range(16)])
    assert all(isinstance(r, ScoredItem) for r in results)
    assert max(sizes) == 16
    assert scorer._serving.forward.shrink > 1


def test_a_row_that_memory_did_not_suffice_for_is_tried_again_alone(
    scorer: Scorer, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward = scorer.model.forward
    tried: list[int] = []

    def short(rows: list[TokenizedRow]) -> object:
        tried.append(len(rows))
        if len(tried) <= 2:
            raise MemoryError
        return forward(rows)

    monkeypatch.setattr(scorer.model, "forward", short)
    # Both the pass of two rows and the first pass of one fail.
    results = scorer.score([news("first text", item_id="a"), news("second text", item_id="b")])
    assert all(isinstance(r, ScoredItem) for r in results)
    assert tried == [2, 1, 1, 1]
    assert scorer._serving.forward.shrink == 4


def test_want_of_memory_is_never_a_rows_fault(scorer: Scorer, monkeypatch: pytest.MonkeyPatch) -> None:
    def short(_rows: list[TokenizedRow]) -> object:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(scorer.model, "forward", short)
    with pytest.raises(ModelError, match="memory"):
        scorer.score([news("a text", item_id="a"), news("another text", item_id="b")])


def test_nor_a_pictures(scorer: Scorer, monkeypatch: pytest.MonkeyPatch) -> None:
    decode = scorer_module.decode_image
    beside, tried = threading.Lock(), []

    def short(data: bytes, **limits: int) -> object:
        tried.append(data)
        # Enough for one at a time.
        if not beside.acquire(blocking=False):
            raise MemoryError
        try:
            time.sleep(0.05)
            return decode(data, **limits)
        finally:
            beside.release()

    monkeypatch.setattr(scorer_module, "decode_image", short)
    requests = [news(f"text {n}", item_id=str(n), charts=(chart(picture(shade=n)),)) for n in range(4)]
    assert [r.modality for r in scorer.score(requests) if isinstance(r, ScoredItem)] == [Modality.BOTH] * 4
    assert len(tried) == 8
    beside.acquire()
    with pytest.raises(ModelError, match="memory"):
        scorer.score(requests)


def test_passes_that_fail_side_by_side_halve_the_budget_once(settings: Settings) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        scorer = open_scorer(settings)
    finally:
        torch.set_num_threads(before)
    forward, met = scorer.model.forward, threading.Barrier(2)
    first = threading.local()

    def short(rows: list[TokenizedRow]) -> object:
        if not getattr(first, "done", False):
            first.done = True
            met.wait(timeout=20)
            raise MemoryError
        return forward(rows)

    scorer.model.forward = short  # type: ignore[method-assign,assignment]
    results = scorer.score([news(f"{n} a headline of some words " * 8, item_id=str(n)) for n in range(16)])
    assert all(isinstance(r, ScoredItem) for r in results)
    assert scorer._serving.forward.shrink == 2


def test_while_the_stream_is_kept_up_with_no_pass_is_long(scorer: Scorer, monkeypatch: pytest.MonkeyPatch) -> None:
    forward = scorer.model.forward
    seen: list[int] = []

    def counted(rows: list[TokenizedRow]) -> object:
        seen.append(sum(map(len, rows)))
        return forward(rows)

    monkeypatch.setattr(scorer.model, "forward", counted)
    scorer.score([news(f"{n} some words of an article " * 40, item_id=str(n)) for n in range(10)])
    assert sum(seen) > 4 * SHORT_PASS_TOKENS
    assert max(seen) <= SHORT_PASS_TOKENS


def test_a_failed_card_is_not_taken_for_a_bad_row(scorer: Scorer, monkeypatch: pytest.MonkeyPatch) -> None:
    def failed(rows: list[TokenizedRow]) -> object:
        raise torch.AcceleratorError("CUDA error: device-side assert triggered")

    monkeypatch.setattr(scorer.model, "forward", failed)
    with pytest.raises(ModelError, match="device failed"):
        scorer.score([news("a text"), news("another text")])


def test_one_call_is_prepared_while_another_is_computed(scorer: Scorer, monkeypatch: pytest.MonkeyPatch) -> None:
    forward, tokenize = scorer.model.forward, scorer.model.tokenize
    prepared, entered = threading.Event(), threading.Lock()
    waited: list[bool] = []

    def slow(rows: list[TokenizedRow]) -> object:
        if entered.acquire(blocking=False):
            waited.append(prepared.wait(timeout=20))
        return forward(rows)

    def noted(rows: list[Row]) -> object:
        if rows[0].text == "second":
            prepared.set()
        return tokenize(rows)

    monkeypatch.setattr(scorer.model, "forward", slow)
    monkeypatch.setattr(scorer.model, "tokenize", noted)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(scorer.score, [news("first", item_id="1")])
        second = pool.submit(scorer.score, [news("second", item_id="2")])
        assert [r.id for f in (first, second) for r in f.result() if isinstance(r, ScoredItem)] == ["1", "2"]
    assert waited == [True]


def test_an_error_in_any_stage_reaches_its_own_caller_and_no_other(
    scorer: Scorer, monkeypatch: pytest.MonkeyPatch
) -> None:
    collect = scorer._collect

    def broken(asked: Sequence[_Asked], serving: _Serving) -> object:
        if any(one.question.item.id == "bad" for one in asked):
            raise RuntimeError("stage broke")
        return collect(asked, serving)

    monkeypatch.setattr(scorer, "_collect", broken)
    with ThreadPoolExecutor(2) as pool:
        bad = pool.submit(scorer.score, [news("a text", item_id="bad")])
        good = pool.submit(scorer.score, [news("a text", item_id="good")])
        assert isinstance(good.result(timeout=20)[0], ScoredItem)
        with pytest.raises(RuntimeError, match="stage broke"):
            bad.result(timeout=20)


def test_a_text_alone_never_waits_for_the_image_tower(scorer: Scorer, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    vision = scorer.model.network.vision
    assert vision is not None
    vision.register_forward_pre_hook(lambda _module, given: seen.append(len(given[0])))
    scorer.score([news(f"text number {n}", item_id=str(n)) for n in range(5)] + [news("a chart", charts=(chart(),))])
    assert seen == [1]


def test_smaller_batches_grow_again(scorer: Scorer) -> None:
    forward = scorer._serving.forward
    forward.shrink = 4
    for number in range(120):
        scorer.score([news(f"headline number {number}")])
    assert forward.shrink == 1


def test_a_promoted_model_is_taken_up_between_batches(tmp_path: Path, backbone: Path, settings: Settings) -> None:
    pinned = settings.model_copy(update={"model": ""})
    engine = open_engine(pinned.database)
    upgrade(engine)
    first = tiny_model(tmp_path / "one", backbone, name="one")
    second = tiny_model(tmp_path / "two", backbone, name="two", seed=5)
    registry.promote(pinned, engine, str(tmp_path / "one"), actor="t", reason="first")
    scorer = open_scorer(pinned, engine)
    assert scorer.model_version == first.version
    before = one(scorer, news("Tesla falls"))
    assert scorer.refresh() is False

    registry.promote(pinned, engine, str(tmp_path / "two"), actor="t", reason="second")
    results: list[ScoredItem | Rejected] = []
    busy = threading.Thread(
        target=lambda: results.extend(scorer.score([news(f"text {i}", item_id=str(i)) for i in range(64)]))
    )
    busy.start()
    assert scorer.refresh() is True
    busy.join()
    assert [r.id for r in results if isinstance(r, ScoredItem)] == [str(i) for i in range(64)]
    assert len({r.model_version for r in results if isinstance(r, ScoredItem)}) == 1
    after = one(scorer, news("Tesla falls"))
    assert (before.model_version, after.model_version) == (first.version, second.version)
    assert before.sentiment != after.sentiment


@pytest.mark.parametrize("by", ["rollback", "promotion"])
def test_the_shipped_default_is_taken_up_again(
    by: str, tmp_path: Path, backbone: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    pinned = settings.model_copy(update={"model": ""})
    engine = open_engine(pinned.database)
    upgrade(engine)
    monkeypatch.setattr(registry, "_weights", lambda: tmp_path / "weights")
    default = tiny_model(tmp_path / "weights" / "default", backbone, name="default")
    better = tiny_model(tmp_path / "better", backbone, name="better", seed=5)
    registry.promote(pinned, engine, str(tmp_path / "better"), actor="t", reason="better")
    scorer = open_scorer(pinned, engine)
    assert scorer.model_version == better.version
    if by == "rollback":
        registry.rollback(pinned, engine, actor="t")
    else:
        registry.promote(pinned, engine, "default", actor="t", reason="back")
    assert scorer.refresh() is True
    assert scorer.model_version == default.version
    assert scorer.refresh() is False


def test_a_damaged_promoted_model_leaves_the_old_one(tmp_path: Path, backbone: Path, settings: Settings) -> None:
    pinned = settings.model_copy(update={"model": ""})
    engine = open_engine(pinned.database)
    upgrade(engine)
    tiny_model(tmp_path / "one", backbone, name="one")
    second = tiny_model(tmp_path / "two", backbone, name="two", seed=5)
    registry.promote(pinned, engine, str(tmp_path / "one"), actor="t", reason="first")
    scorer = open_scorer(pinned, engine)
    version = scorer.model_version
    registry.promote(pinned, engine, str(tmp_path / "two"), actor="t", reason="second")
    (tmp_path / "models" / second.version / "heads.safetensors").write_bytes(b"torn")
    assert scorer.refresh() is False
    assert scorer.refresh() is False
    assert scorer.model_version == version
    assert one(scorer, news("Tesla falls")).model_version == version


def test_a_model_in_another_language_brings_its_guard_with_it(
    tmp_path: Path, backbone: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    pinned = settings.model_copy(update={"model": "", "model_languages": ""})
    engine = open_engine(pinned.database)
    upgrade(engine)
    languages = {"one": ("en",), "two": ("en",), "three": ("en", "de")}
    named = iter(languages.values())
    monkeypatch.setattr(scorer_module, "languages_of", lambda _backbone, _configured: next(named))
    loaded: list[frozenset[str]] = []
    monkeypatch.setattr(LanguageGuard, "load", lambda guard: loaded.append(guard.languages))
    found = []
    for seed, name in enumerate(languages):
        tiny_model(tmp_path / name, backbone, name=name, seed=seed)
        registry.promote(pinned, engine, str(tmp_path / name), actor="t", reason=name)
        if name == "one":
            scorer = open_scorer(pinned, engine)
        else:
            assert scorer.refresh() is True
        found.append(scorer._serving.guard)
    assert found[0] is found[1]
    # Ready before it serves: what it loads takes seconds in which no other thread runs.
    assert loaded == [frozenset({"en", "de"})]
    assert found[2].languages == frozenset({"en", "de"})


@pytest.mark.parametrize("error", [OSError("no space left"), ConfigurationError("No such precision."), MemoryError()])
def test_whatever_keeps_a_promoted_model_from_loading_it_is_refused_once(
    error: Exception, tmp_path: Path, backbone: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    pinned = settings.model_copy(update={"model": ""})
    engine = open_engine(pinned.database)
    upgrade(engine)
    for seed, name in enumerate(("one", "two")):
        tiny_model(tmp_path / name, backbone, name=name, seed=seed)
    registry.promote(pinned, engine, str(tmp_path / "one"), actor="t", reason="first")
    scorer = open_scorer(pinned, engine)
    version, tried = scorer.model_version, []
    registry.promote(pinned, engine, str(tmp_path / "two"), actor="t", reason="second")

    def fails(_model: object, _settings: Settings) -> str:
        tried.append(1)
        raise error

    monkeypatch.setattr(scorer_module, "prepare", fails)
    assert [scorer.refresh(), scorer.refresh()] == [False, False]
    assert (len(tried), scorer.model_version) == (1, version)


@given(st.lists(st.text(max_size=200), min_size=1, max_size=6))
@hypothesis_settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_text_gives_probabilities_or_a_reason(scorer: Scorer, texts: list[str]) -> None:
    results = scorer.score([news(t, item_id=str(i)) for i, t in enumerate(texts)])
    assert len(results) == len(texts)
    for text, result in zip(texts, results, strict=True):
        if isinstance(result, Rejected):
            assert not text.strip()
        else:
            found = [result.sentiment.negative, result.sentiment.neutral, result.sentiment.positive]
            assert np.isfinite(found).all()
            assert sum(found) == pytest.approx(1.0, abs=1e-4)
