"""JSONL feeds: good lines come through with their charts, bad ones are told by number."""

from __future__ import annotations

import io
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from monitor.feeds.jsonl import MAX_LINE_BYTES, BadLine, Line, read_jsonl
from monitor.records import decode_chart

NOW = datetime(2026, 1, 1, tzinfo=UTC)
GOOD: dict[str, Any] = {"id": "a", "title": "t", "published_at": "2024-01-08T09:00:00Z"}
PNG = b"\x89PNG\r\n\x1a\nrest of it"


def read(
    data: bytes, folder: Path = Path(), limit: int = 1000, undated: datetime | None = None
) -> list[Line | BadLine]:
    return list(read_jsonl(io.BytesIO(data), NOW, folder=folder, max_chart_bytes=limit, undated=undated))


def line_of(fields: dict[str, Any], folder: Path = Path(), undated: datetime | None = None) -> Line:
    (found,) = read(json.dumps(fields).encode(), folder, undated=undated)
    assert isinstance(found, Line), found
    return found


def test_lines_are_numbered_and_bad_ones_told_apart() -> None:
    data = b"\n".join(
        [
            b"\xef\xbb\xbf" + json.dumps(GOOD).encode(),
            b"",
            b"{",
            json.dumps(GOOD | {"title": ""}).encode(),
            b"\xff",
            b"  ",
        ]
    )
    found = read(data)
    assert [(type(x).__name__, x.number) for x in found] == [
        ("Line", 1),
        ("BadLine", 3),
        ("BadLine", 4),
        ("BadLine", 5),
    ]
    assert [x.rejected.code for x in found if isinstance(x, BadLine)] == ["bad_json", "no_text", "bad_encoding"]


def test_a_line_without_end_does_not_fill_the_memory() -> None:
    data = b'{"title": "' + b"x" * (2 * MAX_LINE_BYTES) + b'"}\n' + json.dumps(GOOD).encode()
    first, second = read(data)
    assert isinstance(first, BadLine)
    assert first.rejected.code == "oversized"
    assert isinstance(second, Line)
    assert second.number == 2
    assert (first.position, second.position) == (data.index(b"\n") + 1, len(data))


def test_a_named_chart_goes_with_its_item(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(PNG)
    (line,) = read(json.dumps(GOOD | {"chart": "a.png", "tickers": ["AAPL"]}).encode(), tmp_path)
    assert isinstance(line, Line)
    assert line.chart is not None
    assert line.item.chart_ids == (line.chart.chart_id,)
    assert (line.chart.image, line.chart.item_id, line.chart.tickers) == (PNG, "a", ("AAPL",))
    assert line.chart.published_at == line.item.published_at
    again = read(json.dumps(GOOD | {"chart": "a.png"}).encode(), tmp_path)[0]
    assert isinstance(again, Line)
    assert again.item.chart_ids == line.item.chart_ids
    named = read(json.dumps(GOOD | {"chart": "a.png", "chart_ids": ["mine"]}).encode(), tmp_path)[0]
    assert isinstance(named, Line)
    assert named.chart is not None
    assert named.chart.chart_id == "mine"


def test_an_item_survives_a_chart_that_is_not_there_or_no_picture(tmp_path: Path) -> None:
    (tmp_path / "secret.txt").write_text("not for others")
    (tmp_path / "big.png").write_bytes(PNG + b"x" * 2000)
    lines = [GOOD | {"chart": name} for name in ("missing.png", "secret.txt", "big.png", "a\x00b", ".", 7)]
    found = read("\n".join(json.dumps(line) for line in lines).encode(), tmp_path)
    assert all(isinstance(x, Line) and x.chart is None and x.problem and x.item.chart_ids == () for x in found)
    assert len(found) == 6


def test_an_undated_line_is_bad_unless_a_time_is_given_and_its_id_does_not_depend_on_it() -> None:
    undated = {name: value for name, value in GOOD.items() if name == "title"}
    (bad,) = read(json.dumps(undated).encode())
    assert isinstance(bad, BadLine)
    assert bad.rejected.code == "missing_published_at"
    first, second = (line_of(undated, undated=at).item for at in (NOW, NOW.replace(year=2025)))
    assert (first.published_at, second.published_at) == (NOW, NOW.replace(year=2025))
    assert first.id == second.id
    # A date that is there is not put right.
    (wrong,) = read(json.dumps(undated | {"published_at": "yesterday"}).encode(), undated=NOW)
    assert isinstance(wrong, BadLine)


def test_text_stands_for_a_title_where_there_is_none() -> None:
    fields = {"published_at": GOOD["published_at"], "text": "t"}
    assert line_of(fields).item.title == "t"
    assert line_of(fields | {"body": "b"}).item.title == ""


def test_a_chart_alone_has_the_id_that_it_has_on_the_topic(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(PNG)
    found = line_of({"chart": "a.png", "published_at": GOOD["published_at"]}, tmp_path)
    assert found.chart is not None
    assert (found.item.text, found.item.id) == ("", f"chart:{found.chart.chart_id}")
    sent = decode_chart(found.chart.image, [("published_at", GOOD["published_at"].encode())], NOW, 1000)
    assert sent == found.chart
    (lost,) = read(json.dumps({"chart": "b.png", "published_at": GOOD["published_at"]}).encode(), tmp_path)
    assert isinstance(lost, BadLine)
    assert lost.rejected.code == "chart_missing"
    assert "b.png" in lost.rejected.reason


def test_the_reading_of_a_chart_that_score_prints_is_no_name() -> None:
    found = line_of(GOOD | {"chart": {"label": "up"}})
    assert (found.chart, found.problem) == (None, "")


@given(st.lists(st.one_of(st.binary(max_size=50), st.just(json.dumps(GOOD).encode())), max_size=10))
def test_anything_can_be_read(lines: list[bytes]) -> None:
    assert sum(isinstance(x, Line) for x in read(b"\n".join(lines))) >= lines.count(json.dumps(GOOD).encode())
