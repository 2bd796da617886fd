"""News items from a JSON Lines file, with the chart images that it names: what `feed jsonl` sends and `score` scores.

A line is a record of the `news` topic with these liberties: `text` may stand for `title`, and `chart` may name an
image file; with a chart, no text is needed. What `score` prints can be read again.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import IO, Any, Final

import msgspec

from monitor.records import EARLIEST, Chart, NewsItem, Rejected, decode_json, derive_chart_id, derive_id, news_item

__all__ = ["BadLine", "Line", "read_jsonl"]

MAX_LINE_BYTES: Final = 16 << 20
_SIGNATURES: Final = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"RIFF")


class Line(msgspec.Struct, frozen=True):
    """A good line: an item and, if its `chart` field names a readable image file, that chart.

    A chart alone comes with a stand-in item that has neither title nor body. `problem` says why a named chart is left
    out; empty when there is none. `position` is where the stream stands after the line, in bytes.
    """

    number: int
    item: NewsItem
    chart: Chart | None = None
    problem: str = ""
    position: int = 0


class BadLine(msgspec.Struct, frozen=True):
    """A line that is no item, and why; `number` counts from 1, `position` is as a `Line`'s."""

    number: int
    rejected: Rejected
    position: int = 0


def read_jsonl(
    stream: IO[bytes], now: datetime, *, folder: Path, max_chart_bytes: int, undated: datetime | None = None
) -> Iterator[Line | BadLine]:
    """Lines of a file, each a news item or the reason why it is none. Empty lines are skipped; none longer than
    16 MiB is held in memory.

    Parameters
    ----------
    now : the reader's clock, against which absurd dates are told.
    folder : what relative names in the `chart` fields are relative to.
    max_chart_bytes : larger image files are left out.
    undated : the time of lines without `published_at`; None: they are bad. A replay in event time cannot have any.
    """
    number = position = 0
    while raw := stream.readline(MAX_LINE_BYTES):
        number += 1
        position += len(raw)
        if len(raw) == MAX_LINE_BYTES and not raw.endswith(b"\n"):
            while rest := stream.readline(MAX_LINE_BYTES):
                position += len(rest)
                if rest.endswith(b"\n"):
                    break
            reason = f"The line is longer than {MAX_LINE_BYTES} bytes."
            yield BadLine(number, Rejected(code="oversized", reason=reason), position)
            continue
        content = raw.removeprefix(b"\xef\xbb\xbf").strip() if number == 1 else raw.strip()
        if not content:
            continue
        found = _parsed(content, now, undated, folder, max_chart_bytes)
        if isinstance(found, Rejected):
            yield BadLine(number, found, position)
        else:
            yield Line(number, *found, position)


def _parsed(
    content: bytes, now: datetime, undated: datetime | None, folder: Path, max_chart_bytes: int
) -> tuple[NewsItem, Chart | None, str] | Rejected:
    """An item, its chart, and why a chart that it names is left out."""
    fields = decode_json(content)
    if not isinstance(fields, dict):
        wrong = Rejected(code="not_an_object", reason="The line is not a JSON object.")
        return fields if isinstance(fields, Rejected) else wrong
    image, problem = _named_image(fields.get("chart"), folder, max_chart_bytes)
    if not _given(fields, "title") and not _given(fields, "body") and _given(fields, "text"):
        fields["title"] = fields["text"]
    alone = image is not None and not _given(fields, "title") and not _given(fields, "body")
    dateless = undated is not None and not _given(fields, "published_at")
    if dateless:
        fields["published_at"] = undated.isoformat() if undated else ""
    item = news_item(fields | ({"title": "chart"} if alone else {}), now)
    if isinstance(item, Rejected):
        return Rejected(code="chart_missing", reason=problem) if problem and item.code == "no_text" else item
    own_id = _given(fields, "id")
    if dateless and not own_id:
        # The clock must not take part: the same line has the same id in every run.
        item = msgspec.structs.replace(item, id=derive_id(item.source, item.url, item.title, item.body, EARLIEST))
    if image is None:
        return item, None, problem
    chart_id = item.chart_ids[0] if item.chart_ids else derive_chart_id("" if alone else item.id, image)
    item = msgspec.structs.replace(item, chart_ids=item.chart_ids or (chart_id,))
    if alone:
        item = msgspec.structs.replace(item, title="", id=item.id if own_id else f"chart:{chart_id}")
    chart = Chart(
        chart_id=chart_id,
        image=image,
        published_at=item.published_at,
        item_id="" if alone else item.id,
        tickers=item.tickers,
    )
    return item, chart, ""


def _given(fields: dict[str, Any], name: str) -> bool:
    value = fields.get(name)
    return bool(value.strip()) if isinstance(value, str) else value is not None


def _named_image(name: object, folder: Path, max_bytes: int) -> tuple[bytes | None, str]:
    """The image that a `chart` field names, or what is wrong with it. What `score` prints has the reading of a chart
    there: such a line is an item with a text."""
    if name is None or name == "" or isinstance(name, dict):
        return None, ""
    if not isinstance(name, str):
        return None, "The field chart must be the name of an image file."
    image = _image(folder / name, max_bytes)
    return (None, f"The chart {json.dumps(name)} is left out: {image}.") if isinstance(image, str) else (image, "")


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
