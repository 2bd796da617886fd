"""Figures of a model on labelled files, and the offline reading of news files."""

from __future__ import annotations

import io
import json
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, f1_score, precision_score, recall_score

from models.answers import SENTIMENTS, LoadedModel
from models.bundle import load_model, restore_model, save_model
from models.engine import open_scorer
from models.engine.offline import Outcome, score_lines
from models.tokens import Row
from models.training import frozen
from models.training.datasets import bundled_path, read_labelled, select
from models.training.evaluate import class_figures, evaluate_file, score_figures
from models.training.lines import TRENDS, LabelledLine
from models.training.packaged import PACKAGED, packaged_lines
from models.training.robustness import LONG, PERTURBATIONS, invariance, load_suite, perturb, robustness
from monitor.errors import InputError
from monitor.feeds.jsonl import read_jsonl
from monitor.records import Modality, Rejected, ScoredItem, encode
from monitor.settings import Settings
from tests.models.tiny import picture, tiny_model

NOW = datetime(2024, 5, 6, tzinfo=UTC)


@pytest.fixture(scope="module")
def model(small_model: Path) -> LoadedModel:
    return load_model(small_model, device="cpu")


def write(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def test_figures_are_those_of_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    truth, said = rng.integers(3, size=200), rng.integers(3, size=200)
    found = class_figures(said, truth, SENTIMENTS, 0.1)
    assert found["accuracy"] == pytest.approx(accuracy_score(truth, said), abs=1e-4)
    assert found["macro_f1"] == pytest.approx(f1_score(truth, said, average="macro"), abs=1e-4)
    precision = precision_score(truth, said, average=None)
    recall = recall_score(truth, said, average=None)
    for i, name in enumerate(SENTIMENTS):
        assert found["per_class"][name]["precision"] == pytest.approx(precision[i], abs=1e-4)
        assert found["per_class"][name]["recall"] == pytest.approx(recall[i], abs=1e-4)
        assert found["confusion"][name]["neutral"] == int(((truth == i) & (said == 1)).sum())
    assert score_figures(np.array([0.5, -0.5]), np.array([1.0, -1.0])) == {"n": 2, "mse": 0.25, "r2": 0.75}


def test_an_abstention_is_wrong_but_no_class_unless_it_is_a_label() -> None:
    truth, said = np.array([0, 0, 1, 2]), np.array([0, 3, 1, 2])
    found = class_figures(said, truth, TRENDS, 0.0, abstention=3)
    assert found["accuracy"] == 0.75
    assert found["macro_f1"] == pytest.approx((2 / 3 + 1 + 1) / 3, abs=1e-4)
    assert set(found["per_class"]) == set(found["confusion"]) == {"down", "flat", "up"}
    assert found["confusion"]["down"]["not_a_chart"] == 1
    labelled = class_figures(said, np.array([0, 3, 1, 2]), TRENDS, 0.0, abstention=3)
    assert labelled["macro_f1"] == labelled["accuracy"] == 1.0
    assert labelled["per_class"]["not_a_chart"]["n"] == 1


def test_every_part_that_a_file_labels(model: LoadedModel, tmp_path: Path) -> None:
    (tmp_path / "c.png").write_bytes(picture())
    rows = [
        {"text": "Profit rises", "sentiment": "positive", "topic": "earnings"},
        {
            "text": "Tesla falls, Boeing gains",
            "entities": {"Tesla": "negative", "Boeing": "positive", "Ghost": "neutral"},
        },
        {"text": "$AAPL chart", "sentiment": "neutral", "chart": "c.png", "trend": "up"},
        {"chart": "c.png", "trend": "down"},
        {"text": "Royal Mail chairman steps down", "target": "Royal Mail", "score": -0.4},
        {"text": "Profit warning", "score": -0.9},
    ]
    found = evaluate_file(model, write(tmp_path / "f.jsonl", [*rows, "", "  "]))
    assert {part: values["n"] for part, values in found.items()} == {
        "sentiment": 2, "topic": 1, "entities": 3, "entities_opposite": 3, "chart": 2, "score": 2,
    }  # fmt: skip
    said = model.predict([Row("Profit rises"), Row("$AAPL chart", image=picture())]).sentiment.argmax(1)
    assert found["sentiment"]["accuracy"] == pytest.approx(float((said == [2, 1]).mean()))
    assert set(found["sentiment"]) == {
        *("n", "accuracy", "macro_f1", "ece", "ece_by_chance", "ece_by_chance_95", "per_class", "confusion")
    }
    assert json.loads(json.dumps(found)) == found


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("{", "not JSON"),
        ("[1]", "not a JSON object"),
        ({"sentiment": "positive"}, "text is missing"),
        ({"text": "x"}, "no label"),
        ({"text": 5, "sentiment": "positive"}, "text must be a string"),
        ({"text": "x", "sentiment": "great"}, "sentiment must be one of"),
        ({"text": "x", "topic": "gossip"}, "topic must be a topic"),
        ({"text": "x", "entities": {"A": "meh"}}, "sentiment of A"),
        ({"text": "x", "score": 7}, "score must be"),
        ({"text": "x", "trend": "up"}, "trend needs a chart"),
        ({"chart": 5, "trend": "up"}, "chart must be the name"),
        ({"chart": "c.png", "entities": {"A": "neutral"}}, "entities need a text"),
    ],
)
def test_a_bad_line_is_named(model: LoadedModel, tmp_path: Path, line: Any, told: str) -> None:
    path = write(tmp_path / "f.jsonl", [{"text": "ok", "sentiment": "neutral"}, line])
    with pytest.raises(InputError, match=rf"line 2: .*{told}"):
        evaluate_file(model, path)
    with pytest.raises(InputError, match="holds no lines"):
        evaluate_file(model, write(tmp_path / "empty.jsonl", [""]))


def test_a_picture_that_cannot_be_read_is_a_wrong_answer_and_no_end(model: LoadedModel, tmp_path: Path) -> None:
    (tmp_path / "c.png").write_bytes(picture())
    (tmp_path / "torn.png").write_bytes(picture()[:70])
    rows = [
        {"chart": "c.png", "trend": "up"},
        {"chart": "torn.png", "trend": "down"},
        {"chart": "none.png", "trend": "flat"},
        {"text": "Profit rises", "chart": "torn.png", "sentiment": "positive"},
    ]
    told: list[str] = []
    path = write(tmp_path / "f.jsonl", rows)
    found = evaluate_file(model, path, told.append)
    assert [each.split(": ")[0] for each in told] == [f"{path}, line {number}" for number in (2, 3, 4)]
    assert "none.png cannot be read (No such file or directory); its reading counts as wrong." in told[1]
    assert "it is left out." in told[2]
    chart = found["chart"]
    # Every picture is a chart to this model, so that what is not read alone abstains.
    assert [chart["confusion"][name]["not_a_chart"] for name in ("down", "flat", "up")] == [1, 1, 0]
    assert set(chart["per_class"]) == {"down", "flat", "up"}
    alone = evaluate_file(model, write(tmp_path / "g.jsonl", rows[:1]))["chart"]
    assert chart["accuracy"] == pytest.approx(alone["accuracy"] / 3, abs=1e-4)
    assert chart["ece"] == alone["ece"]
    assert chart["direction"] == {"n": 2, "accuracy": alone["direction"]["accuracy"] / 2}
    said = model.predict([Row("Profit rises")]).sentiment.argmax()
    assert found["sentiment"]["accuracy"] == float(said == 2)


def test_an_entity_is_found_though_its_name_is_spoilt_and_named_where_it_is_not(
    model: LoadedModel, tmp_path: Path
) -> None:
    text = "Bad Corp falls as L&T Finance Holdings rises"
    rows = [
        {"text": text, "entities": {"L&T Finance neutralings": "positive"}},
        {"text": text, "entities": {"Infosys": "positive"}},
    ]
    told: list[str] = []
    path = write(tmp_path / "f.jsonl", rows)
    found = evaluate_file(model, path, told.append)
    assert told == [f"{path}, line 2: `Infosys` does not stand in the text; the answer to the whole text counts."]
    start = text.index("L&T")
    asked = [Row(text, (start, start + len("L&T Finance Holdings"))), Row(text)]
    assert found["entities"]["accuracy"] == float((model.predict(asked).sentiment.argmax(1) == 2).mean())
    assert "entities_opposite" not in found


def test_what_all_annotators_agree_on_is_told_apart(model: LoadedModel, tmp_path: Path) -> None:
    rows = [{"text": f"Profit rises {n}", "sentiment": "positive", "agreement": a} for n, a in enumerate(("All", 66))]
    found = evaluate_file(model, write(tmp_path / "f.jsonl", rows))
    assert (found["sentiment"]["n"], found["sentiment_all_agree"]["n"]) == (2, 1)


def test_what_must_not_change_an_answer(model: LoadedModel) -> None:
    texts = ["Boeing shares fall 12% on $BA news", "Profit rises at Tesla & Co", "Quarterly report published today"]
    for name in PERTURBATIONS:
        changed = perturb(texts, name)
        assert changed == perturb(texts, name)
        assert changed[0] != texts[0]
    lines = [
        LabelledLine(number=1, text=texts[0], sentiment="negative", entities={"Boeing": "negative"}),
        LabelledLine(number=2, text=texts[1], sentiment="positive", entities={"Tesla": "positive", "Ghost": "neutral"}),
        LabelledLine(number=3, text=texts[2], sentiment="neutral"),
    ]
    found = invariance(model, lines, ["Wipro", "Tesla"])
    assert set(found) == {*PERTURBATIONS, "companies swapped"}
    # Links and HTML remains are taken out before the model sees them; so are capitals by this backbone.
    for name in ("link added", "HTML remains", "upper case", "lower case"):
        assert found[name]["passed"] == 1.0
        assert found[name]["accuracy"] == found[name]["clean_accuracy"]
    # Only texts that a perturbation touches count.
    assert {name: found[name]["n"] for name in ("tickers swapped", "companies swapped", "emoji")} == {
        "tickers swapped": 1, "companies swapped": 2, "emoji": 3,
    }  # fmt: skip
    # What a perturbation touches nowhere is told all the same.
    none = invariance(model, lines[2:], ["Wipro"])
    assert set(none) == set(found)
    assert none["tickers swapped"] == none["companies swapped"]
    assert none["tickers swapped"] == {"kind": "invariance", "n": 0, "passed": None, "failed": []}


def test_the_suite_tells_a_model_that_always_says_the_same(tmp_path: Path, small_backbone: Path) -> None:
    tiny_model(tmp_path / "tiny", small_backbone)
    network, _, file = restore_model(tmp_path / "tiny")
    last = network.sentiment_head[-1]
    assert isinstance(last, torch.nn.Linear)
    with torch.no_grad():
        last.weight.zero_()
        last.bias.copy_(torch.tensor([0.0, 0.0, 4.0]))
    save_model(network, file, tmp_path / "tiny", card="")
    settings = Settings(
        data_dir=tmp_path, model=str(tmp_path / "tiny"), model_languages="en", device="cpu", cpu_precision="fp32"
    )
    scorer = open_scorer(settings)
    try:
        found = robustness(scorer, [])
    finally:
        scorer.close()
    names = {test.name: test for test in load_suite().test}
    swapped = "tickers swapped in posts"
    assert set(found) == {*names, f"{LONG:,} characters", *PERTURBATIONS, "companies swapped", swapped}
    assert found["typos"]["n"] == 0
    assert found[swapped]["n"] > 100
    assert found[swapped]["passed"] == 1.0
    passed = {name: one["passed"] for name, one in found.items()}
    assert passed["plain good news"] == passed["negated bad news"] == 1.0
    assert passed["plain bad news"] == passed["negated good news"] == 0.0
    assert {passed[name] for name, test in names.items() if test.kind == "direction"} == {0.0}
    assert passed["two companies, two directions"] == 0.5
    assert found["plain bad news"]["failed"][0] == "Siemens shares plunge after weak results"
    # These do not depend on what the network says.
    assert passed["other languages"] == passed["empty"] == passed[f"{LONG:,} characters"] == 1.0


def test_packaged_sets_are_the_same_in_every_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frozen, "PICTURES", 16)
    for name in ("sentfin", "charts", "pairs"):
        assert name in PACKAGED
        one, other = (list(islice(packaged_lines(name), 8)) for _ in range(2))
        assert one == other
        assert len({(line.text, line.image) for line in one}) == 8
    whole = list(packaged_lines("twitter_topic"))
    assert all(line.topic for line in whole)
    assert {row.text for row in select(read_labelled(bundled_path("twitter_topic")), "train")}.isdisjoint(
        line.text for line in whole
    )
    trends = [line.trend for line in islice(packaged_lines("charts"), 24)]
    assert trends.count("not_a_chart") == 4
    assert set(trends) == {"down", "flat", "up", "not_a_chart"}
    both, text, chart = (list(islice(packaged_lines(f"pairs{half}"), 5)) for half in ("", "-text", "-chart"))
    assert [line.sentiment for line in both] == [line.sentiment for line in text] == [line.sentiment for line in chart]
    assert [line.text for line in both] == [line.text for line in text]
    assert [line.image for line in both] == [line.image for line in chart]
    assert {line.image for line in text} == {None}
    assert {line.text for line in chart} == {""}


def test_a_charts_direction_counts_apart_from_flat(model: LoadedModel, tmp_path: Path) -> None:
    (tmp_path / "c.png").write_bytes(picture())
    rows = [{"chart": "c.png", "trend": trend} for trend in ("down", "up", "flat")]
    found = evaluate_file(model, write(tmp_path / "f.jsonl", rows))["chart"]
    assert found["direction"] == {"n": 2, "accuracy": 0.5}


# -- files of news -----------------------------------------------------------------------------------------------------


def outcomes(content: bytes, folder: Path, small_model: Path, **more: Any) -> list[Outcome]:
    settings = Settings(data_dir=folder, model=str(small_model), device="cpu", cpu_precision="fp32", **more)
    scorer = open_scorer(settings)
    try:
        lines = read_jsonl(io.BytesIO(content), NOW, folder=folder, max_chart_bytes=1 << 20, undated=NOW)
        return list(score_lines(lines, scorer, settings, chunk_lines=3))
    finally:
        scorer.close()


def test_good_lines_in_order_and_one_reason_for_each_bad_one(tmp_path: Path, small_model: Path) -> None:
    (tmp_path / "c.png").write_bytes(picture())
    (tmp_path / "broken.png").write_bytes(picture()[:70])
    lines: list[Any] = [
        {"id": "a", "title": "Tesla falls", "published_at": "2024-01-02T03:04:05Z"},
        "not json",
        {"text": "Boeing gains"},
        "",
        {"title": "$AAPL", "chart": "c.png"},
        {"chart": "c.png"},
        {"title": "x", "chart": "missing.png"},
        {"title": "x", "chart": "broken.png"},
        {"title": "x", "published_at": "yesterday"},
        {"body": ""},
        {"id": "z", "title": "last"},
        {"chart": "broken.png"},
    ]
    content = b"\xef\xbb\xbf" + "\n".join(x if isinstance(x, str) else json.dumps(x) for x in lines).encode()
    found = outcomes(content, tmp_path, small_model)
    assert [outcome.number for outcome in found] == [1, 2, 3, 5, 6, 7, 8, 9, 10, 11, 12]
    good = {o.number: o.result for o in found if isinstance(o.result, ScoredItem)}
    # A chart that cannot be read costs the line its chart, never its text.
    assert list(good) == [1, 3, 5, 6, 7, 8, 11]
    assert [good[1].id, good[11].id] == ["a", "z"]
    assert good[3].published_at == NOW
    assert [good[5].modality, good[6].modality] == [Modality.BOTH, Modality.CHART]
    assert good[6].id.startswith("chart:")
    assert found[-1].position == len(content)
    assert [o.number for o in found if isinstance(o.result, Rejected)] == [2, 9, 10, 12]
    problems = {o.number: o.problem for o in found if o.problem}
    assert list(problems) == [7, 8]
    assert "missing.png" in problems[7]
    assert "damaged" in problems[8] or "header" in problems[8]
    assert good[7].modality is good[8].modality is Modality.TEXT
    assert good[5].chart is not None
    assert good[5].chart_ids == (good[5].chart.chart_id,)
    # What was scored can be read again.
    (again,) = outcomes(encode(good[5]), tmp_path, small_model)
    assert isinstance(again.result, ScoredItem)
