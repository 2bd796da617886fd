"""What is pending: more news than is usual, too little to alert."""

from __future__ import annotations

from typing import Final

import streamlit as st

from dashboard.filters import title_of
from dashboard.markup import STATE_MARKS, clock
from dashboard.store import read, taxonomy
from monitor.storage.pending import list_pending
from monitor.surges.sorts import stories_of

__all__ = ["PENDING", "is_about", "show_pending"]

PENDING: Final = "pending"
LISTED: Final = 1000


def is_about(text: str, about: str) -> bool:
    """True when all words of `about` stand in the text."""
    return all(word in text.lower() for word in about.lower().split())


def show_pending(about: str) -> None:
    """Draw what is above calm and has not reached its bar, by words of its key."""
    topics = taxonomy()
    with read() as connection:
        found = list_pending(connection, limit=LISTED)
    shown = [one for one in found if is_about(f"{one.key} {title_of(one.key, topics)} {one.rule}", about)]
    if not shown:
        st.info("Nothing that matches is pending." if found else "Nothing is pending.", icon=":material/hourglass_top:")
        return
    st.dataframe(
        [
            {
                "state": STATE_MARKS[PENDING],
                "about": title_of(one.key, topics),
                "since": clock(one.started_at),
                "surge of": stories_of(one.surge),
                "to the bar": min(one.score / one.bar, 1.0),
                "highest score": one.score,
                "bar": one.bar,
                "window": f"{one.window_minutes} min",
                "last seen": clock(one.seen_at),
            }
            for one in shown
        ],
        key="pending",
        hide_index=True,
        column_config={
            "about": st.column_config.TextColumn(pinned=True),
            "since": st.column_config.TextColumn("since (UTC)"),
            "last seen": st.column_config.TextColumn("last seen (UTC)"),
            "to the bar": st.column_config.ProgressColumn(
                format="percent", min_value=0.0, max_value=1.0, help="The highest score so far, of what would alert."
            ),
            "highest score": st.column_config.NumberColumn(format="%.2f", help="-log10 of a p-value."),
            "bar": st.column_config.NumberColumn(format="%.2f"),
        },
    )
    st.caption(
        f"{len(shown)} pending, the nearest to the bar first: more than is usual, too little to alert. "
        "Nobody is told of them."
    )
