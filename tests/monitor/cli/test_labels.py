"""`labels`: in and out as JSON Lines, and every bad line named."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.monitor.cli.conftest import Cli

GOOD = {"text": "Acme wins an order", "sentiment": "positive", "entities": {"Acme": "positive"}, "author": "ann"}


def lines(*rows: object) -> bytes:
    return "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows).encode()


def test_nothing_to_export_is_said(cli: Cli, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    for file in ("-", str(out)):
        done = cli("labels", "export", file)
        assert (done.code, done.out) == (0, "")
        assert done.err.startswith("There are no corrections to export: ")
    assert out.read_bytes() == b""


def test_what_is_exported_can_be_imported_and_evaluated(cli: Cli, tmp_path: Path, small_model: Path) -> None:
    file = tmp_path / "in.jsonl"
    file.write_bytes(lines(GOOD, {"text": "Rates stay", "topic": "central_banks"}))
    assert "2 corrections imported, 0 were there already." in cli("labels", "import", str(file)).err
    out = tmp_path / "out.jsonl"
    assert "2 corrections written" in cli("labels", "export", str(out)).err
    assert out.read_text() == cli("labels", "export").out
    assert "0 corrections imported, 2 were there already." in cli("labels", "import", "-", stdin=out.read_bytes()).err
    listed = [json.loads(line) for line in cli("labels", "list", "--json").out.splitlines()]
    assert {row["author"] for row in listed} == {"ann", "import"}
    measured = json.loads(cli("evaluate", str(out), "--model", str(small_model), "--json").out)
    assert {part: one["n"] for part, one in measured.items()} == {"sentiment": 1, "topic": 1, "entities": 1}


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        ("{", "line 3: this is not JSON"),
        ("[]", "line 3: this is not a JSON object"),
        ({"sentiment": "positive"}, "line 3: the text is missing"),
        ({"text": "x"}, "line 3: at least one of sentiment, topic and entities is needed"),
        ({"text": "x", "sentiment": "great"}, "line 3: sentiment must be negative, neutral or positive, not 'great'"),
        ({"text": "x", "topic": "gossip"}, "line 3: the topic 'gossip' is not one of the taxonomy"),
    ],
)
def test_one_bad_line_is_named_and_nothing_is_imported(cli: Cli, bad: object, said: str) -> None:
    done = cli("labels", "import", "-", stdin=lines(GOOD, "", bad, GOOD))
    assert done.code == 3
    assert done.err.startswith(f"error: {said}")
    assert cli("labels", "list", "--json").out == ""


def test_topics_are_those_of_the_model_in_force(
    cli: Cli, small_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = tmp_path / "own"
    shutil.copytree(small_model, own)
    known = json.loads((own / "model.json").read_text())
    known["taxonomy"]["topics"][0] = {"name": "gossip", "title": "Gossip"}
    (own / "model.json").write_text(json.dumps(known))
    monkeypatch.setenv("SENTIMENT_MONITOR_MODEL", str(own))
    done = cli("labels", "import", "-", stdin=lines({"text": "x", "topic": "gossip"}))
    assert "1 corrections imported" in done.err


def test_files_that_are_not_there(cli: Cli, tmp_path: Path) -> None:
    done = cli("labels", "import", str(tmp_path / "none.jsonl"))
    assert (done.code, "cannot be read: No such file" in done.err) == (3, True)
    done = cli("labels", "export", str(tmp_path / "none" / "out.jsonl"))
    assert (done.code, "cannot be written: No such file" in done.err) == (3, True)
