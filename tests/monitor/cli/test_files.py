"""`evaluate`, `score` and `train` on files: what is wrong with one is said in a sentence that names the line."""

from __future__ import annotations

import io
import json
import re
import sys
from pathlib import Path

import pytest
from rich.console import Console

from models.training.config import load_config
from models.training.gathering import gather
from monitor.cli import score as score_module
from tests.models.tiny import picture
from tests.monitor.cli.conftest import Cli

CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


def write(path: Path, *rows: object) -> str:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return str(path)


def test_evaluate_prints_a_table_or_one_object(cli: Cli, tmp_path: Path, small_model: Path) -> None:
    file = write(
        tmp_path / "f.jsonl",
        {"text": "Acme profit rises", "sentiment": "positive"},
        {"text": "Acme profit falls", "sentiment": "negative"},
    )
    told = cli("evaluate", file, "--model", str(small_model))
    assert told.code == 0
    assert "sentiment: n 2, accuracy" in told.out
    figures = json.loads(cli("evaluate", file, "--model", str(small_model), "--json").out)
    assert set(figures["sentiment"]) == {
        *("n", "accuracy", "macro_f1", "ece", "ece_by_chance", "ece_by_chance_95", "per_class", "confusion")
    }


@pytest.mark.parametrize(
    ("rows", "code", "said"),
    [
        ([], 3, "holds no lines"),
        ([{"text": "x", "sentiment": "neutral"}, "{"], 3, "f.jsonl, line 2: this is not JSON"),
        ([{"text": "x"}], 3, "f.jsonl, line 1: there is no label"),
    ],
)
def test_evaluate_names_what_is_wrong(
    cli: Cli, tmp_path: Path, small_model: Path, rows: list[object], code: int, said: str
) -> None:
    done = cli("evaluate", write(tmp_path / "f.jsonl", *rows), "--model", str(small_model))
    assert done.code == code
    assert said in done.err
    assert done.out == ""


def test_evaluate_goes_on_after_a_torn_picture_and_a_name_that_stands_nowhere(
    cli: Cli, tmp_path: Path, small_model: Path
) -> None:
    (tmp_path / "torn.png").write_bytes(picture()[:70])
    file = write(
        tmp_path / "f.jsonl",
        {"chart": "torn.png", "trend": "up"},
        {"text": "[b]Acme[/b] falls", "entities": {"Ghost": "negative"}},
    )
    other = write(tmp_path / "g.jsonl", {"text": "Acme profit rises", "sentiment": "positive"})
    done = cli("evaluate", file, other, "--model", str(small_model), "--json")
    assert done.code == 0
    assert {part: values["n"] for part, values in json.loads(done.out).items()} == {
        "sentiment": 1, "entities": 1, "chart": 1,
    }  # fmt: skip
    assert [line.split(": ")[0] for line in done.err.splitlines()] == [f"{file}, line 1", f"{file}, line 2"]


def test_evaluate_computes_in_fp32_unless_told_otherwise(
    cli: Cli, tmp_path: Path, small_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write(tmp_path / "f.jsonl", {"text": "Acme profit rises", "sentiment": "positive"})
    monkeypatch.setenv("SENTIMENT_MONITOR_CPU_PRECISION", "bf16")
    for flags, used in (((), "fp32"), (("--precision", "int8"), "int8"), (("--precision", "auto"), "bf16")):
        told = cli("evaluate", file, "--model", str(small_model), *flags)
        assert told.code == 0
        assert told.out.splitlines()[0].endswith(f", computed in {used}")
    assert cli("evaluate", file, "--model", str(small_model), "--precision", "fp8").code == 2


def test_evaluate_measures_what_a_run_with_these_files_held_out(cli: Cli, tmp_path: Path, small_model: Path) -> None:
    words = "amber birch cedar delta ember fjord grove hazel islet jetty kelp lotus maple north".split()  # noqa: SIM905
    rows = [
        {"text": f"{one} {two} {one[::-1]} falls", "sentiment": "negative", "agreement": "All" if two > one else "50"}
        for one in words
        for two in words
        if one != two
    ]
    graded = [{"text": f"{one} opens a shop in {one[::-1]} today", "score": -0.2} for one in words]
    one, other = write(tmp_path / "a.jsonl", *rows), write(tmp_path / "b.jsonl", *graded)
    config = tmp_path / "c.toml"
    config.write_text("sets = []\ntest_share = 0.3\n")
    told = cli("evaluate", one, other, "--held-out", str(config), "--model", str(small_model), "--json")
    assert told.code == 0
    found = json.loads(told.out)
    data = gather(load_config(str(config)), [Path(one), Path(other)])
    assert found["sentiment"]["n"] == sum(example.sentiment >= 0 for example in data.test) > 20
    assert found["score"]["n"] == sum(example.score is not None for example in data.test) > 0
    agreed = {row["text"] for row in rows if row["agreement"] == "All"}
    assert found["sentiment_all_agree"]["n"] == sum(example.text in agreed for example in data.test)
    shown = cli("evaluate", one, "--held-out", str(config), "--model", str(small_model)).out
    assert "sentiment where all annotators agree: n " in shown
    missing = cli("evaluate", "sentfin", "--held-out", str(config), "--model", str(small_model))
    assert missing.code == 3
    assert "The file sentfin does not exist." in missing.err
    nothing = cli(
        "evaluate", write(tmp_path / "c.jsonl", rows[0]), "--held-out", "default", "--model", str(small_model)
    )
    assert (nothing.code, nothing.out) == (3, "")
    assert "holds out no row" in nothing.err


def test_evaluate_needs_a_file_and_a_model_that_exist(cli: Cli, tmp_path: Path) -> None:
    missing = cli("evaluate", str(tmp_path / "none.jsonl"))
    assert missing.code == 3
    assert "none.jsonl does not exist." in missing.err
    assert "Packaged sets are sentfin, " in missing.err
    file = write(tmp_path / "f.jsonl", {"text": "x", "sentiment": "neutral"})
    unknown = cli("evaluate", file, "--model", "nobody")
    assert unknown.code != 0
    assert unknown.err.startswith("error: There is no model nobody.")


def test_score_reads_standard_input_and_names_bad_lines(cli: Cli, tmp_path: Path, small_model: Path) -> None:
    (tmp_path / "torn.png").write_bytes(picture()[:70])
    rows = [
        {"id": "a", "title": "Acme profit falls"},
        {"id": "b", "title": "Acme", "chart": str(tmp_path / "torn.png")},
        {"id": "c", "title": "Acme", "chart": str(tmp_path / "none.png")},
        {"id": "d", "title": "Acme", "body": "profit rises and rises " * 2700},
    ]
    content = "".join(json.dumps(row) + "\n" for row in rows).encode() + b"\xff\n\n"
    done = cli("score", "-", "--model", str(small_model), stdin=content)
    assert done.code == 3
    scored = {row["id"]: row for row in map(json.loads, done.out.splitlines())}
    # An item whose chart cannot be read is scored from its text, and the line is named all the same.
    assert set(scored) == {"a", "b", "c", "d"}
    assert "text_truncated" in scored["d"]["flags"]
    assert [line.split(":")[0] for line in done.err.splitlines() if line.startswith("line ")] == [
        "line 2", "line 3", "line 5",
    ]  # fmt: skip
    assert "not UTF-8" in done.err


@pytest.mark.parametrize("rows", [1, 3])
def test_score_shows_no_share_before_there_is_one(
    cli: Cli, tmp_path: Path, small_model: Path, monkeypatch: pytest.MonkeyPatch, rows: int
) -> None:
    file = write(tmp_path / "f.jsonl", *({"title": f"Acme profit falls {n}"} for n in range(rows)))

    def shown(*arguments: str, stdin: bytes = b"") -> str:
        told = io.StringIO()
        monkeypatch.setattr(score_module, "err", Console(file=told, force_terminal=True, width=100, color_system=None))
        done = cli("score", *arguments, "--model", str(small_model), stdin=stdin)
        assert (done.code, done.err) == (0, "")
        return " ".join(CONTROL.sub(" ", told.getvalue()).split())

    bar = shown(file, "--out", str(tmp_path / "out.jsonl"))
    assert " 0%" not in bar
    assert "scoring ━" in bar
    assert f" {rows} item{'s' if rows > 1 else ''} scored ━" in bar
    assert "100%" in bar
    assert "%" not in shown("-", stdin=Path(file).read_bytes())
    # Beside the items themselves there is none: they are on the same screen.
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert "scored" not in shown(file)


def test_score_of_nothing_is_nothing_and_of_no_file_an_error(cli: Cli, tmp_path: Path, small_model: Path) -> None:
    empty = cli("score", "-", "--model", str(small_model))
    assert (empty.code, empty.out) == (0, "")
    missing = cli("score", str(tmp_path / "none.jsonl"))
    assert missing.code == 3
    assert "cannot be read: No such file or directory" in missing.err
    out = tmp_path / "out.jsonl"
    unknown = cli("score", write(tmp_path / "f.jsonl", {"title": "x"}), "--model", "nobody", "--out", str(out))
    assert unknown.code != 0
    assert not out.exists()


def test_train_stops_at_a_bad_row_before_the_first_step(cli: Cli, tmp_path: Path) -> None:
    file = write(tmp_path / "rows.jsonl", {"text": "x", "sentiment": "neutral"}, {"text": "y", "sentiment": "good"})
    done = cli("train", "--data", file, "--out", str(tmp_path / "out"))
    assert done.code == 3
    assert "rows.jsonl, line 2: the sentiment `good` is none of negative, neutral, positive." in done.err
    assert not (tmp_path / "out").exists()
    missing = cli("train", "--config", "nothing", "--out", str(tmp_path / "out"))
    assert missing.code == 2
    assert "There is no training config nothing." in missing.err
