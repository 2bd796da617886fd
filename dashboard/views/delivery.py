"""Delivery: receivers and how they are doing, what has not arrived, silences."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Final
from urllib.parse import quote

import streamlit as st

from dashboard.forms import LENGTHS_H, length, person
from dashboard.markup import Html, cells, chip, clock, escape, markup, plain, table
from dashboard.store import change, guarded, read, settings
from monitor.alerts.lifecycle import request_trial
from monitor.storage.deliveries import Delivery, tests_of_receivers
from monitor.storage.receivers import ReceiverHealth, ReceiverStatus, enable, list_receivers, receiver_health
from monitor.storage.silences import add_silence, end_silence, list_silences
from monitor.storage.undelivered import replay, undelivered

__all__ = ["deliveries_table", "show"]

REFRESH_S: Final = 5
LISTED: Final = 200


def _alert(episode_id: str) -> Html:
    return Html(f'<a href="alerts?alert={quote(episode_id, safe="")}">{escape(episode_id[:8])}</a>')


def deliveries_table(rows: Sequence[Delivery], *, with_alert: bool) -> None:
    """Notices with what became of them."""
    table(
        ("receiver", "event", "state", "attempts", "last answer", "next attempt (UTC)", "delivered (UTC)")
        + (("alert",) if with_alert else ()),
        (
            cells(
                row.receiver,
                row.event,
                row.state,
                row.attempts,
                " ".join(filter(None, (str(row.last_status or ""), (row.last_error or "")[:200]))),
                row.next_attempt_at,
                row.delivered_at,
                *((_alert(row.episode_id),) if with_alert else ()),
            )
            for row in rows
        ),
        "Notifications",
    )


def _test_result(test: Delivery | None) -> str:
    if test is None:
        return "not tested from here"
    at = f"<time>{clock(test.created_at)}</time>"
    if test.state == "delivered":
        return f"test of {at}: arrived ({escape(str(test.last_status or 'taken'))})"
    if test.state == "failed":
        return f"test of {at}: {escape(test.last_error or 'failed')}"
    return f"test of {at}: waits for the notifier"


def _receiver(status: ReceiverStatus, health: ReceiverHealth | None, test: Delivery | None, name: str) -> None:
    with st.container(border=True):
        text, try_it, switch = st.columns([6, 1.3, 1.3], vertical_alignment="center")
        state = chip("on", "positive") if status.enabled else chip("off", "negative")
        off = "" if status.enabled else f" {escape(status.disabled_reason or '')}"
        if status.enabled and status.quiet(datetime.now(UTC)):
            off = f" wants nothing until <time>{clock(status.quiet_until)}</time> UTC"
        kind, address = (escape(str(status.definition.get(field, ""))) for field in ("kind", "address"))
        doing = (
            f"{health.waiting} waiting, {health.failed} given up, last delivery <time>"
            f"{clock(health.last_delivered_at)}</time>"
            if health
            else "nothing was sent yet"
        )
        with text:
            markup(
                f"<b>{escape(status.name)}</b> {state}{off} <span class='quiet'>{kind}, {address}</span><br>"
                f"<span class='quiet'>{doing}; {_test_result(test)}</span>"
            )
        if try_it.button("Test", key=f"test-{status.name}", icon=":material/send:", disabled=not name, width="stretch"):
            with change() as connection:
                request_trial(connection, status.name, datetime.now(UTC), settings().dashboard_url, by=name)
            st.rerun()
        if not status.enabled and switch.button(
            "Switch on", key=f"on-{status.name}", disabled=not name, width="stretch"
        ):
            with change() as connection:
                enable(connection, status.name, datetime.now(UTC), by=name)
            st.rerun()


@guarded
def _receivers() -> None:
    name = st.session_state.get("acting", "")
    with read() as connection:
        found = list_receivers(connection)
        health = receiver_health(connection)
        tests = tests_of_receivers(connection)
    if not found:
        st.info(
            "No receiver is known yet. Set `webhook_urls` or `receivers_file` and start `sentiment-monitor notifier`.",
            icon=":material/notifications_off:",
        )
    for status in found:
        _receiver(status, health.get(status.name), tests.get(status.name), name)


@guarded
def _undelivered() -> None:
    name = st.session_state.get("acting", "")
    with read() as connection:
        waiting = undelivered(connection, limit=LISTED)
    if not waiting:
        st.caption("No notification has failed or is waiting for another attempt.")
        return
    deliveries_table(waiting, with_alert=True)
    note, button = st.columns([5, 2], vertical_alignment="center")
    note.caption(
        f"{len(waiting)} listed. Sent again, they keep their ids: a receiver knows what it has seen. "
        "What came later about the same alert follows once more."
    )
    if button.button("Send all again now", icon=":material/replay:", disabled=not name, width="stretch"):
        with change() as connection:
            number = replay(connection, datetime.now(UTC), by=name)
        st.toast(f"{number} to be sent again.")
        st.rerun()


def _silence_form(name: str) -> None:
    # A form of another name is empty: what was refused stays for its mistake to be mended.
    made = st.session_state.setdefault("silences-made", 0)
    with st.form(f"silence-{made}", border=False):
        what, rule, hours, why, send = st.columns([3, 2, 1.5, 3, 1.5], vertical_alignment="bottom")
        key = what.text_input("Key or pattern", placeholder="ticker:AAPL, topic:*, *", max_chars=160)
        pattern = rule.text_input("Rule or pattern", "*", max_chars=160)
        chosen = hours.selectbox("For", LENGTHS_H, index=1, format_func=length)
        comment = why.text_input("Why", max_chars=500)
        sent = send.form_submit_button("Silence", icon=":material/notifications_paused:", width="stretch")
    if not sent:
        return
    if not name:
        st.warning("Give your name first.", icon=":material/person:")
        return
    if not (comment or "").strip():
        st.warning("Say why: it stands beside what the silence holds back.", icon=":material/edit_note:")
        return
    now = datetime.now(UTC)
    with change() as connection:
        add_silence(
            connection,
            key=(key or "").strip(),
            rule=(pattern or "").strip(),
            starts_at=now,
            ends_at=now + timedelta(hours=chosen),
            comment=comment or "",
            author=name,
        )
    st.session_state["silences-made"] = made + 1
    st.rerun()


def _silences(name: str) -> None:
    now = datetime.now(UTC)
    with read() as connection:
        silences = list_silences(connection, now)
    if not silences:
        st.caption("None.")
    for silence in silences:
        text, button = st.columns([6, 1.3], vertical_alignment="center")
        rule = "" if silence.rule == "*" else f", rule {escape(silence.rule)}"
        with text:
            markup(
                f"<b>{escape(silence.key)}</b>{rule} until <time>{clock(silence.ends_at)}</time> UTC, "
                f"by {escape(silence.author)}: {escape(silence.comment or 'no comment')}"
            )
        if button.button("End now", key=f"end-{silence.id}", width="stretch"):
            with change() as connection:
                end_silence(connection, silence.id, now, by=name or "dashboard")
            st.rerun()


@guarded
def show() -> None:
    """Draw the page."""
    title, who = st.columns([5, 2], vertical_alignment="bottom")
    title.title("Delivery", anchor=False)
    name = person(place=who)
    # The parts that refresh by themselves cannot ask.
    st.session_state["acting"] = name
    if not name:
        st.caption("Give your name to test, switch on, send again or silence.")
    st.subheader("Receivers", anchor=False)
    st.fragment(_receivers, run_every=REFRESH_S)()
    st.subheader("Not delivered", anchor=False)
    st.fragment(_undelivered, run_every=REFRESH_S)()
    st.subheader("Silences in force", anchor=False)
    _silences(name)
    st.markdown(plain("Silence a key"))
    _silence_form(name)
