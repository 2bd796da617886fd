"""From events of episodes to notices for receivers.

Everything happens in transactions of the store, and every notice's id is a function of episode, event and receiver, so
that doing a step again after a crash adds nothing.
"""

from __future__ import annotations

import uuid
from collections import Counter
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Final

import msgspec
from sqlalchemy import Connection, select

from monitor.alerts.config import NotificationConfig
from monitor.alerts.receivers import ReceiverKind
from monitor.alerts.records import Alert, AlertState, AlertStory, AlertWindow, Notice, view_link
from monitor.alerts.routing import Route, Situation, targets
from monitor.storage import alerts as store
from monitor.storage import deliveries
from monitor.storage.deliveries import DELIVERED, DROPPED, FAILED, HELD, PENDING, Delivery, delivery_id
from monitor.storage.receivers import list_receivers
from monitor.storage.rules import muted_rules
from monitor.storage.silences import list_silences
from monitor.storage.tables import items

__all__ = ["NOTIFIER", "announce_again", "notice_body", "release_held", "route_outbox", "trial_notice"]

NOTIFIER: Final = "notifier"
ACTIVE: Final = (AlertState.FIRING.value, AlertState.ACKNOWLEDGED.value)


def notice_body(alert: Alert) -> str:
    """The body of a webhook about the alert as it stands: Standard Webhooks' type, timestamp, data."""
    at = {AlertState.ACKNOWLEDGED: alert.acknowledged_at, AlertState.RESOLVED: alert.resolved_at}.get(alert.state)
    notice = Notice(type=f"alert.{alert.state.value}", timestamp=at or alert.fired_at, data=alert)
    return msgspec.json.encode(notice).decode()


def trial_notice(receiver: str, now: datetime, dashboard_url: str) -> tuple[str, str]:
    """Webhook-id and body of a test: a made-up alert of the rule `test`, so that everything that a receiver does with
    a real one can be tried. It leaves no trace in the store."""
    alert_id = f"test-{uuid.uuid4().hex}"
    alert = Alert(
        id=alert_id,
        state=AlertState.FIRING,
        rule="test",
        key="ticker:TEST",
        title="Test notice",
        severity="warning",
        window=AlertWindow(minutes=15, start=now - timedelta(minutes=15), end=now),
        observed=3,
        expected=0.5,
        total=4,
        share=0.75,
        expected_share=0.2,
        p_value=0.01,
        sources=1,
        stories=(
            AlertStory(
                item_id="test",
                title="This is a test of the sentiment monitor: nothing has happened",
                url="",
                source="sentiment-monitor",
                published_at=now,
                copies=3,
                p_negative=1.0,
            ),
        ),
        model_version="",
        started_at=now,
        fired_at=now,
        link=view_link(dashboard_url, alert_id),
    )
    return delivery_id(alert_id, alert.state, receiver), notice_body(alert)


class _Circumstances:
    """What routing has to know of the store, read once per transaction."""

    def __init__(self, conn: Connection, config: NotificationConfig, now: datetime) -> None:
        self._conn = conn
        self._rules = config.rules
        self._now = now
        self._silences = list_silences(conn, now)
        self._muted = muted_rules(conn, now)
        self._active = store.list_alerts(conn, states=ACTIVE)
        self.switched_off = {r.name: r.disabled_reason or "" for r in list_receivers(conn) if not r.enabled}

    def of(self, alert: Alert) -> Situation:
        ids = [story.item_id for story in alert.stories]
        topics = Counter(self._conn.scalars(select(items.c.topic).where(items.c.id.in_(ids)))) if ids else Counter()
        objection = self._rules.objection(alert, self._now, self._muted)
        return Situation(self._now, self._silences, objection, self._active, topics)


def _notice(
    alert: Alert, event: str, receiver: str, position: int, now: datetime, circumstances: _Circumstances
) -> Delivery:
    off = circumstances.switched_off.get(receiver)
    return Delivery(
        id=delivery_id(alert.id, event, receiver),
        episode_id=alert.id,
        event=event,
        receiver=receiver,
        position=position,
        payload=notice_body(alert),
        created_at=now,
        state=PENDING if off is None else FAILED,
        next_attempt_at=now if off is None else None,
        last_error=None if off is None else f"The receiver is switched off: {off}",
    )


def _fire(
    conn: Connection,
    config: NotificationConfig,
    entry: store.OutboxEntry,
    now: datetime,
    circumstances: _Circumstances,
) -> None:
    alert = msgspec.structs.replace(entry.alert, state=AlertState.FIRING)
    told = {row.receiver for row in deliveries.of_episode(conn, entry.episode_id)}
    for target in targets(config.routes, alert, circumstances.of(alert)):
        if target.receiver in told:
            continue
        row = _notice(alert, AlertState.FIRING, target.receiver, entry.position, now, circumstances)
        if row.state == PENDING:
            collecting = deliveries.group_due(conn, target.receiver, target.group_key) if target.group_key else None
            due = collecting or now + target.group_wait
            row = msgspec.structs.replace(row, group_key=target.group_key, next_attempt_at=due)
            if target.held:
                row = msgspec.structs.replace(row, state=HELD, last_error=target.held, next_attempt_at=None)
        if deliveries.add(conn, [row]) and row.state == HELD:
            detail = {"receiver": target.receiver, "reason": target.held}
            store.add_event(conn, alert.id, now, HELD, NOTIFIER, detail)


def _takes(config: NotificationConfig, alert: Alert, receiver: str, event: str) -> bool:
    """False when every route by which the receiver gets this alert leaves the event out. A receiver that was told of
    the alert by escalation, or by a route that is no longer there, is told the rest. Incidents are acknowledged in
    the pager itself, which cannot be told."""
    known = config.receivers.get(receiver)
    if known is not None and known.kind is ReceiverKind.PAGERDUTY and event == AlertState.ACKNOWLEDGED:
        return False
    mine = [route for route in config.routes if receiver in route.receivers and route.matches(alert)]
    return not mine or any(event in route.events for route in mine)


def _follow_up(
    conn: Connection,
    config: NotificationConfig,
    entry: store.OutboxEntry,
    now: datetime,
    circumstances: _Circumstances,
) -> None:
    for known in deliveries.of_episode(conn, entry.episode_id):
        if known.event != AlertState.FIRING or known.state == DROPPED:
            continue
        if known.state == HELD:
            deliveries.drop(conn, known.id, f"{entry.event} while held: {known.last_error}")
            detail = {"receiver": known.receiver, "reason": known.last_error}
            store.add_event(conn, entry.episode_id, now, DROPPED, NOTIFIER, detail)
        elif _takes(config, entry.alert, known.receiver, entry.event):
            row = _notice(entry.alert, entry.event, known.receiver, entry.position, now, circumstances)
            deliveries.add(conn, [row])


def route_outbox(conn: Connection, config: NotificationConfig, now: datetime, limit: int = 200) -> int:
    """Make events of the outbox into notices, in order; returns how many events were routed."""
    entries = store.unrouted(conn, limit)
    if not entries:
        return 0
    circumstances = _Circumstances(conn, config, now)
    for entry in entries:
        if entry.event in (AlertState.ACKNOWLEDGED, AlertState.RESOLVED):
            _follow_up(conn, config, entry, now, circumstances)
        else:
            _fire(conn, config, entry, now, circumstances)
    store.mark_routed(conn, [entry.position for entry in entries], now)
    return len(entries)


def release_held(conn: Connection, config: NotificationConfig, now: datetime) -> int:
    """Let go what nothing holds back any more, if its alert still fires; returns how many notices."""
    rows = deliveries.held(conn)
    if not rows:
        return 0
    circumstances = _Circumstances(conn, config, now)
    freed = 0
    for row in rows:
        alert = store.get_alert(conn, row.episode_id)
        if alert is None or alert.state is not AlertState.FIRING:
            continue
        wanted = {target.receiver: target for target in targets(config.routes, alert, circumstances.of(alert))}
        target = wanted.get(row.receiver)
        if target is None or target.held:
            continue
        deliveries.set_free(conn, row.id, notice_body(alert), now)
        store.add_event(conn, alert.id, now, "released", NOTIFIER, {"receiver": row.receiver, "was": row.last_error})
        freed += 1
    return freed


def announce_again(conn: Connection, config: NotificationConfig, now: datetime) -> int:
    """Repeat what fires on and escalate what nobody has acknowledged, as the routes say; returns how many notices.

    Silenced, muted and inhibited alerts are neither repeated nor escalated.
    """
    insistent = [route for route in config.routes if route.repeat or route.escalate_after]
    if not insistent:
        return 0
    circumstances = _Circumstances(conn, config, now)
    added = 0
    for alert in store.list_alerts(conn, states=[AlertState.FIRING]):
        matching = [route for route in insistent if route.matches(alert)]
        if not matching:
            continue
        rows = deliveries.of_episode(conn, alert.id)
        free = {t.receiver for t in targets(matching, alert, circumstances.of(alert)) if not t.held}
        for route in matching:
            added += _repeat(conn, route, alert, rows, free, now, circumstances)
            added += _escalate(conn, route, alert, rows, free, now, circumstances)
    return added


def _repeat(
    conn: Connection,
    route: Route,
    alert: Alert,
    rows: Sequence[Delivery],
    free: set[str],
    now: datetime,
    circumstances: _Circumstances,
) -> int:
    if route.repeat is None:
        return 0
    added = 0
    for receiver in free.intersection(route.receivers):
        sent = [row for row in rows if row.receiver == receiver]
        last = max(sent, key=lambda row: (row.position, row.created_at), default=None)
        if (
            last is None
            or last.state != DELIVERED
            or last.delivered_at is None
            or now - last.delivered_at < route.repeat
        ):
            continue
        event = f"repeat:{sum(row.event.startswith('repeat:') for row in sent) + 1}"
        row = _notice(alert, event, receiver, last.position, now, circumstances)
        added += len(deliveries.add(conn, [row]))
    return added


def _escalate(
    conn: Connection,
    route: Route,
    alert: Alert,
    rows: Sequence[Delivery],
    free: set[str],
    now: datetime,
    circumstances: _Circumstances,
) -> int:
    if route.escalate_after is None:
        return 0
    first = [row for row in rows if row.receiver in free.intersection(route.receivers) and row.state != HELD]
    if not first or now - min(row.created_at for row in first) < route.escalate_after:
        return 0
    told = {row.receiver for row in rows}
    added = 0
    for receiver in (name for name in route.escalate_to if name not in told):
        row = _notice(alert, AlertState.FIRING, receiver, first[0].position, now, circumstances)
        if deliveries.add(conn, [row]):
            store.add_event(conn, alert.id, now, "escalated", NOTIFIER, {"receiver": receiver})
            added += 1
    return added
