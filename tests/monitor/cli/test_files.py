"""`evaluate`, `score` and `train` on files: what is wrong with one is said in a sentence that names the line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.models.tiny import picture
from tests.monitor.cli.conftest import Cli


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
