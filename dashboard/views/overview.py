"""Overview: sentiment and volume over time with the surges on them, topics, movers and recent alerts."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from typing import Any, Final

import streamlit as st

from dashboard.filters import Span, choose_key, choose_span, choose_step, empty_store, title_of
from dashboard.graphs import sentiment_chart, volume_chart
from dashboard.markup import alert_link, at_minute, chip, clock, plain, settled, signed, table
from dashboard.navigation import page
from dashboard.store import engine, guarded, read, settings, taxonomy
from monitor.alerts.records import Alert, expectation, key_title
from monitor.storage.alerts import list_alerts
from monitor.storage.engine import reading
from monitor.storage.trends import (
    DAY,
    HOUR,
    Bucket,
    KeyTotals,
    TickSums,
    movers,
    series,
    series_by_key,
    totals,
)
from monitor.surges.sorts import counted
from monitor.taxonomy import Taxonomy

__all__ = ["show"]

REFRESH_S: Final = 10
MOVERS: Final = 8
# Steps of the small lines in tables, in minutes; each divides a day.
TREND_STEPS: Final = (1, 5, 15, HOUR, 4 * HOUR, DAY)
TREND_POINTS: Final = 48


@st.cache_data(ttl=REFRESH_S, max_entries=32, show_spinner=False)
def _totals(database: str, _engine: Any, prefix: str, start: int, end: int) -> list[KeyTotals]:  # noqa: ARG001
    with reading(_engine) as connection:
        return totals(connection, prefix, start, end)


def _sum(buckets: Sequence[Bucket]) -> TickSums:
    parts = [bucket.sums for bucket in buckets]
    return TickSums(
        stories=sum(p.stories for p in parts),
        negative_stories=sum(p.negative_stories for p in parts),
        items=sum(p.items for p in parts),
        negative_items=sum(p.negative_items for p in parts),
        score_sum=sum(p.score_sum for p in parts),
        late=sum(p.late for p in parts),
        positive_stories=sum(p.positive_stories for p in parts),
    )


def _metrics(now: TickSums, before: TickSums, open_alerts: int) -> None:
    stories, share, mean, alerts = st.columns(4)
    change = f"{now.stories / before.stories - 1:+.0%} on the range before" if before.stories else None
    stories.metric("Stories", f"{now.stories:,}", change, delta_color="off", border=True, height="stretch")
    points = (
        f"{100 * (now.negative_share - before.negative_share):+.1f} points"
        if now.negative_share is not None and before.negative_share is not None
        else None
    )
    shown = f"{now.negative_share:.1%}" if now.negative_share is not None else "–"
    share.metric("Negative share", shown, points, delta_color="off", border=True, height="stretch")
    moved = (
        signed(now.mean_score - before.mean_score)
        if now.mean_score is not None and before.mean_score is not None
        else None
    )
    shown = signed(now.mean_score) if now.mean_score is not None else "–"
    mean.metric(
        "Mean sentiment",
        shown,
        moved,
        delta_color="off",
        border=True,
        height="stretch",
        help="Mean of p(positive) - p(negative) over all items, from -1 to +1.",
    )
    alerts.metric(
        "Open alerts", open_alerts, border=True, height="stretch", help="Firing or acknowledged, under any key."
    )


def _csv(buckets: Sequence[Bucket]) -> bytes:
    out = io.StringIO()
    writer = csv.writer(out)
    writer.writerow(["from_utc", "stories", "negative_stories", "items", "negative_items", "mean_sentiment", "late"])
    for bucket in buckets:
        s = bucket.sums
        mean = "" if s.mean_score is None else f"{s.mean_score:.4f}"
        at = at_minute(bucket.minute).isoformat()
        writer.writerow([at, s.stories, s.negative_stories, s.items, s.negative_items, mean, s.late])
    return out.getvalue().encode()


def _key_table(rows: Sequence[dict[str, Any]], keys: Sequence[str], *, name: str, state: str) -> None:
    """A table of keys; choosing a row shows its key."""

    def chosen() -> None:
        selected = st.session_state[state].selection.rows
        if selected:
            st.session_state["key"] = keys[selected[0]]

    st.dataframe(
        rows,
        key=state,
        hide_index=True,
        placeholder="–",
        on_select=chosen,
        selection_mode="single-row",
        column_config={
            name: st.column_config.TextColumn(pinned=True),
            "stories": st.column_config.NumberColumn(format="localized"),
            "negative": st.column_config.NumberColumn(format="localized", help="Negative stories."),
            "share": st.column_config.ProgressColumn("negative share", format="percent", min_value=0, max_value=1),
            "mean": st.column_config.NumberColumn("sentiment", format="%+.2f", help="Mean over the range."),
            "before": st.column_config.NumberColumn(format="%+.2f", help="Mean over the range before."),
            "change": st.column_config.NumberColumn(format="%+.2f", help="Damped where items are few."),
            "trend": st.column_config.LineChartColumn("sentiment over the range", y_min=-1, y_max=1),
        },
    )


def _row(name: str, each: KeyTotals, topics: Taxonomy) -> dict[str, Any]:
    return {
        name: key_title(each.key, topics),
        "stories": each.stories,
        "negative": each.negative_stories,
        "share": each.negative_share,
        "mean": settled(each.mean_score),
        "change": settled(each.change) if each.items_before else None,
    }


def _moved(each: KeyTotals) -> dict[str, Any]:
    return {
        "ticker": key_title(each.key),
        "stories": each.stories,
        "negative": each.negative_stories,
        "mean": settled(each.mean_score),
        "before": settled(each.mean_before),
        "change": settled(each.change),
    }


def _topics(span: Span, found: Sequence[KeyTotals]) -> None:
    step = next((step for step in TREND_STEPS if span.minutes <= TREND_POINTS * step), TREND_STEPS[-1])
    with read() as connection:
        lines = series_by_key(connection, [each.key for each in found], span.start, span.end, step)
    known = taxonomy()
    rows = [
        _row("topic", each, known)
        | {"trend": [b.sums.mean_score for b in lines[each.key] if b.sums.mean_score is not None]}
        for each in found
    ]
    st.subheader("Topics")
    _key_table(rows, [each.key for each in found], name="topic", state="topics")


def _movers(span: Span) -> None:
    found = _totals(settings().database, engine(), "ticker:", span.start, span.end)
    fell, rose = movers(found, count=MOVERS)
    left, right = st.columns(2)
    for place, title, moved, state in (
        (left, "Fell most", fell, "movers-fell"),
        (right, "Rose most", rose, "movers-rose"),
    ):
        with place:
            st.subheader(title, help="Change of mean sentiment against the range before, damped where items are few.")
            if moved:
                _key_table([_moved(each) for each in moved], [e.key for e in moved], name="ticker", state=state)
            else:
                st.caption("No ticker has enough news in this range.")


def _figures(alert: Alert) -> str:
    number = counted(alert.surge, alert.observed)
    return f"{number} in {alert.window.minutes} min, {expectation(alert.expected)} expected"


def _recent(span: Span, alerts: Sequence[Alert]) -> None:
    st.subheader("Alerts in this range")
    within = [a for a in alerts if a.fired_at < span.ends and (a.resolved_at or span.ends) >= span.begins]
    if not within:
        st.caption("None.")
        return
    table(
        ("severity", "state", "about", "fired (UTC)", "stories"),
        (
            (
                chip(alert.severity, alert.severity),
                chip(alert.state.value, alert.state.value),
                alert_link(alert),
                f"<time>{clock(alert.fired_at)}</time>",
                _figures(alert),
            )
            for alert in within[:12]
        ),
        "Alerts in this range",
    )


@guarded
def _body() -> None:
    what, when, how = st.columns([3, 4, 3], vertical_alignment="bottom")
    key = choose_key(place=what)
    span = choose_span(place=when)
    if span is None:
        empty_store()
        return
    step = choose_step(span, place=how)
    with read() as connection:
        buckets = series(connection, key, span.start, span.end, step)
        before = series(connection, key, span.start - span.minutes, span.start, step)
        alerts = list_alerts(connection, limit=500)
        own = list_alerts(connection, key=key, limit=500)
    _metrics(_sum(buckets), _sum(before), sum(alert.state != "resolved" for alert in alerts))
    st.subheader(plain(title_of(key)), anchor=False)
    if buckets:
        st.altair_chart(sentiment_chart(buckets, own, span.start, span.end, step), alt="Mean sentiment over time")
        st.altair_chart(volume_chart(buckets, own, span.start, span.end, step), alt="Stories over time")
    else:
        st.info("No news about this in the range.", icon=":material/search_off:")
    note, articles, download = st.columns([5, 1, 1], vertical_alignment="center")
    note.caption(
        f"{span}. Shaded: a surge (orange: negative stories, blue: positive ones, purple: their number); triangle: its "
        "alert fired."
    )
    articles.page_link(page("articles"), label="Articles", icon=":material/article:", query_params={"key": key})
    download.download_button(
        "CSV",
        _csv(buckets),
        "sentiment.csv",
        "text/csv",
        icon=":material/download:",
        on_click="ignore",
        width="stretch",
    )
    _recent(span, alerts)
    _topics(span, _totals(settings().database, engine(), "topic:", span.start, span.end))
    _movers(span)


def show() -> None:
    """Draw the page."""
    title, toggle = st.columns([5, 1], vertical_alignment="bottom")
    title.title("Overview", anchor=False)
    live = toggle.toggle("Live", value=True, key="live", help=f"Look for news every {REFRESH_S} s.")
    st.fragment(_body, run_every=REFRESH_S if live else None)()
