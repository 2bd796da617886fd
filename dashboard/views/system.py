"""System: how far the processes are, what could not be processed, which models score, what the jobs did."""

from __future__ import annotations

from typing import Any, Final

import streamlit as st

from dashboard.filters import empty_store
from dashboard.markup import at_minute, chip, clock, escape, table
from dashboard.store import engine, guarded, read, settings
from monitor.storage.dead_letters import dead_letter_list
from monitor.storage.engine import reading
from monitor.storage.jobs import run_history
from monitor.storage.models import list_models, list_promotions
from monitor.storage.status import StoreStatus, store_status
from monitor.storage.trends import newest_minute

__all__ = ["show"]

REFRESH_S: Final = 15
LETTERS: Final = 50
RUNS: Final = 30


@st.cache_data(ttl=REFRESH_S, max_entries=4, show_spinner=False)
def _status(database: str, _engine: Any) -> tuple[StoreStatus, int | None]:  # noqa: ARG001 - the cache's key
    with reading(_engine) as connection:
        newest = newest_minute(connection)
    return store_status(_engine), newest


@guarded
def _progress() -> None:
    status, newest = _status(settings().database, engine())
    items, counted, late, letters = st.columns(4)
    items.metric("Items stored", f"{status.items:,}", border=True, height="stretch")
    counted.metric(
        "Counted", f"{status.counted:,}", border=True, height="stretch", help="Pairs of item and key in the counts."
    )
    late.metric(
        "Late, stale",
        f"{status.late:,}, {status.stale:,}",
        border=True,
        height="stretch",
        help="Late items are counted when they come; stale ones (over a day late) are stored but not counted.",
    )
    letters.metric("Dead letters", f"{status.dead_letters:,}", border=True, height="stretch")
    watermark, judged, fresh, waiting = st.columns(4)
    watermark.metric(
        "Counted up to (UTC)", clock(status.watermark), border=True, height="stretch", help="Watermark of event time."
    )
    judged.metric("Judged up to (UTC)", clock(status.judged_to), border=True, height="stretch")
    fresh.metric(
        "Newest news (UTC)",
        clock(at_minute(newest)) if newest is not None else "–",
        border=True,
        height="stretch",
        help="Event time.",
    )
    waiting.metric("Not delivered yet", f"{status.undelivered:,}", border=True, height="stretch", help="Notifications.")
    if not status.items and not status.counted:
        empty_store()


def _letters() -> None:
    st.subheader("Dead letters", anchor=False)
    with read() as connection:
        letters = dead_letter_list(connection, limit=LETTERS)
    if not letters:
        st.caption("Every record could be processed.")
        return
    table(
        ("failed (UTC)", "record", "code", "reason", "sent again (UTC)"),
        (
            (
                f"<time>{clock(letter.failed_at)}</time>",
                escape(str(letter.id)),
                escape(letter.code),
                escape(letter.reason[:300]),
                f"<time>{clock(letter.replayed_at)}</time>",
            )
            for letter in letters
        ),
        "Dead letters",
    )
    st.caption("`sentiment-monitor dead-letters show` prints a record, `replay` sends it again.")


def _metric(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _models() -> None:
    st.subheader("Models", anchor=False)
    with read() as connection:
        models = list_models(connection)
        promotions = list_promotions(connection, limit=20)
    if not models:
        st.caption("Only the shipped model: nothing has been trained or registered here.")
    else:
        table(
            ("version", "state", "made (UTC)", "trained from", "measured", "why"),
            (
                (
                    escape(model.version),
                    chip(model.state, "positive" if model.state == "active" else "neutral"),
                    f"<time>{clock(model.created_at)}</time>",
                    escape(model.parent or "–"),
                    escape(
                        ", ".join(f"{name} {_metric(value)}" for name, value in list(model.metrics.items())[:6]) or "–"
                    ),
                    escape(model.reason or "–"),
                )
                for model in models
            ),
            "Models",
        )
    if promotions:
        st.subheader("Promotions", anchor=False)
        table(
            ("when (UTC)", "version", "by", "why"),
            (
                (
                    f"<time>{clock(each.at)}</time>",
                    escape(each.version or "the shipped one"),
                    escape(each.actor),
                    escape(each.reason),
                )
                for each in promotions
            ),
            "Promotions",
        )


def _jobs() -> None:
    st.subheader("Jobs", anchor=False)
    with read() as connection:
        runs = run_history(connection, limit=RUNS)
    if not runs:
        st.caption("No job has run yet; `sentiment-monitor jobs list` shows when they are due.")
        return
    table(
        ("started (UTC)", "job", "state", "finished (UTC)", "outcome"),
        (
            (
                f"<time>{clock(run.started_at)}</time>",
                escape(run.job),
                chip(str(run.state), "negative" if run.error else "neutral"),
                f"<time>{clock(run.finished_at)}</time>",
                escape(
                    (run.error or ", ".join(f"{name} {_metric(value)}" for name, value in (run.result or {}).items()))[
                        :300
                    ]
                ),
            )
            for run in runs
        ),
        "Runs of jobs",
    )


def show() -> None:
    """Draw the page."""
    st.title("System", anchor=False)
    st.fragment(_progress, run_every=REFRESH_S)()
    _letters()
    _models()
    _jobs()
