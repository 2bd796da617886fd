from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from models.training import gathering
from models.training.config import TrainingConfig
from models.training.datasets import LabelledText, bundled_path, read_labelled, select
from models.training.duplicates import DuplicateIndex
from models.training.gathering import gather, held_out, split_own
from monitor.errors import InputError

CONFIG = TrainingConfig(sets=(), test_share=0.3, validation_share=0.2)


def rows_of(texts: Sequence[str], **more: Any) -> list[LabelledText]:
    return [LabelledText(text=text, sentiment="neutral", **more) for text in texts]


def write(path: Path, rows: Sequence[LabelledText]) -> Path:
    path.write_text("\n".join(json.dumps({"text": row.text, "sentiment": row.sentiment}) for row in rows))
    return path


@pytest.fixture(scope="module")
def bundled() -> dict[str, list[LabelledText]]:
    rows = read_labelled(bundled_path("sentfin"))
    return {part: select(rows, part)[:40] for part in ("train", "validation", "test")}


def test_a_row_like_a_bundled_held_out_one_is_held_out_too(bundled: dict[str, list[LabelledText]]) -> None:
    for part in ("validation", "test"):
        repeated = rows_of([f"{row.text}!!!" for row in bundled[part]])
        found = split_own(repeated, CONFIG)
        assert set(found) <= {"validation", "test"} if part == "validation" else set(found) == {"test"}
    # Also against the part that it names; but what is held out stays so.
    named = rows_of([row.text for row in bundled["test"]], part="train")
    assert set(split_own(named, CONFIG)) == {"test"}
    kept = rows_of([row.text for row in bundled["validation"]], part="test")
    assert set(split_own(kept, CONFIG)) == {"test"}
    # Of what the bundled sets train on too, the shares decide.
    assert set(split_own(rows_of([row.text for row in bundled["train"]]), CONFIG)) == {"train", "validation", "test"}


def test_a_whole_group_goes_where_one_of_it_has_to(monkeypatch: pytest.MonkeyPatch) -> None:
    words = [f"{one}{other}" for one in ("amber", "birch", "cedar", "delta", "ember") for other in "abcdefgh"]
    # Each nearly repeats the one before; the last is too far from the first to be found by itself.
    others = [word[::-1] for word in words]
    chain = [" ".join(others[: 4 * cut] + words[4 * cut :]) for cut in range(4)]
    index = DuplicateIndex([chain[0]])
    assert index.find(chain[1]) == [0]
    assert index.find(chain[3]) == []
    monkeypatch.setattr(gathering, "_bundled_held_out", lambda: gathering._HeldOut(index, [2]))
    assert split_own(rows_of(chain[1:]), CONFIG) == ["test"] * 3
    assert "train" in split_own(rows_of([chain[3], "Oil prices climb", "Gold falls", "Rates stay"]), CONFIG)


def test_held_out_rows_are_those_of_the_run(tmp_path: Path) -> None:
    words = "amber birch cedar delta ember fjord grove hazel islet jetty kelp lotus maple north".split()  # noqa: SIM905
    texts = [f"{one} {other} {one[::-1]} {other[::-1]} sales rose" for one in words for other in words if one != other]
    files = [write(tmp_path / "a.jsonl", rows_of(texts[:90])), write(tmp_path / "b.jsonl", rows_of(texts[90:]))]
    data = gather(CONFIG, files)
    found = held_out(CONFIG, files)
    assert [example.text for example in data.test] == [row.text for row in found]
    assert {row.origin for row in found} == {"a", "b"}
    trained = {example.text for example in data.train + data.validation}
    assert trained.isdisjoint(row.text for row in found)
    assert len(trained) + len(found) == len(texts)
    # The order of the files says nothing.
    assert {row.text for row in held_out(CONFIG, files[::-1])} == {row.text for row in found}


def test_a_name_that_stands_nowhere_stops_a_run_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(
        '{"text": "L&T Finance Holdings rises", "entities": {"L&T Finance neutralings": "positive"}}\n'
        '{"text": "Wipro falls", "entities": {"Infosys": "negative"}}\n'
    )
    with pytest.raises(InputError, match=r"rows\.jsonl, line 2: the entity `Infosys` does not stand in the text"):
        gather(CONFIG, [path])
