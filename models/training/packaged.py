"""What comes with the package to be measured on, by name: held-out texts, and drawn charts of held-out tickers.

`sentfin`, `twitter_sentiment`, `twitter_topic`: the test parts of the bundled sets. `charts`: worn pictures of charts,
one in six no chart. `pairs`: texts with a chart each, and the sentiment of both together; `pairs-text` and
`pairs-chart` ask the same questions with one half left out.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Final

import numpy as np
from PIL import Image

from models.answers import SENTIMENTS
from models.charts.dataset import chart_picture
from models.charts.labels import TREND_ORDER
from models.charts.negatives import not_a_chart
from models.training.datasets import BUNDLED, bundled_path, examples_of, frozen_test, read_labelled, select
from models.training.frozen import frozen_pairs
from models.training.lines import LabelledLine, line_of
from monitor.records import Trend

__all__ = ["PACKAGED", "packaged_lines"]

PACKAGED: Final = (*BUNDLED, "charts", "pairs", "pairs-text", "pairs-chart")
_CHARTS: Final = 2_000
_NO_CHART_EVERY: Final = 6
_SEED: Final = 21


def _png(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.convert("RGB").save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def _charts() -> Iterator[LabelledLine]:
    rng = np.random.default_rng(_SEED)
    for number in range(1, _CHARTS + 1):
        if number % _NO_CHART_EVERY == 0:
            picture, trend = not_a_chart(rng), Trend.NOT_A_CHART
        else:
            picture, trend = chart_picture(rng, "test", TREND_ORDER[int(rng.integers(3))])
        yield LabelledLine(number=number, image=_png(picture), trend=str(trend))


def _pairs(name: str) -> Iterator[LabelledLine]:
    pairs = frozen_pairs(examples_of(frozen_test()))
    questions = zip(pairs.texts, pairs.pictures, pairs.sentiment, strict=True)
    for number, (example, picture, label) in enumerate(questions, 1):
        yield LabelledLine(
            number=number,
            text="" if name == "pairs-chart" else example.text,
            image=None if name == "pairs-text" else _png(picture),
            sentiment=SENTIMENTS[int(label)],
        )


def packaged_lines(name: str) -> Iterator[LabelledLine]:
    """The lines of a set in `PACKAGED`; the same in every run (pictures also depend on the fonts of the system)."""
    if name in BUNDLED:
        held = select(read_labelled(bundled_path(name)), "test")
        return (line_of(row, number) for number, row in enumerate(held, 1))
    return _charts() if name == "charts" else _pairs(name)
