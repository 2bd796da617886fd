"""News items from a JSON Lines file, with the chart images that it names."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import IO, Final

import msgspec

from monitor.records import Chart, NewsItem, Rejected, decode_news

__all__ = ["BadLine", "Line", "read_jsonl"]

# What fits into one record of the topic.
MAX_LINE_BYTES: Final = 1 << 20
_SIGNATURES: Final = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"RIFF")


class Line(msgspec.Struct, frozen=True):
    """A good line: an item and, if its `chart` field names a readable image file, that chart.

    `problem` says why a named chart is left out; empty when there is none.
    """

    number: int
    item: NewsItem
    chart: Chart | None = None
    problem: str = ""


class BadLine(msgspec.Struct, frozen=True):
    """A line that is no item, and why; `number` counts from 1."""

    number: int
    rejected: Rejected


class _ChartField(msgspec.Struct):
    chart: str | None = None


def read_jsonl(stream: IO[bytes], now: datetime, *, folder: Path, max_chart_bytes: int) -> Iterator[Line | BadLine]:
    """Lines of a file, each a news item or the reason why it is none. Empty lines are skipped.

    Parameters
    ----------
    now : the reader's clock, against which absurd dates are told.
    folder : what relative names in the `chart` fields are relative to.
    max_chart_bytes : larger image files are left out.
    """
    number = 0
    while True:
        raw = stream.readline(MAX_LINE_BYTES)
        if not raw:
            return
        number += 1
        if len(raw) == MAX_LINE_BYTES and not raw.endswith(b"\n"):
            while (rest := stream.readline(MAX_LINE_BYTES)) and not rest.endswith(b"\n"):
                pass
            reason = f"The line is longer than {MAX_LINE_BYTES} bytes."
            yield BadLine(number, Rejected(code="oversized", reason=reason))
            continue
        line = raw.removeprefix(b"\xef\xbb\xbf").strip() if number == 1 else raw.strip()
        if line:
            yield _line(number, line, now, folder, max_chart_bytes)


def _line(number: int, line: bytes, now: datetime, folder: Path, max_chart_bytes: int) -> Line | BadLine:
    item = decode_news(line, now)
    if isinstance(item, Rejected):
        return BadLine(number, item)
    try:
        name = msgspec.json.decode(line, type=_ChartField).chart
    except msgspec.ValidationError:
        return Line(number, item, problem="The field chart must be the name of a file.")
    if not name:
        return Line(number, item)
    image = _image(folder / name, max_chart_bytes)
    if isinstance(image, str):
        return Line(number, item, problem=f"The chart {json.dumps(name)} is left out: {image}.")
    chart_id = item.chart_ids[0] if item.chart_ids else _chart_id(item.id, image)
    chart = Chart(chart_id=chart_id, image=image, published_at=item.published_at, item_id=item.id, tickers=item.tickers)
    return Line(number, msgspec.structs.replace(item, chart_ids=item.chart_ids or (chart_id,)), chart)


def _chart_id(item_id: str, image: bytes) -> str:
    """The same picture of the same item has the same id, however often the file is read."""
    return hashlib.sha256(item_id.encode() + b"\x1f" + image).hexdigest()[:32]


def _image(path: Path, max_bytes: int) -> bytes | str:
    """The bytes of an image file, or what is wrong with it. Only pictures are read: a file of somebody else's making
    must not be able to name any other file of this machine."""
    try:
        with path.open("rb") as file:
            head = file.read(16)
            if not head.startswith(_SIGNATURES):
                return "it is none of PNG, JPEG and WebP"
            image = head + file.read(max_bytes)
    except (OSError, ValueError) as error:
        return f"it cannot be read ({getattr(error, 'strerror', None) or error})"
    return image if len(image) <= max_bytes else f"it is larger than {max_bytes} bytes"
