"""From events of episodes to notices for receivers.

Everything happens in transactions of the store, and every notice's id is a function of episode, event and receiver, so
that doing a step again after a crash adds nothing.
"""

from __future__ import annotations

import uuid
from collections import Counter
from collections.abc import Collection
from datetime import datetime, timedelta
from typing import Final

import msgspec
from sqlalchemy import Connection, select

from monitor.alerts.config import NotificationConfig
from monitor.alerts.receivers import ReceiverKind
from monitor.alerts.records import Alert, AlertState, AlertStory, AlertWindow, Notice, view_link
from monitor.alerts.routing import Route, Situation, Target, may_explain, routes_for, targets
from monitor.alerts.rulebook import in_force
from monitor.storage import alerts as store
from monitor.storage import deliveries, outbox
from monitor.storage.audit import note_change
from monitor.storage.deliveries import DELIVERED, DROPPED, FAILED, HELD, PENDING, TEST, Delivery, delivery_id
from monitor.storage.receivers import list_receivers
from monitor.storage.rules import TAKEN, muted_rules, rule_actor
from monitor.storage.silences import list_silences
from monitor.storage.tables import items

__all__ = [
    "NOTIFIER",
    "NOT_CONFIGURED",
    "announce_again",
    "notice_body",
    "release_held",
    "request_trial",
    "route_outbox",
    "trial_notices",
]

NOTIFIER: Final = "notifier"
NOT_CONFIGURED: Final = "The receiver is no longer configured."


def notice_body(alert: Alert) -> str:
    """The body of a webhook about the alert as it stands: Standard Webhooks' type, timestamp, data."""
    at = {AlertState.ACKNOWLEDGED: alert.acknowledged_at, AlertState.RESOLVED: alert.resolved_at}.get(alert.state)
    notice = Notice(type=f"alert.{alert.state.value}", timestamp=at or alert.fired_at, data=alert)
    return msgspec.json.encode(notice).decode()


def trial_notices(receiver: str, now: datetime, dashboard_url: str) -> list[tuple[str, str]]:
    """Webhook-ids and bodies of a test, in order: a made-up alert of the rule `test` that fires and is resolved, so
    that everything that a receiver does with a real one can be tried, and nothing stays open there. It leaves no trace
    in the store."""
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
    over = msgspec.structs.replace(alert, state=AlertState.RESOLVED, resolved_at=now)
    return [(delivery_id(one.id, one.state, receiver), notice_body(one)) for one in (alert, over)]


def request_trial(conn: Connection, receiver: str, now: datetime, dashboard_url: str, *, by: str) -> str:
    """Have the notifier send a test, each of its notices once and without retries; returns the first one's id."""
    rows = [
        Delivery(
            id=webhook_id,
            episode_id=f"{TEST}:{receiver}"[:128],
            event=TEST,
            receiver=receiver,
            # The second waits for the first.
            position=position,
            payload=body,
            created_at=now,
            next_attempt_at=now,
        )
        for position, (webhook_id, body) in enumerate(trial_notices(receiver, now, dashboard_url))
    ]
    deliveries.add(conn, rows)
    webhook_id = rows[0].id
    note_change(conn, now, by, f"receiver:{receiver}", "test requested", {"webhook_id": webhook_id})
    return webhook_id


class _Circumstances:
    """What routing has to know of the store, read once per transaction."""

    def __init__(self, conn: Connection, config: NotificationConfig, now: datetime) -> None:
        self._conn = conn
        self._rules = in_force(conn, config.rules)
        self._now = now
        self._silences = list_silences(conn, now)
        self._muted = muted_rules(conn, now)
        self._active = store.wider_alerts(conn)
        self._config = config
        self._switched_off = {r.name: r.disabled_reason or "" for r in list_receivers(conn) if not r.enabled}

    def of(self, alert: Alert) -> Situation:
        ids = [story.item_id for story in alert.stories]
        topics = Counter(self._conn.scalars(select(items.c.topic).where(items.c.id.in_(ids)))) if ids else Counter()
        verdict = self._rules.verdict(alert, self._now, self._muted)
        return Situation(self._now, self._silences, verdict, self._active, topics, self._told(alert))

    def _told(self, alert: Alert) -> dict[str, set[str]]:
        """Who was told of the alerts that may explain this one: nobody waits for an alert that somebody else got."""
        wider = [one for one in self._active if may_explain(one, alert)]
        told = deliveries.told_of(self._conn, [one.id for one in wider]) if wider else {}
        for one in wider:
            # It may come after this one in the same transaction.
            if one.id not in told:
                reached = targets(self._config.routes, one, self.of(one), self._config.receivers)
                told[one.id] = {t.receiver for t in reached if not t.held and not self.cannot_be_told(t.receiver)}
        return told

    def cannot_be_told(self, receiver: str) -> str:
        """Why nobody would send a notice to this receiver; empty when somebody does."""
        if receiver not in self._config.receivers:
            return NOT_CONFIGURED
        off = self._switched_off.get(receiver)
        return "" if off is None else f"The receiver is switched off: {off}"

    def newest(self, alert: Alert) -> Alert:
        """With the publishers that tell of it by now, where a rule waits for more of them."""
        return store.retold(self._conn, alert) if self._rules.may_take_with_more_sources(alert) else alert

    def targets(self, alert: Alert, situation: Situation) -> list[Target]:
        """Who is to be told that the alert fires. Which rules took it goes into its trail, each once."""
        if situation.verdict.taken_by:
            known = store.rules_that_took(self._conn, alert.id)
            for rule in situation.verdict.taken_by:
                if rule.name not in known:
                    store.add_event(self._conn, alert.id, self._now, TAKEN, rule_actor(rule.name))
        return targets(self._config.routes, alert, situation, self._config.receivers)


def _notice(
    alert: Alert, event: str, receiver: str, position: int, now: datetime, circumstances: _Circumstances
) -> Delivery:
    failed = circumstances.cannot_be_told(receiver)
    return Delivery(
        id=delivery_id(alert.id, event, receiver),
        episode_id=alert.id,
        event=event,
        receiver=receiver,
        position=position,
        payload=notice_body(alert),
        created_at=now,
        state=FAILED if failed else PENDING,
        next_attempt_at=None if failed else now,
        last_error=failed or None,
    )


def _tell(
    conn: Connection, alert: Alert, position: int, told: Collection[str], now: datetime, circumstances: _Circumstances
) -> int:
    """Notices that the alert fires for those who are not `told` yet; returns how many."""
    added = 0
    for target in circumstances.targets(alert, circumstances.of(alert)):
        if target.receiver in told:
            continue
        row = _notice(alert, AlertState.FIRING, target.receiver, position, now, circumstances)
        if row.state == PENDING:
            collecting = deliveries.group_due(conn, target.receiver, target.group_key) if target.group_key else None
            due = collecting or now + target.group_wait
            row = msgspec.structs.replace(row, group_key=target.group_key, next_attempt_at=due)
            if target.held:
                row = msgspec.structs.replace(row, state=HELD, last_error=target.held, next_attempt_at=None)
        if deliveries.add(conn, [row]):
            added += 1
            if row.state == HELD:
                detail = {"receiver": target.receiver, "reason": target.held}
                store.add_event(conn, alert.id, now, HELD, NOTIFIER, detail)
    return added


def _fire(conn: Connection, entry: outbox.OutboxEntry, now: datetime, circumstances: _Circumstances) -> None:
    alert = msgspec.structs.replace(entry.alert, state=AlertState.FIRING)
    told = {row.receiver for row in deliveries.of_episode(conn, entry.episode_id)}
    _tell(conn, alert, entry.position, told, now, circumstances)


def _takes(config: NotificationConfig, alert: Alert, situation: Situation, receiver: str, event: str) -> bool:
    """False when every route by which the receiver gets this alert leaves the event out. A receiver that was told of
    the alert by escalation, or by a route that is no longer there, is told the rest. Incidents are acknowledged in
    the pager itself, which cannot be told."""
    known = config.receivers.get(receiver)
    if known is not None and known.kind is ReceiverKind.PAGERDUTY and event == AlertState.ACKNOWLEDGED:
        return False
    mine = [route for route in routes_for(config.routes, alert, situation) if receiver in route.receivers]
    return not mine or any(event in route.events for route in mine)


def _follow_up(
    conn: Connection,
    config: NotificationConfig,
    entry: outbox.OutboxEntry,
    now: datetime,
    circumstances: _Circumstances,
) -> None:
    situation = circumstances.of(entry.alert)
    for known in deliveries.of_episode(conn, entry.episode_id):
        if known.event != AlertState.FIRING or known.state == DROPPED:
            continue
        if known.state == HELD:
            deliveries.drop(conn, known.id, f"{entry.event} while held: {known.last_error}")
            detail = {"receiver": known.receiver, "reason": known.last_error}
            store.add_event(conn, entry.episode_id, now, DROPPED, NOTIFIER, detail)
        elif _takes(config, entry.alert, situation, known.receiver, entry.event):
            row = _notice(entry.alert, entry.event, known.receiver, entry.position, now, circumstances)
            deliveries.add(conn, [row])


def route_outbox(conn: Connection, config: NotificationConfig, now: datetime, limit: int = 200) -> int:
    """Make events of the outbox into notices, in order; returns how many events were routed."""
    entries = outbox.unrouted(conn, limit)
    if not entries:
        return 0
    circumstances = _Circumstances(conn, config, now)
    for entry in entries:
        if entry.event in (AlertState.ACKNOWLEDGED, AlertState.RESOLVED):
            _follow_up(conn, config, entry, now, circumstances)
        else:
            _fire(conn, entry, now, circumstances)
    outbox.mark_routed(conn, [entry.position for entry in entries], now)
    return len(entries)


def release_held(
    conn: Connection,
    config: NotificationConfig,
    now: datetime,
    ids: Collection[str] | None = None,
    *,
    recount: bool = True,
) -> int:
    """Look again at what fires: let go what nothing holds back any more, and tell those whom a rule that takes the
    alert only now names. `ids`: only at these alerts; `recount`: count the publishers anew for which a rule waits.
    Returns how many notices are new or free."""
    firing = store.firing_alerts(conn, ids)
    if not firing:
        return 0
    circumstances = _Circumstances(conn, config, now)
    freed = 0
    for alert in firing:
        rows = deliveries.of_episode(conn, alert.id)
        position = outbox.firing_position(conn, alert.id)
        if position is None:
            # Not routed yet: that is what `route_outbox` is for.
            continue
        held = {row.receiver: row for row in rows if row.state == HELD}
        # Also where nothing is held: a rule with receivers of its own names them only once it takes the alert.
        alert = circumstances.newest(alert) if recount else alert
        freed += _tell(conn, alert, position, {row.receiver for row in rows}, now, circumstances)
        for target in circumstances.targets(alert, circumstances.of(alert)) if held else ():
            row = held.get(target.receiver)
            if row is None or target.held:
                continue
            deliveries.set_free(conn, row.id, notice_body(alert), now)
            detail = {"receiver": row.receiver, "was": row.last_error}
            store.add_event(conn, alert.id, now, "released", NOTIFIER, detail)
            freed += 1
    return freed


class _Insistence:
    """One alert that fires on: what has been sent about it, and what its routes still want sent."""

    def __init__(self, conn: Connection, alert: Alert, now: datetime, circumstances: _Circumstances) -> None:
        self._conn = conn
        self._alert = alert
        self._now = now
        self._circumstances = circumstances
        self._rows = deliveries.of_episode(conn, alert.id)
        situation = circumstances.of(alert)
        self._situation = situation
        self._free = {target.receiver for target in circumstances.targets(alert, situation) if not target.held}

    def matches(self, route: Route) -> bool:
        return route.matches(self._alert, self._situation.names(self._alert))

    def _send(self, event: str, receiver: str, position: int, said: str) -> int:
        row = _notice(self._alert, event, receiver, position, self._now, self._circumstances)
        if not deliveries.add(self._conn, [row]):
            return 0
        detail = {"receiver": receiver, "webhook_id": row.id}
        store.add_event(self._conn, self._alert.id, self._now, said, NOTIFIER, detail)
        return 1

    def repeat(self, route: Route) -> int:
        """Tell again whoever was told longer ago than the route's interval."""
        if route.repeat is None:
            return 0
        added = 0
        for receiver in sorted(self._free.intersection(route.receivers)):
            sent = [row for row in self._rows if row.receiver == receiver]
            last = max(sent, key=lambda row: (row.position, row.created_at), default=None)
            if last is None or last.state != DELIVERED or last.delivered_at is None:
                continue
            if self._now - last.delivered_at >= route.repeat:
                number = 1 + sum(row.event.startswith("repeat:") for row in sent)
                added += self._send(f"repeat:{number}", receiver, last.position, "repeated")
        return added

    def escalate(self, route: Route) -> int:
        """Tell the next ones when the first were told long enough ago."""
        first = [r for r in self._rows if r.receiver in self._free.intersection(route.receivers) and r.state != HELD]
        if route.escalate_after is None or not first:
            return 0
        if self._now - min(row.since for row in first) < route.escalate_after:
            return 0
        known = {row.receiver: row for row in self._rows if row.event == AlertState.FIRING}
        added = 0
        for receiver in route.escalate_to:
            row = known.get(receiver)
            if row is None:
                added += self._send(AlertState.FIRING, receiver, first[0].position, "escalated")
            elif row.state == HELD:
                # A route of its own holds it back, this one does not.
                deliveries.set_free(self._conn, row.id, notice_body(self._alert), self._now)
                detail = {"receiver": receiver, "webhook_id": row.id, "was": row.last_error}
                store.add_event(self._conn, self._alert.id, self._now, "escalated", NOTIFIER, detail)
                added += 1
        return added


def announce_again(
    conn: Connection, config: NotificationConfig, now: datetime, ids: Collection[str] | None = None
) -> int:
    """Repeat what fires on and escalate what nobody has acknowledged, as the routes say; returns how many notices.

    Silenced, muted and inhibited alerts are neither repeated nor escalated. `ids`: only at these alerts.
    """
    insistent = [route for route in config.routes if route.repeat or route.escalate_after]
    firing = store.firing_alerts(conn, ids) if insistent else []
    if not firing:
        return 0
    circumstances = _Circumstances(conn, config, now)
    added = 0
    for alert in firing:
        insistence = _Insistence(conn, alert, now, circumstances)
        for route in filter(insistence.matches, insistent):
            added += insistence.repeat(route) + insistence.escalate(route)
    return added
