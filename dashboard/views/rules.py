"""Rules: which surges are announced. Made, tried on history, muted, switched, looked back on."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import streamlit as st

from dashboard.forms import LENGTHS_H, length, person
from dashboard.markup import Html, alert_link, at_minute, cells, chip, clock, details, escape, markup, plain, table
from dashboard.navigation import page
from dashboard.store import change, engine, guarded, read, settings
from dashboard.views.rule_form import Draft, draft
from monitor.alerts.records import Alert, expectation
from monitor.alerts.rulebook import in_force, take_up
from monitor.alerts.rules import load_rules
from monitor.alerts.trial import Firing, Trial, try_rules
from monitor.storage.audit import Change, changes
from monitor.storage.judging import judged_to
from monitor.storage.rules import (
    STORE,
    RuleStatus,
    alerts_taken,
    delete_rule,
    list_rules,
    mute_rule,
    rule_actor,
    save_rule,
    switch_rule,
    taken_counts,
)
from monitor.surges.sorts import NEGATIVE, counted, stories_of

__all__ = ["show"]

LOOK_BACK_DAYS: Final = 30
ORIGINS: Final = {"file": "rules file", "store": "made here", "built-in": "built in"}
TRIAL_DAYS: Final = (1, 3, 7, 14, 30, 60)


def _scope(definition: dict[str, Any]) -> str:
    """What a rule takes, in one line."""
    parts = [f"surges of {stories_of(definition.get('surge', NEGATIVE))}"]
    parts.append(", ".join(definition.get("keys", ["every key"])))
    named = {"exclude": "but not", "severities": "severity", "windows": "windows of minutes", "receivers": "tells"}
    parts += [f"{words} {', '.join(map(str, definition[name]))}" for name, words in named.items() if name in definition]
    least = {
        "min_stories": "stories",
        "min_negative_stories": "negative stories",
        "min_positive_stories": "positive stories",
        "min_sources": "sources",
        "min_share": f"{definition.get('surge', NEGATIVE)} share",
    }
    parts += [f"at least {definition[name]:g} {words}" for name, words in least.items() if name in definition]
    if "max_p_value" in definition:
        parts.append(f"p-value at most {definition['max_p_value']:g}")
    if "calendar" in definition:
        parts.append(f"{definition['calendar']} {definition.get('when', 'open')}")
    if {"start", "end", "days"} & set(definition):
        days = ", ".join(definition.get("days", ("every day",)))
        zone = definition.get("timezone", "UTC")
        parts.append(f"{days} {definition.get('start', '00:00')} to {definition.get('end', '00:00')} {zone}")
    return "; ".join(parts)


def _state(rule: RuleStatus, now: datetime) -> str:
    if rule.muted(now):
        return chip(f"muted until {clock(rule.muted_until)} UTC", "warning")
    return chip("on", "positive") if rule.enabled else chip("off", "neutral")


def _do(work: Callable[[Any], None]) -> None:
    with change() as connection:
        work(connection)
    st.rerun()


def _acts(rule: RuleStatus, place: Any, name: str, now: datetime) -> None:
    with place.popover("Change", icon=":material/tune:", width="stretch"):
        if not name:
            st.caption("Give your name first.")
        if rule.muted(now):
            if st.button("Unmute", key=f"unmute-{rule.name}", disabled=not name, width="stretch"):
                _do(lambda connection: mute_rule(connection, rule.name, now, now, by=name))
        else:
            hours = st.selectbox("For", LENGTHS_H, index=1, format_func=length, key=f"hours-{rule.name}")
            if st.button("Mute", key=f"mute-{rule.name}", disabled=not name, width="stretch"):
                until = now + timedelta(hours=hours)
                _do(lambda connection: mute_rule(connection, rule.name, until, now, by=name))
        if rule.origin == "file":
            st.caption("It stands in the rules file: all else is changed there.")
            return
        switch = "Switch off" if rule.enabled else "Switch on"
        if st.button(switch, key=f"switch-{rule.name}", disabled=not name, width="stretch"):
            _do(lambda connection: switch_rule(connection, rule.name, on=not rule.enabled, by=name, now=now))
        if rule.origin == STORE and st.button("Remove", key=f"remove-{rule.name}", disabled=not name, width="stretch"):
            _do(lambda connection: delete_rule(connection, rule.name, by=name, now=now))


def _rule(rule: RuleStatus, taken: int, name: str, now: datetime) -> None:
    with st.container(border=True):
        text, back, acts = st.columns([6, 1.6, 1.6], vertical_alignment="center")
        alerts = f"{taken} alert{'' if taken == 1 else 's'} in {LOOK_BACK_DAYS} days"
        about = rule.definition.get("description", "")
        about = f"<br>{escape(about)}" if about else ""
        with text:
            markup(
                f"<b>{escape(rule.name)}</b> {_state(rule, now)} <span class='quiet'>{ORIGINS[rule.origin]}, {alerts}"
                f"</span><br><span class='quiet'>{escape(_scope(rule.definition))}{about}</span>"
            )
        back.page_link(page("rules"), label="Look back", icon=":material/history:", query_params={"rule": rule.name})
        _acts(rule, acts, name, now)


def _changes(found: Iterable[Change], caption: str) -> None:
    table(
        ("when (UTC)", "what", "event", "by", "detail"),
        (cells(one.at, one.subject, one.event, one.actor, details(one.detail)) for one in found),
        caption,
    )


def _figures(alert: Alert) -> str:
    return (
        f"{counted(alert.surge, alert.observed)} in {alert.window.minutes} min, {expectation(alert.expected)} expected"
    )


def _look_back(name: str) -> None:
    st.page_link(page("rules"), label="All rules", icon=":material/arrow_back:")
    with read() as connection:
        known = next((rule for rule in list_rules(connection) if rule.name == name), None)
        taken = alerts_taken(connection, name, since=datetime.now(UTC) - timedelta(days=3660))
        log = changes(connection, subject=rule_actor(name), limit=50)
    if known is None and not taken and not log:
        st.warning(plain(f"There is no rule {name}."), icon=":material/search_off:")
        return
    markup(f'<div class="headline">{escape(name)}</div>')
    if known is not None:
        markup(
            f"<p>{_state(known, datetime.now(UTC))} <span class='quiet'>{escape(_scope(known.definition))}</span></p>"
        )
    else:
        st.caption("The rule has been removed.")
    acknowledged = sum(alert.acknowledged_at is not None for alert in taken)
    for place, label, value in zip(
        st.columns(4),
        ("Alerts", "Acknowledged", "Critical", "Still open"),
        (
            len(taken),
            acknowledged,
            sum(alert.severity == "critical" for alert in taken),
            sum(alert.resolved_at is None for alert in taken),
        ),
        strict=True,
    ):
        place.metric(label, value, border=True)
    st.subheader("Alerts that it took", anchor=False)
    if taken:
        table(
            ("severity", "state", "about", "fired (UTC)", "resolved (UTC)", "stories", "acknowledged by"),
            (
                cells(
                    chip(alert.severity, alert.severity),
                    chip(alert.state.value, alert.state.value),
                    alert_link(alert),
                    alert.fired_at,
                    alert.resolved_at,
                    _figures(alert),
                    alert.acknowledged_by,
                )
                for alert in taken
            ),
            "Alerts that the rule took",
        )
    else:
        st.caption("None yet.")
    st.subheader("Who changed it", anchor=False)
    _changes(log, "Changes of the rule")


def _trial_row(firing: Firing) -> tuple[str, ...]:
    alert = firing.alert
    taken = "<br>".join(f"{escape(name)} <time>{clock(at)}</time>" for name, at in firing.taken.items())
    return cells(
        chip(alert.severity, alert.severity),
        alert.key,
        alert.fired_at,
        alert.resolved_at,
        _figures(alert),
        alert.sources,
        Html(taken or f'<span class="quiet">{escape(firing.objection)}</span>'),
    )


def _trial(trial: Trial) -> None:
    announced = sum(firing.announced_at is not None for firing in trial.firings)
    days = max((trial.until - trial.since).total_seconds() / 86_400, 1 / 24)
    surges, told, rate = st.columns(3)
    surges.metric("Surges found", len(trial.firings), border=True)
    told.metric("Announced by the rules", announced, border=True)
    rate.metric("Announced a day", f"{announced / days:.2g}", border=True)
    st.caption(
        f"{clock(trial.since)} to {clock(trial.until)} UTC; judged from {clock(trial.judged_from)} on, by the judge "
        "that runs live. Silences, mute times and wider alerts are not part of it."
    )
    if trial.firings:
        table(
            ("severity", "key", "fired (UTC)", "resolved (UTC)", "stories", "sources", "taken by, from"),
            map(_trial_row, trial.firings),
            "When the rules would have fired",
        )


def _try(made: Draft, days: int) -> None:
    configured = load_rules(settings())
    with read() as connection:
        rules = made.rules or in_force(connection, configured)
        last = judged_to(connection)
    since = at_minute(last + 1) - timedelta(days=days) if last is not None else None
    shown = st.progress(0.0, "Judging …")
    try:
        st.session_state["trial"] = try_rules(
            engine(),
            rules,
            since=since,
            progress=lambda share: shown.progress(min(share, 1.0), "Judging …"),
        )
    finally:
        shown.empty()


def _save(made: Draft, name: str) -> None:
    if made.rules is None:
        return
    with change() as connection:
        for rule in made.rules.rules:
            save_rule(connection, rule.definition, author=name, now=datetime.now(UTC))
    st.session_state["rule-saved"] = ", ".join(rule.name for rule in made.rules.rules)
    st.rerun()


@guarded
def _make(name: str) -> None:
    configured = load_rules(settings())
    made = draft(configured.judge)
    days, trial, save = st.columns([2, 2, 2], vertical_alignment="bottom")
    chosen = days.selectbox("Try it on the last", TRIAL_DAYS, index=3, format_func=lambda n: f"{n} d")
    what = "Try on history" if made.rules else "Try the rules in force"
    if trial.button(what, icon=":material/science:", disabled=bool(made.error), width="stretch"):
        _try(made, chosen)
    ready = made.rules is not None and bool(name)
    if save.button("Save", icon=":material/save:", type="primary", disabled=not ready, width="stretch"):
        _save(made, name)
    if made.error:
        st.error(plain(made.error), icon=":material/error:")
    elif made.rules and not name:
        st.caption("Give your name to save.")
    result = st.session_state.get("trial")
    if result is not None:
        _trial(result)


@guarded
def show() -> None:
    """Draw the page, or the look back on the rule that the address names."""
    wanted = st.query_params.get("rule")
    if wanted:
        st.title("Rule", anchor=False)
        _look_back(wanted)
        return
    title, who = st.columns([5, 2], vertical_alignment="bottom")
    title.title("Rules", anchor=False)
    name = person(place=who)
    now = datetime.now(UTC)
    with read() as connection:
        found = list_rules(connection)
        taken = taken_counts(connection, now, LOOK_BACK_DAYS)
    if not found:
        # The notifier, which tells the store of the configured ones, has not run yet.
        with change() as connection:
            take_up(connection, load_rules(settings()), now)
            found = list_rules(connection)
    st.caption(
        "A surge is announced when a rule that is on takes it. Rules of the file and those made here hold alike; "
        "`sentiment-monitor rules` does the same from the command line."
    )
    for rule in found:
        _rule(rule, taken.get(rule.name, 0), name, now)
    saved = st.session_state.pop("rule-saved", None)
    if saved:
        st.success(plain(f"In force now: {saved}."), icon=":material/check:")
    st.subheader("Make or try rules", anchor=False)
    _make(name)
    with read() as connection:
        log = changes(connection, limit=100)
    if log:
        st.subheader("Who changed what", anchor=False)
        _changes(log, "Changes of rules, silences, receivers and notices")
