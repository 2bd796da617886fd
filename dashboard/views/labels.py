"""Labels: all corrections, to look through and to take along."""

from __future__ import annotations

from typing import Final

import streamlit as st

from dashboard.markup import clock
from dashboard.store import read, taxonomy
from monitor.alerts.records import clean_text
from monitor.storage.labels import count_labels, list_labels, write_labels

__all__ = ["show"]

LISTED: Final = 500


def _everything() -> bytes:
    with read() as connection:
        return write_labels(reversed(list_labels(connection)))


def show() -> None:
    """Draw the page."""
    st.title("Labels", anchor=False)
    with read() as connection:
        labels = list_labels(connection, limit=LISTED)
        total = count_labels(connection)
    if not labels:
        st.info(
            "No corrections yet. Open an article and correct what the model made of it, or bring some along with "
            "`sentiment-monitor labels import`.",
            icon=":material/label_off:",
        )
        return
    note, download = st.columns([5, 1], vertical_alignment="center")
    note.caption(
        f"{total:,} corrections"
        + (f", the newest {LISTED} of them below" if total > LISTED else "")
        + ". The retraining job learns from them. Tick one to open its article."
    )
    download.download_button(
        "JSONL", _everything, "labels.jsonl", "application/x-ndjson", on_click="ignore", width="stretch"
    )

    def chosen() -> None:
        rows = st.session_state["labels"].selection.rows
        if rows and labels[rows[0]].item_id:
            st.session_state["follow"] = labels[rows[0]].item_id

    topics = taxonomy()
    st.dataframe(
        [
            {
                "made": clock(label.created_at),
                "author": clean_text(label.author),
                "sentiment": label.sentiment.value if label.sentiment else "",
                "topic": topics.title(label.topic) if label.topic else "",
                "entities": [f"{clean_text(name, 60)}: {value}" for name, value in label.entities.items()],
                "text": clean_text(label.text),
                "comment": clean_text(label.comment),
            }
            for label in labels
        ],
        key="labels",
        hide_index=True,
        on_select=chosen,
        selection_mode="single-row",
        column_config={
            "made": st.column_config.TextColumn("made (UTC)"),
            "entities": st.column_config.ListColumn(),
            "text": st.column_config.TextColumn(width="large"),
        },
    )
    follow = st.session_state.pop("follow", None)
    if follow:
        from dashboard.navigation import page

        st.switch_page(page("articles"), query_params={"item": follow})
