"""Alerts: the list, one alert with its evidence and what became of its notifications, and why there is none."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import streamlit as st

from dashboard.filters import Span, title_of
from dashboard.forms import LENGTHS_H, length, person
from dashboard.graphs import sentiment_chart, volume_chart, window_chart
from dashboard.markup import (
    STATE_MARKS,
    cells,
    chip,
    clock,
    details,
    escape,
    item_link,
    markup,
    plain,
    table,
    web_link,
)
from dashboard.navigation import page
from dashboard.store import change, guarded, read, taxonomy
from dashboard.views.delivery import deliveries_table
from dashboard.views.pending import PENDING, is_about, show_pending
from dashboard.views.why import show_why
from monitor.alerts.records import SEVERITIES, Alert, AlertState, AlertStory, expectation
from monitor.storage.alerts import acknowledge, audit_trail, get_alert, list_alerts
from monitor.storage.articles import Headline, Story, copies, stories_under
from monitor.storage.deliveries import of_episode
from monitor.storage.silences import add_silence
from monitor.storage.trends import DAY, HOUR, series
from monitor.surges.sorts import POSITIVE, VOLUME, stories_of

__all__ = ["show"]

REFRESH_S: Final = 10
LISTED: Final = 1000
STATES: Final = (PENDING, "firing", "acknowledged", "resolved")


def _minute(at: datetime) -> int:
    return int(at.timestamp()) // 60


def _matches(alert: Alert, severities: Sequence[str], about: str) -> bool:
    fits = not severities or alert.severity in severities
    return fits and is_about(f"{alert.key} {alert.title} {alert.rule}", about)


@guarded
def _list() -> None:
    left, middle, right = st.columns([2, 2, 2], vertical_alignment="bottom")
    states = left.pills("State", STATES, selection_mode="multi", key="state", bind="query-params")
    severities = middle.pills("Severity", SEVERITIES[::-1], selection_mode="multi", key="severity", bind="query-params")
    about = right.text_input("Key or rule", key="about", bind="query-params", placeholder="AAPL, earnings, …")
    if PENDING in states:
        show_pending(about or "")
        states = [state for state in states if state != PENDING]
        if not states:
            return
    with read() as connection:
        found = list_alerts(connection, states=states, limit=LISTED)
    shown = [alert for alert in found if _matches(alert, severities, about or "")]
    if not shown:
        st.info(
            "No alert matches." if found or states else "No alert has fired yet.", icon=":material/notifications_off:"
        )
        return

    def chosen() -> None:
        rows = st.session_state["alerts"].selection.rows
        if rows:
            st.session_state["open-alert"] = shown[rows[0]].id

    topics = taxonomy()
    st.dataframe(
        [
            {
                "state": STATE_MARKS.get(alert.state, alert.state),
                "severity": alert.severity,
                "about": title_of(alert.key, topics),
                "fired": clock(alert.fired_at),
                "surge of": stories_of(alert.surge),
                "stories": alert.observed,
                "expected": alert.expected,
                "window": f"{alert.window.minutes} min",
                "sources": alert.sources,
                "resolved": clock(alert.resolved_at),
                "acknowledged by": alert.acknowledged_by or "",
            }
            for alert in shown
        ],
        key="alerts",
        hide_index=True,
        on_select=chosen,
        selection_mode="single-row",
        column_config={
            "about": st.column_config.TextColumn(pinned=True),
            "fired": st.column_config.TextColumn("fired (UTC)"),
            "resolved": st.column_config.TextColumn("resolved (UTC)"),
            "stories": st.column_config.NumberColumn(
                format="localized", help="Stories of the sort that surges, in the window."
            ),
            "expected": st.column_config.NumberColumn(format="%.1f"),
        },
    )
    st.caption(
        f"{len(shown)} alerts, the youngest first"
        + (f"; only the newest {LISTED} are listed" if len(found) == LISTED else "")
        + ". Tick one to open it."
    )
    if st.session_state.get("open-alert"):
        st.rerun(scope="app")


def _head(alert: Alert) -> None:
    window = f"{clock(alert.window.start)} to {clock(alert.window.end)} UTC"
    markup(
        f'<div class="headline">{escape(title_of(alert.key))}: surge of {stories_of(alert.surge)}</div>'
        f"<p>{chip(alert.severity, alert.severity)} {chip(alert.state.value, alert.state.value)} "
        f'<span class="quiet">fired <time>{clock(alert.fired_at)}</time> UTC, started '
        f"<time>{clock(alert.started_at)}</time>"
        + (f", resolved <time>{clock(alert.resolved_at)}</time>" if alert.resolved_at else "")
        + (
            f", acknowledged by {escape(alert.acknowledged_by or '')} <time>{clock(alert.acknowledged_at)}</time>"
            if alert.acknowledged_at
            else ""
        )
        + f". Rule {escape(alert.rule)}, scored by {escape(alert.model_version or 'an unknown model')}. "
        f"Figures of {window}.</span></p>"
    )
    observed, share, surprise, sources = st.columns(4)
    observed.metric(
        f"{stories_of(alert.surge).capitalize()} in {alert.window.minutes} min",
        f"{alert.observed:,}",
        f"{expectation(alert.expected)} expected",
        delta_color="off",
        delta_arrow="off",
        border=True,
        height="stretch",
    )
    if alert.surge == VOLUME:
        share.metric(
            "Times the expected number",
            f"{alert.observed / max(alert.expected, 0.1):.1f}",
            "whatever the stories say",
            delta_color="off",
            delta_arrow="off",
            border=True,
            height="stretch",
        )
    else:
        share.metric(
            f"{alert.surge.capitalize()} share",
            f"{alert.share:.0%}",
            f"{alert.expected_share:.0%} expected",
            delta_color="off",
            delta_arrow="off",
            border=True,
            height="stretch",
            help=f"{alert.observed} of {alert.total} stories.",
        )
    surprise.metric(
        "Chance of this in quiet times",
        f"{alert.p_value:.1e}",
        "p-value",
        delta_color="off",
        delta_arrow="off",
        border=True,
        height="stretch",
    )
    sources.metric(
        "Sources", alert.sources, "distinct", delta_color="off", delta_arrow="off", border=True, height="stretch"
    )


def _acts(alert: Alert) -> None:
    if alert.state is not AlertState.FIRING and alert.state is not AlertState.ACKNOWLEDGED:
        return
    name, take, hush = st.columns([2, 1, 1], vertical_alignment="bottom")
    with name:
        name_given = person()
    if alert.state is AlertState.FIRING and take.button(
        "Acknowledge", icon=":material/done:", type="primary", disabled=not name_given, width="stretch"
    ):
        with change() as connection:
            acknowledge(connection, alert.id, by=name_given, at=datetime.now(UTC))
        st.rerun()
    with (
        hush.popover("Silence", icon=":material/notifications_paused:", width="stretch"),
        st.form("silence", border=False),
    ):
        hours = st.selectbox("For", LENGTHS_H, index=1, format_func=length)
        comment = st.text_input("Why", max_chars=500)
        if st.form_submit_button(plain(f"Silence {title_of(alert.key)}")):
            if not name_given:
                st.warning("Give your name first.")
            elif not (comment or "").strip():
                st.warning("Say why: it stands beside what the silence holds back.")
            else:
                now = datetime.now(UTC)
                with change() as connection:
                    add_silence(
                        connection,
                        key=alert.key,
                        starts_at=now,
                        ends_at=now + timedelta(hours=hours),
                        comment=comment or "",
                        author=name_given,
                    )
                st.toast(f"Silenced for {hours} h.")
    if not name_given:
        st.caption("Give your name to acknowledge or silence.")


def _charts(alert: Alert) -> None:
    lead = max(6 * alert.window.minutes, 3 * HOUR)
    begin = _minute(alert.window.start) - lead
    until = max(_minute(alert.resolved_at or alert.window.end), _minute(alert.window.end)) + lead // 3
    span = Span(begin, min(until, begin + 14 * DAY))
    step = next(step for step in (1, 5, 15, HOUR, DAY) if span.minutes / step <= 200)
    width = alert.window.minutes
    with read() as connection:
        buckets = series(connection, alert.key, span.start, span.end, step)
        minutes = series(connection, alert.key, span.start - width, span.end, 1)
    st.altair_chart(
        window_chart(minutes, alert, span.start, span.end, max(1, span.minutes // 400)),
        alt=f"{stories_of(alert.surge).capitalize()} in {width} minutes, observed against expected",
    )
    st.caption(
        f"Line: {stories_of(alert.surge)} in the {width} minutes up to each time. Dashed: how many were to be expected "
        "in the window that alerted. Shaded: the surge."
    )
    positive = alert.surge == POSITIVE
    st.altair_chart(
        volume_chart(buckets, [alert], span.start, span.end, step, positive=positive), alt="Stories around the alert"
    )
    st.altair_chart(sentiment_chart(buckets, [alert], span.start, span.end, step), alt="Sentiment around the alert")


def _copies(told: Sequence[Headline]) -> str:
    lines = "".join(
        f"<li><time>{clock(copy.published_at)}</time> {escape(copy.source)}: {item_link(copy.id, copy.title)}</li>"
        for copy in told
    )
    return f'<details class="copies"><summary>{len(told)} items</summary><ul>{lines}</ul></details>'


def _stories(alert: Alert) -> None:
    with read() as connection:
        found = stories_under(
            connection,
            alert.key,
            _minute(alert.window.start),
            _minute(alert.window.end),
            surge=alert.surge,
            limit=50,
        )
        told = copies(connection, found)
    st.subheader("Stories behind it", anchor=False)
    rows: list[Sequence[Any]] = []
    for story in found:
        others = told[story.id]
        rows.append(_story_row(alert, story, _copies(others) if len(others) > 1 else ""))
    if not rows:
        # Older than what retention keeps: the evidence itself remains.
        rows = [
            (
                escape(story.title),
                web_link(story.url, story.source or "source"),
                f"<time>{clock(story.published_at)}</time>",
                str(story.copies),
                f"{_probability(alert, story):.0%}",
            )
            for story in alert.stories
        ]
    probability = "p(positive)" if alert.surge == POSITIVE else "p(negative)"
    table(("story", "first source", "published (UTC)", "items", probability), rows, "Stories behind the alert")
    if len(found) == 50:
        st.caption("The 50 most told are shown.")


def _probability(alert: Alert, story: Story | AlertStory) -> float:
    return story.p_positive if alert.surge == POSITIVE else story.p_negative


def _story_row(alert: Alert, story: Story, copied: str) -> Sequence[str]:
    sources = len({*story.sources, story.source} - {""})
    return (
        item_link(story.item_id, story.title) + copied,
        web_link(story.url, story.source or "source") + (f" and {sources - 1} more" if sources > 1 else ""),
        f"<time>{clock(story.first_at)}</time>",
        str(story.items),
        f"{_probability(alert, story):.0%}",
    )


def _detail(alert_id: str) -> None:
    st.page_link(page("alerts"), label="All alerts", icon=":material/arrow_back:")
    with read() as connection:
        alert = get_alert(connection, alert_id)
        trail = audit_trail(connection, alert_id)
        sent = of_episode(connection, alert_id)
    if alert is None:
        st.warning(plain(f"There is no alert {alert_id}."), icon=":material/search_off:")
        return
    _head(alert)
    _acts(alert)
    _charts(alert)
    _stories(alert)
    st.page_link(
        page("articles"),
        label="All articles of this window",
        icon=":material/article:",
        query_params={
            "key": alert.key,
            "from": str(_minute(alert.window.start)),
            "to": str(_minute(alert.window.end)),
        },
    )
    st.subheader("What happened", anchor=False)
    table(
        ("when (UTC)", "event", "by", "detail"),
        (cells(line["at"], line["event"], line["actor"], details(line["detail"])) for line in trail),
        "What happened",
    )
    st.subheader("Notifications", anchor=False)
    if sent:
        deliveries_table(sent, with_alert=False)
    else:
        st.caption("None: no receiver is routed to, or the notifier has not run yet.")


def show() -> None:
    """Draw the list, or the alert that the address names."""
    opened = st.session_state.pop("open-alert", None)
    if opened:
        st.query_params["alert"] = opened
    wanted = st.query_params.get("alert")
    if wanted:
        st.title("Alert", anchor=False)
        _detail(wanted)
        return
    st.title("Alerts", anchor=False)
    st.fragment(_list, run_every=REFRESH_S)()
    st.subheader("Why did this alert, or not?", anchor=False)
    show_why()
