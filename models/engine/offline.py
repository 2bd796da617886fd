"""Scoring files: lines in, scored items or one clear reason a line out, in order, a bounded chunk at a time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Final, NamedTuple

from models.charts.images import decode_image
from models.engine.items import Flag, ScoringRequest
from models.engine.scorer import Scorer
from monitor.feeds.jsonl import BadLine, Line
from monitor.records import Rejected, ScoredItem

if TYPE_CHECKING:
    from monitor.settings import Settings

__all__ = ["Outcome", "score_lines"]

# Pictures are read whole: a chunk ends early when they fill this much.
_MAX_CHUNK_BYTES: Final = 64 << 20


class Outcome(NamedTuple):
    """What became of one line. `problem` says why the chart that it names took no part; empty when it did, or there is
    none. `position` is where the input stands after it, in bytes."""

    number: int
    result: ScoredItem | Rejected
    position: int
    problem: str = ""


def _outcomes(chunk: list[Line | BadLine], scorer: Scorer, settings: Settings) -> Iterator[Outcome]:
    good = [line for line in chunk if isinstance(line, Line)]
    scored = iter(scorer.score([ScoringRequest(line.item, (line.chart,) if line.chart else ()) for line in good]))
    for line in chunk:
        if isinstance(line, BadLine):
            yield Outcome(line.number, line.rejected, line.position)
            continue
        result, problem = next(scored), line.problem
        if isinstance(result, ScoredItem) and Flag.CHART_UNREADABLE in result.flags and line.chart is not None:
            unreadable = decode_image(line.chart.image, max_pixels=settings.max_chart_pixels)
            problem = f"The chart is left out: {unreadable.reason}" if isinstance(unreadable, Rejected) else problem
        yield Outcome(line.number, result, line.position, problem)


def score_lines(
    lines: Iterable[Line | BadLine], scorer: Scorer, settings: Settings, *, chunk_lines: int
) -> Iterator[Outcome]:
    """One outcome a line, in order; at most `chunk_lines` lines and 64 MiB of pictures are held at a time.

    An item whose chart cannot be read is scored from its text, as on Kafka. Raises `ModelError` when the device fails.
    """
    chunk: list[Line | BadLine] = []
    held = 0
    for line in lines:
        chunk.append(line)
        held += len(line.chart.image) if isinstance(line, Line) and line.chart is not None else 0
        if len(chunk) >= chunk_lines or held >= _MAX_CHUNK_BYTES:
            yield from _outcomes(chunk, scorer, settings)
            chunk, held = [], 0
    yield from _outcomes(chunk, scorer, settings)
