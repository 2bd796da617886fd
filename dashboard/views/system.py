"""System: how far the processes are, what could not be processed, which models score, what the jobs did."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any, Final

import streamlit as st

from dashboard.filters import empty_store
from dashboard.markup import at_minute, cells, chip, clock, table
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
        (cells(one.failed_at, one.id, one.code, one.reason[:300], one.replayed_at) for one in letters),
        "Dead letters",
    )
    st.caption("`sentiment-monitor dead-letters show` prints a record, `replay` sends it again.")


def _figures(values: Mapping[str, object], most: int) -> str:
    """At most so many figures with their names; those that belong together are named after what they belong to."""
    return ", ".join(f"{name} {value}" for name, value in islice(_named(values), most))


def _named(values: Mapping[str, object], of: str = "") -> Iterator[tuple[str, str]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _named(value, f"{of}{name}.")
        else:
            yield f"{of}{name}", f"{value:.3g}" if isinstance(value, float) else str(value)


def _models() -> None:
    st.subheader("Models", anchor=False)
    with read() as connection:
        models = list_models(connection)
        promotions = list_promotions(connection, limit=20)
    if models:
        table(
            ("version", "state", "made (UTC)", "trained from", "measured", "why"),
            (
                cells(
                    model.version,
                    chip(model.state, "positive" if model.state == "active" else "neutral"),
                    model.created_at,
                    model.parent,
                    _figures(model.metrics, 6),
                    model.reason,
                )
                for model in models
            ),
            "Models",
        )
    else:
        st.caption("Only the shipped model: nothing has been trained or registered here.")
    if promotions:
        st.subheader("Promotions", anchor=False)
        table(
            ("when (UTC)", "version", "by", "why"),
            (cells(each.at, each.version or "the shipped one", each.actor, each.reason) for each in promotions),
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
            cells(
                run.started_at,
                run.job,
                chip(str(run.state), "negative" if run.error else "neutral"),
                run.finished_at,
                (run.error or _figures(run.result or {}, 20))[:300],
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
