"""Why did this alert, or not? The judge is asked again, for any key and time."""

from __future__ import annotations

from datetime import UTC, datetime

import streamlit as st

from dashboard.filters import choose_key, newest, title_of
from dashboard.markup import alert_link, at_minute, cells, chip, clock, details, escape, markup, plain, table
from dashboard.store import engine, guarded, settings
from monitor.alerts.rules import load_rules
from monitor.alerts.why import Answer, ask
from monitor.surges.decisions import Standing
from monitor.surges.sorts import SURGES, stories_of

__all__ = ["show_why"]

VERDICTS = {
    "firing": ("firing", "firing"),
    "above_bar": ("above the bar", "high"),
    "below_bar": ("below the bar", "neutral"),
    "too_few_stories": ("too few stories", "neutral"),
    "too_young": ("too new", "neutral"),
    "unknown": ("unknown", "neutral"),
}


def _windows(standing: Standing) -> None:
    table(
        (
            "window",
            stories_of(standing.surge),
            "expected",
            "of stories",
            "share",
            "usual share",
            "others",
            "burst",
            "p-value",
        ),
        (
            (
                f"{window.minutes} min",
                str(window.observed),
                f"{window.expected:.2f}",
                str(window.stories),
                f"{window.observed / window.stories:.0%}" if window.stories else "–",
                f"{window.expected_share:.0%}",
                f"×{window.common:.1f}",
                f"{window.burst:.0%}",
                f"{window.p_value:.2g}",
            )
            for window in standing.windows
        ),
        "What was counted and expected in each window",
    )
    st.caption(
        "Expected: given the key's history, the season of the day and week, what all other keys do just now (others) "
        "and the volume of its own news. Burst: how likely its news is a burst that has nothing to do with sentiment."
    )


def _draw(found: Answer) -> None:
    account, standing = found.account, found.account.standing
    words, colour = VERDICTS.get(standing.verdict, (standing.verdict, "neutral"))
    if found.changed:
        st.caption("The settings of the judge have changed since: this is what it says by the new ones.")
    markup(
        f"<p><b>{escape(title_of(standing.key))}</b> at <time>{clock(account.at)}</time> UTC: {chip(words, colour)} "
        f"{escape(standing.reason)}</p>"
    )
    if standing.windows:
        score, highest, bar = st.columns(3)
        score.metric("Score", f"{standing.score:.2f}", border=True, height="stretch", help="-log10 of the p-value.")
        highest.metric(
            "Highest in the hour before",
            f"{account.highest:.2f}",
            f"at {clock(account.highest_at)} UTC",
            delta_color="off",
            delta_arrow="off",
            border=True,
            height="stretch",
        )
        bar.metric(
            "An alert needs",
            f"{standing.bar:.2f}",
            border=True,
            height="stretch",
            help="Set by the accepted number of false alarms.",
        )
        _windows(standing)
    for alert, trail in found.alerts:
        markup(
            f"<p>{chip(alert.severity, alert.severity)} {chip(alert.state.value, alert.state.value)} "
            f"{alert_link(alert)} fired <time>{clock(alert.fired_at)}</time> UTC</p>"
        )
        rows = (cells(line["at"], line["event"], line["actor"], details(line["detail"])) for line in trail)
        table(("when (UTC)", "event", "by", "detail"), rows, "What became of the alert")
    if not found.alerts:
        st.caption("There was no alert about it in the hour up to then.")


@guarded
def show_why() -> None:
    """Draw the question and, once it is asked, the answer."""
    last = newest()
    if last is None:
        return
    what, which, day, time, button = st.columns([3, 2, 2, 2, 2], vertical_alignment="bottom")
    key = choose_key(place=what, name="why-key")
    surge = which.selectbox("Surge of", SURGES, format_func=stories_of, key="why-surge")
    end = at_minute(last + 1)
    on = day.date_input("Day (UTC)", end.date(), key="why-day")
    by = time.time_input("Up to (UTC)", end.time(), key="why-time", step=60)
    if button.button("Ask", icon=":material/help:", type="primary", width="stretch"):
        shown, doing = st.progress(0.0, "Judging again …"), plain(f"Judging {title_of(key)} again …")
        try:
            st.session_state["why"] = ask(
                engine(),
                load_rules(settings()).judge.watching(surge),
                key,
                min(datetime.combine(on, by, UTC), end),
                lambda share: shown.progress(min(share, 1.0), doing),
            )
        finally:
            shown.empty()
    found = st.session_state.get("why")
    if found is not None and (found.account.standing.key, found.account.standing.surge) == (key, surge):
        _draw(found)
