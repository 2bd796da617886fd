"""The form of a rule, and the text of several: both end as rules that were checked the way the file is."""

from __future__ import annotations

from typing import Any, NamedTuple

import streamlit as st

from dashboard.store import read
from monitor.alerts.calendars import WEEKDAYS
from monitor.alerts.records import SEVERITIES
from monitor.alerts.rulebook import rule_from
from monitor.alerts.rules import BUILT_IN, Rules, parse_rules
from monitor.errors import RuleError
from monitor.storage.receivers import list_receivers
from monitor.storage.rules import STORE, list_rules
from monitor.surges.judge import JudgeConfig
from monitor.surges.sorts import NEGATIVE, SURGES, VOLUME, stories_of

__all__ = ["Draft", "draft"]

EXAMPLE = """[[rules]]
name = "banks"
keys = ["ticker:JPM", "ticker:BAC", "topic:financials"]
min_sources = 3
"""


class Draft(NamedTuple):
    """What the form holds: rules, nothing yet (both empty), or the mistake in it."""

    rules: Rules | None
    error: str


def _words(text: str | None) -> list[str]:
    return (text or "").replace(",", " ").split()


def _fields(judge: JudgeConfig, given: dict[str, Any], receivers: list[str], state: str) -> dict[str, Any]:
    def key(name: str) -> str:
        return f"rule-{name}-{state}"

    made: dict[str, Any] = {}
    left, right = st.columns(2)
    made["name"] = (left.text_input("Name", given.get("name", ""), max_chars=128, key=key("name")) or "").strip()
    made["description"] = (
        right.text_input("Description", given.get("description", ""), max_chars=500, key=key("about")) or ""
    ).strip()
    surge = (
        st.segmented_control(
            "Watches surges of",
            SURGES,
            default=given.get("surge", NEGATIVE),
            format_func=lambda sort: "all stories, whatever they say" if sort == VOLUME else stories_of(sort),
            key=key("surge"),
        )
        or NEGATIVE
    )
    made["surge"] = surge
    left, right = st.columns(2)
    made["keys"] = _words(
        left.text_input(
            "Keys",
            " ".join(given.get("keys", ["*"])),
            key=key("keys"),
            help="Patterns, separated by spaces: ticker:AAPL, topic:earnings, ticker:*, market.",
        )
    )
    made["exclude"] = _words(right.text_input("But not", " ".join(given.get("exclude", [])), key=key("exclude")))
    left, right = st.columns(2)
    made["severities"] = left.pills(
        "Severity", SEVERITIES, selection_mode="multi", default=given.get("severities", SEVERITIES), key=key("severity")
    )
    made["windows"] = right.pills(
        "Windows in minutes (none: any)",
        judge.windows,
        selection_mode="multi",
        default=[window for window in given.get("windows", []) if window in judge.windows],
        key=key("windows"),
    )
    evidence: list[tuple[str, str, float, float | None]] = [
        ("min_sources", "Sources, at least", 1_000_000, 1),
        ("max_p_value", "p-value, at most", 1.0, None),
    ]
    if surge == VOLUME:
        evidence.insert(0, ("min_stories", "Stories, at least", 1_000_000, 1))
    else:
        sort = surge.capitalize()
        evidence.insert(0, (f"min_{surge}_stories", f"{sort} stories, at least", 1_000_000, 1))
        evidence.insert(2, ("min_share", f"{sort} share, at least", 1.0, 0.05))
        # The form does not ask for it; what is there stays.
        made["min_stories"] = given.get("min_stories", 0)
    for place, (name, label, most, step) in zip(st.columns(len(evidence)), evidence, strict=True):
        whole = isinstance(most, int)
        usual = 1.0 if name == "max_p_value" else 0 if whole else 0.0
        made[name] = place.number_input(
            label,
            min_value=0 if whole else 0.0,
            max_value=most,
            value=given.get(name, usual),
            step=step,
            format=None if whole else "%g",
            key=key(name),
        )
    with st.expander("Hours and receivers", icon=":material/schedule:"):
        left, right = st.columns(2)
        made["calendar"] = (
            left.text_input(
                "Exchange",
                given.get("calendar", ""),
                placeholder="XNYS, XLON, XSWX; empty: any time",
                max_chars=32,
                key=key("calendar"),
            )
            or ""
        ).strip()
        made["when"] = right.segmented_control(
            "while it is", ("open", "closed"), default=given.get("when", "open"), key=key("when")
        )
        made["days"] = st.pills(
            "Days", WEEKDAYS, selection_mode="multi", default=given.get("days", WEEKDAYS), key=key("days")
        )
        begin, end, zone = st.columns(3)
        for place, name, label, usual_text in (
            (begin, "start", "From", "00:00"),
            (end, "end", "To (the same: all day)", "00:00"),
            (zone, "timezone", "Time zone", "UTC"),
        ):
            text = place.text_input(label, given.get(name, usual_text), max_chars=64, key=key(name))
            made[name] = (text or usual_text).strip()
        made["receivers"] = st.multiselect(
            "Tell these receivers, besides those of the routes",
            sorted({*receivers, *given.get("receivers", [])}),
            default=given.get("receivers", []),
            key=key("receivers"),
        )
    return made | {"when": made["when"] or "open"}


def draft(judge: JudgeConfig) -> Draft:
    """Draw the form and say what it holds."""
    with read() as connection:
        receivers = [receiver.name for receiver in list_receivers(connection)]
        own = {rule.name: rule.definition for rule in list_rules(connection) if rule.origin == STORE}
    form, text = st.tabs(["Form", "TOML"])
    with form:
        chosen = st.selectbox(
            "Change a rule made here, or a new one", ["", *own], format_func=lambda n: n or "new rule"
        )
        given = own.get(chosen, {})
        made = _fields(judge, given, receivers, chosen)
    with text:
        st.caption("Any number of rules as they stand in a rules file. As long as something stands here, it counts.")
        written = st.text_area("Rules in TOML", placeholder=EXAMPLE, height=220, key="rules-toml") or ""
    try:
        if written.strip():
            found = parse_rules(written, judge, "the text")
            return Draft(None if found.rules == (BUILT_IN,) else found, "")
        if not made["name"]:
            return Draft(None, "")
        return Draft(Rules(judge, (rule_from(made | {"enabled": given.get("enabled", True)}, judge),)), "")
    except RuleError as error:
        return Draft(None, str(error))
