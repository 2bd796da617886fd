"""Why the model said it: the words and the parts of the chart that counted, and examples that are alike.

The model is loaded when somebody asks for the first time, and is then shared by all visits.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import streamlit as st

from dashboard.markup import SENTIMENT_MARKS, escape, markup, plain, signed, table
from dashboard.store import engine, settings
from monitor.records import ScoredItem, Sentiment
from monitor.storage.articles import ChartImage

if TYPE_CHECKING:
    from models.explain import Explanation

__all__ = ["show_explanation", "wording"]

WHOLE: Final = "the whole article"
TOLD: Final = 5
# The lightest and the darkest shade of a cell of the chart that counted.
SHADE: Final = (224, 120, 40)
DARKEST: Final = 0.65


def wording(item: ScoredItem) -> str:
    """Title and body as the classifier read them."""
    return f"{item.title}\n{item.body}".strip()


@st.cache_resource(max_entries=1, show_spinner=False)
def _scorer(_settings: Any, _engine: Any, database: str, model: str) -> Any:  # noqa: ARG001 - the cache's key
    from models.engine import open_scorer

    return open_scorer(_settings, _engine)


def _scorer_in_use() -> Any:
    now = settings()
    scorer = _scorer(now, engine(), now.database, now.model)
    scorer.refresh()
    return scorer


def _explain(scorer: Any, item: ScoredItem, ticker: str, image: bytes | None) -> Explanation:
    """Of the whole, or of the company `ticker` by what is read of the text when it is scored."""
    from models.explain import explain

    text = wording(item)
    row = scorer.rows_about(item, text).get(ticker) if ticker else None
    if row is None:
        return explain(scorer, text, None, image, count=0)
    # A chart has a say in what is said of a company only where it shows that one: where there is no other.
    shown = image if len(item.entities) == 1 else None
    return explain(scorer, row.text, row.entity, shown, count=0)


def _words(found: Explanation) -> None:
    most = max((abs(word.share) for word in found.words), default=0) or 1
    marked = []
    for word in found.words:
        strength = round(abs(word.share) / most * 0.7, 2)
        kind = "for" if word.share > 0 else "against"
        marked.append(
            f'<span class="word {kind}" style="--strength: {strength}" title="{word.share:+.3f}">'
            f"{escape(word.text)}</span>"
        )
    markup(f'<p class="words">{" ".join(marked)}</p>')
    strongest = sorted(found.words, key=lambda word: -abs(word.share))[:TOLD]
    told = ", ".join(f"{plain(word.text, 40)} {signed(word.share)}" for word in strongest)
    st.caption(f"Orange speaks for {found.label}, underlined blue against it; strongest: {told}.")


def _heat_map(found: Explanation, image: bytes) -> None:
    import numpy as np
    from PIL import Image

    from models.charts.encoder import content_box
    from models.charts.images import decode_image
    from monitor.records import Rejected

    picture = decode_image(image)
    if isinstance(picture, Rejected):
        return
    # The cells divide what the encoder sees: the picture without its margins.
    picture = picture.crop(content_box(np.asarray(picture)))
    most = max(max(row) for row in found.heat_map) or 1.0
    cells = bytes(round(255 * DARKEST * lost / most) for row in found.heat_map for lost in row)
    size = (len(found.heat_map[0]), len(found.heat_map))
    mask = Image.frombytes("L", size, cells).resize(picture.size, Image.Resampling.NEAREST)
    shown = picture.convert("RGB")
    shown.paste(Image.new("RGB", picture.size, SHADE), mask=mask)
    st.image(shown, width="stretch", caption=f"What the reading “{found.trend}” rests on: the darker, the more.")


def _neighbours(model: Any, text: str) -> None:
    from models.explain import index_folder, neighbours

    with st.spinner("Looking for labelled examples that are alike; the first time takes a while …"):
        found = neighbours(model, text, TOLD, index_folder(settings()))
    st.markdown("**Labelled examples that are alike**")
    table(
        ("example", "labels", "similarity"),
        (
            (
                escape(near.text[:300]),
                escape(", ".join(f"{name}: {value}" for name, value in near.labels.items())),
                f"{near.similarity:.2f}",
            )
            for near in found
        ),
        "Labelled examples that are alike",
    )


def show_explanation(item: ScoredItem, images: list[ChartImage]) -> None:
    """A button that explains the item, or what it says of one of its entities."""
    st.subheader("Why?", anchor=False)
    text = wording(item)
    choice, button = st.columns([3, 1], vertical_alignment="bottom")
    tickers = {WHOLE: ""}
    for entity in item.entities:
        tickers[f"{entity.name} ({entity.ticker})" if entity.name in tickers else entity.name] = entity.ticker
    name = choice.selectbox("Explain the sentiment of", list(tickers), key=f"why-{item.id}")
    image = images[0].image if images else None
    if not button.button("Explain", icon=":material/psychology:", width="stretch"):
        return
    with st.spinner("Reading it again …"):
        scorer = _scorer_in_use()
        found = _explain(scorer, item, tickers[name], image)
    mark = SENTIMENT_MARKS[Sentiment(found.label)]
    st.markdown(f"The model in use says **{mark} {found.label}** with {found.probability:.0%}.")
    if found.words:
        _words(found)
    if image is not None and found.heat_map:
        st.caption(
            f"The text has {found.text_share:.0%} of the say in the sentiment, the chart {found.chart_share:.0%}."
        )
        _heat_map(found, image)
    if text:
        _neighbours(scorer.model, text)
