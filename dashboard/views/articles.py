"""Articles: what was said under a key, with search and pages, down to one item."""

from __future__ import annotations

from typing import Final

import msgspec
import streamlit as st

from dashboard.filters import Span, choose_key, choose_span, empty_store
from dashboard.markup import SENTIMENT_MARKS, clock
from dashboard.store import guarded, read, taxonomy
from dashboard.views.item import show_item
from monitor.alerts.records import clean_text, clean_url
from monitor.records import Sentiment
from monitor.storage.articles import SEARCH_DEPTH, HeadlinePage, Position, headlines

__all__ = ["show"]

PAGE: Final = 50


def _fixed_span() -> Span | None:
    """The stretch that the address names, as a link from an alert does; None when it names none."""
    try:
        span = Span(int(st.query_params["from"]), int(st.query_params["to"]))
    except (KeyError, ValueError):
        return None
    # Years 1970 to 2200: beyond that no date can be made of it.
    return span if 0 <= span.start < span.end < 121_000_000 else None


def _choose_span() -> Span | None:
    fixed = _fixed_span()
    if fixed is None:
        return choose_span()
    if st.button(f"{fixed}", icon=":material/close:", help="Back to ranges that end with the newest news."):
        del st.query_params["from"], st.query_params["to"]
        st.rerun()
    return fixed


def _list() -> None:
    what, words, mood = st.columns([2, 2, 2], vertical_alignment="bottom")
    key = choose_key(place=what)
    search = words.text_input("Search", key="q", bind="query-params", placeholder="words in title or text") or ""
    sentiment = mood.segmented_control(
        "Sentiment",
        [s.value for s in Sentiment],
        format_func=lambda value: f"{SENTIMENT_MARKS[Sentiment(value)]} {value}",
        key="sentiment",
        bind="query-params",
    )
    span = _choose_span()
    if span is None:
        empty_store()
        return
    # The pages turned so far: where each began. Another question begins at the top again.
    question = (key, search, sentiment, span.minutes)
    if st.session_state.get("question") != question:
        st.session_state["question"] = question
        st.session_state["turned"] = []
    turned: list[Position] = st.session_state["turned"]
    with read() as connection:
        page = headlines(
            connection,
            key=key,
            start=span.begins,
            end=span.ends,
            search=search,
            sentiment=sentiment or "",
            before=turned[-1] if turned else None,
            limit=PAGE,
        )
    if page.rows:
        _table(page)
    else:
        st.info("Nothing was found in this range.", icon=":material/search_off:")
    if page.cut:
        st.caption(f"Only the newest {SEARCH_DEPTH:,} items of the range were searched: shorten it to see older ones.")
    newer, older, note, download = st.columns([1, 1, 4, 1], vertical_alignment="center")
    if newer.button("Newer", icon=":material/chevron_left:", disabled=not turned, width="stretch"):
        turned.pop()
        st.rerun()
    if older.button("Older", icon=":material/chevron_right:", disabled=page.older is None, width="stretch"):
        if page.older is not None:
            turned.append(page.older)
        st.rerun()
    note.caption(f"Page {len(turned) + 1}; {span}. Tick an article to open it.")
    lines = b"".join(msgspec.json.encode(row) + b"\n" for row in page.rows)
    download.download_button(
        "JSONL", lines, "articles.jsonl", "application/x-ndjson", on_click="ignore", width="stretch"
    )


def _table(page: HeadlinePage) -> None:
    topics = taxonomy()

    def chosen() -> None:
        rows = st.session_state["articles"].selection.rows
        if rows:
            st.session_state["open-item"] = page.rows[rows[0]].id

    st.dataframe(
        [
            {
                "published": clock(row.published_at),
                "sentiment": f"{SENTIMENT_MARKS[row.sentiment.label]} {row.sentiment.label.value}",
                "p": row.sentiment.negative,
                "title": clean_text(row.title),
                "source": clean_text(row.source, 80),
                "topic": topics.title(row.topic),
                "tickers": list(row.tickers),
                "with": row.modality,
                "link": clean_url(row.url) or None,
            }
            for row in page.rows
        ],
        key="articles",
        hide_index=True,
        on_select=chosen,
        selection_mode="single-row",
        height=min(36 * (len(page.rows) + 1) + 4, 760),
        column_config={
            "published": st.column_config.TextColumn("published (UTC)", width=135),
            "sentiment": st.column_config.TextColumn(width=90),
            "p": st.column_config.ProgressColumn("p(negative)", format="percent", min_value=0, max_value=1, width=100),
            "title": st.column_config.TextColumn(width=520),
            "source": st.column_config.TextColumn(width=110),
            "topic": st.column_config.TextColumn(width=150),
            "tickers": st.column_config.ListColumn(width=110),
            "with": st.column_config.TextColumn("made from", width=80),
            "link": st.column_config.LinkColumn("source page", display_text="open", width=80),
        },
    )


@guarded
def show() -> None:
    """Draw the list, or the item that the address names."""
    opened = st.session_state.pop("open-item", None)
    if opened:
        st.query_params["item"] = opened
    wanted = st.query_params.get("item")
    if wanted:
        show_item(wanted)
        return
    st.title("Articles", anchor=False)
    _list()
