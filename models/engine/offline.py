"""Scoring files: lines in, scored items or one clear reason a line out, in order, a bounded chunk at a time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Final, NamedTuple

import msgspec
import xxhash

from models.charts.images import decode_image
from models.engine.items import Flag, ScoringRequest
from models.engine.scorer import Scorer
from monitor.records import EARLIEST, Chart, Rejected, ScoredItem, derive_id, news_item

if TYPE_CHECKING:
    from monitor.settings import Settings

__all__ = ["Line", "Outcome", "read_lines", "read_request", "score_lines"]

MAX_LINE_BYTES: Final = 16 << 20
# Pictures are read whole: a chunk ends early when they fill this much.
_MAX_CHUNK_BYTES: Final = 64 << 20


class Line(NamedTuple):
    """One line of a file: its number from 1, its bytes, and where the file stands after it. None: it is too long."""

    number: int
    content: bytes | None
    position: int


class Outcome(NamedTuple):
    """What became of one line. `position` is where the input stands after it, in bytes."""

    number: int
    result: ScoredItem | Rejected
    position: int


def read_lines(file: IO[bytes]) -> Iterator[Line]:
    """Lines that are not blank; none longer than 16 MiB is held in memory."""
    position, number = 0, 0
    while line := file.readline(MAX_LINE_BYTES):
        number += 1
        position += len(line)
        if len(line) == MAX_LINE_BYTES and not line.endswith(b"\n"):
            while (more := file.readline(MAX_LINE_BYTES)) and not more.endswith(b"\n"):
                position += len(more)
            position += len(more)
            yield Line(number, None, position)
            continue
        content = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
        if content.strip():
            yield Line(number, content.strip(), position)


def _chart(path: Path, fields: Mapping[str, Any], at: datetime, limit: int) -> Chart | Rejected:
    try:
        if path.stat().st_size > limit:
            return Rejected(
                code="oversized", reason=f"The chart {path} has {path.stat().st_size} bytes; the limit is {limit}."
            )
        image = path.read_bytes()
    except OSError as error:
        return Rejected(code="chart_missing", reason=f"The chart {path} cannot be read: {error.strerror}.")
    except ValueError:
        return Rejected(code="chart_missing", reason="The name of the chart's file holds a null character.")
    if not image:
        return Rejected(code="empty", reason=f"The chart {path} is empty.")
    named = fields.get("chart_ids")
    given = str(named[0]) if isinstance(named, list) and len(named) == 1 else ""
    return Chart(chart_id=given or xxhash.xxh3_128_hexdigest(image), image=image, published_at=at)


def read_request(content: bytes | None, folder: Path, settings: Settings, now: datetime) -> ScoringRequest | Rejected:
    """A line of a file as a request; never raises.

    As on the `news` topic, with these liberties for files: `published_at` may be missing (then it is `now`), `text`
    may stand for `title`, and `chart` names an image file relative to `folder`; with a chart, no text is needed.
    """
    if content is None:
        return Rejected(code="oversized", reason=f"The line has more than {MAX_LINE_BYTES} bytes.")
    try:
        fields = msgspec.json.decode(content.decode("utf-8"))
    except UnicodeDecodeError as error:
        return Rejected(code="bad_encoding", reason=f"The line is not UTF-8 (byte {error.start}).")
    except (msgspec.DecodeError, RecursionError) as error:
        return Rejected(code="bad_json", reason=f"The line is not JSON: {error}.")
    if not isinstance(fields, dict):
        return Rejected(code="not_an_object", reason="The line is not a JSON object.")
    path = fields.get("chart")
    # What `score` itself prints holds the reading of a chart under this name: such a line is scored from its text.
    if isinstance(path, dict):
        path = None
    if path is not None and (not isinstance(path, str) or not path):
        return Rejected(code="bad_field", reason="The field chart must be the name of an image file.")
    if fields.get("text") is not None and not fields.get("title") and not fields.get("body"):
        fields["title"] = fields["text"]
    undated = fields.get("published_at") in (None, "")
    worded = bool(fields.get("title") or fields.get("body")) or path is None
    item = news_item(
        fields | ({"published_at": now.isoformat()} if undated else {}) | ({} if worded else {"title": "chart"}), now
    )
    if isinstance(item, Rejected):
        return item
    if undated and not fields.get("id"):
        # The clock must not take part: the same line has the same id in every run.
        item = msgspec.structs.replace(item, id=derive_id(item.source, item.url, item.title, item.body, EARLIEST))
    if path is None:
        return ScoringRequest(item)
    chart = _chart(folder / path, fields, item.published_at, settings.max_chart_bytes)
    if isinstance(chart, Rejected):
        return chart
    if not worded:
        item = msgspec.structs.replace(item, title="", id=str(fields.get("id") or "") or f"chart:{chart.chart_id}")
    return ScoringRequest(item, (chart,))


def _outcomes(
    chunk: list[tuple[Line, ScoringRequest | Rejected]], scorer: Scorer, settings: Settings
) -> Iterator[Outcome]:
    scored = iter(scorer.score([request for _, request in chunk if isinstance(request, ScoringRequest)]))
    for line, request in chunk:
        result: ScoredItem | Rejected = request if isinstance(request, Rejected) else next(scored)
        if isinstance(result, ScoredItem) and Flag.CHART_UNREADABLE in result.flags:
            # In a file the chart was named on purpose: scoring the text alone would hide the mistake.
            assert isinstance(request, ScoringRequest)
            problem = decode_image(request.charts[0].image, max_pixels=settings.max_chart_pixels)
            result = problem if isinstance(problem, Rejected) else result
        yield Outcome(line.number, result, line.position)


def score_lines(
    lines: Iterable[Line], folder: Path, scorer: Scorer, settings: Settings, now: datetime, *, chunk_lines: int
) -> Iterator[Outcome]:
    """One outcome a line, in order; at most `chunk_lines` lines and 64 MiB of pictures are held at a time.

    A line whose chart cannot be read is rejected even when it has a text. Raises `ModelError` when the device fails.
    """
    chunk: list[tuple[Line, ScoringRequest | Rejected]] = []
    held = 0
    for line in lines:
        request = read_request(line.content, folder, settings, now)
        chunk.append((line._replace(content=None), request))
        held += sum(len(chart.image) for chart in request.charts) if isinstance(request, ScoringRequest) else 0
        if len(chunk) >= chunk_lines or held >= _MAX_CHUNK_BYTES:
            yield from _outcomes(chunk, scorer, settings)
            chunk, held = [], 0
    yield from _outcomes(chunk, scorer, settings)
