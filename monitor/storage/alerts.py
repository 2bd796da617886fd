"""Episodes of alerts and their audit trail, written by the judge's transaction.

An episode is one row, so a decision that is recorded again after a crash changes nothing; what has to be announced
goes to the outbox (`monitor.storage.outbox`) in the same transaction.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

import msgspec
from sqlalchemy import Connection, case, or_, select, update

from monitor.alerts.records import (
    SEVERITIES,
    Alert,
    AlertState,
    AlertStory,
    AlertWindow,
    alert_from_builtins,
    bounded,
    clean_text,
    clean_url,
    key_title,
    view_link,
)
from monitor.errors import ConfigurationError
from monitor.storage.articles import counted_within, stories_that_surge, told_by
from monitor.storage.deliveries import HELD
from monitor.storage.outbox import announce
from monitor.storage.pending import fired
from monitor.storage.tables import alert_events, deliveries, episodes, items, stories, ticks
from monitor.storage.upsert import insert_missing
from monitor.stories import p_positive
from monitor.surges.keys import MARKET, TOPIC

if TYPE_CHECKING:
    from monitor.surges.decisions import Decision
    from monitor.taxonomy import Taxonomy

__all__ = [
    "JUDGE",
    "acknowledge",
    "add_event",
    "alert_of",
    "alerts_around",
    "any_firing",
    "audit_trail",
    "firing_alerts",
    "firing_ids",
    "get_alert",
    "list_alerts",
    "record_decisions",
    "resolve_forgotten",
    "retold",
    "rules_that_took",
    "wider_alerts",
    "worsened",
]

JUDGE: Final = "judge"
# Sources are counted over this many stories at the most: a bound on the work, far above any window seen.
MAX_EVIDENCE_ROWS: Final = 5_000

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MINUTE = timedelta(minutes=1)


def _members(conn: Connection, key: str, first: int, last: int) -> list[str]:
    """The keys that hold the stories of `key` in the epoch minutes [first, last): the market's are those of all
    topics, of which an item has one."""
    if key != MARKET:
        return [key]
    counted = select(ticks.c.key).distinct().where(ticks.c.minute >= first, ticks.c.minute < last)
    return sorted(name for name in conn.scalars(counted) if name.startswith(TOPIC))


def _evidence(
    conn: Connection, surge: str, key: str, start: datetime, end: datetime
) -> tuple[list[AlertStory], int, str]:
    """Stories of the sort that surges, of a key, counted in `[start, end)`, most copied and surest first; the number of
    their distinct sources; the model version that scored most of the first of them."""
    of_sort, surest = stories_that_surge(surge)
    first, last = (start - _EPOCH) // _MINUTE, (end - _EPOCH) // _MINUTE
    rows = conn.execute(
        select(
            stories.c.item_id,
            items.c.title,
            items.c.url,
            stories.c.source,
            stories.c.copies,
            stories.c.first_at,
            stories.c["items"],
            stories.c.p_negative,
            stories.c.score,
        )
        .outerjoin(items, items.c.id == stories.c.item_id)
        .where(*counted_within(_members(conn, key, first, last), first, last), of_sort)
        .order_by(stories.c["items"].desc(), surest.desc(), stories.c.id)
        .limit(MAX_EVIDENCE_ROWS)
    ).all()
    found: dict[str, AlertStory] = {}
    sources: set[str] = set()
    for row in rows:
        sources.update(told_by(row.source, row.copies))
        found.setdefault(
            row.item_id,
            AlertStory(
                item_id=row.item_id,
                title=clean_text(row.title or ""),
                url=clean_url(row.url or ""),
                source=clean_text(row.source, 120),
                published_at=_EPOCH + timedelta(milliseconds=row.first_at),
                copies=row._mapping["items"],
                p_negative=round(row.p_negative, 4),
                p_positive=round(p_positive(row.score, row.p_negative), 4),
            ),
        )
    telling = list(found.values())
    ids = [story.item_id for story in telling[:50]]
    versions = Counter(conn.scalars(select(items.c.model_version).where(items.c.id.in_(ids)))) if ids else Counter()
    return telling, len(sources), versions.most_common(1)[0][0] if versions else ""


def alert_of(conn: Connection, decision: Decision, dashboard_url: str, taxonomy: Taxonomy | None = None) -> Alert:
    """The alert that a decision describes, firing, with the stories of its window from the store."""
    end = decision.at
    start = end - timedelta(minutes=decision.window_minutes)
    telling, sources, model_version = _evidence(conn, decision.surge, decision.key, start, end)
    alert = Alert(
        id=decision.episode_id,
        state=AlertState.FIRING,
        rule=decision.rule,
        surge=decision.surge,
        key=decision.key,
        title=key_title(decision.key, taxonomy),
        severity=decision.severity,
        window=AlertWindow(minutes=decision.window_minutes, start=start, end=end),
        observed=decision.observed,
        expected=decision.expected,
        total=decision.stories,
        share=decision.share,
        expected_share=decision.expected_share,
        p_value=decision.p_value,
        sources=sources,
        stories=(),
        model_version=model_version,
        started_at=decision.started_at,
        fired_at=decision.fired_at,
        link=view_link(dashboard_url, decision.episode_id),
    )
    return bounded(alert, telling)


def add_event(
    conn: Connection, episode_id: str, at: datetime, event: str, actor: str, detail: dict[str, Any] | None = None
) -> None:
    """One line of an episode's audit trail."""
    conn.execute(
        alert_events.insert().values(episode_id=episode_id, at=at, event=event, actor=actor, detail=detail or {})
    )


def _store(conn: Connection, alert: Alert) -> None:
    conn.execute(
        update(episodes)
        .where(episodes.c.id == alert.id)
        .values(
            state=alert.state.value,
            severity=alert.severity,
            resolved_at=alert.resolved_at,
            acknowledged_at=alert.acknowledged_at,
            acknowledged_by=alert.acknowledged_by,
            evidence=msgspec.to_builtins(alert),
            updated_at=datetime.now(UTC),
        )
    )


def _locked(conn: Connection, episode_id: str) -> Alert | None:
    evidence = conn.scalar(select(episodes.c.evidence).where(episodes.c.id == episode_id).with_for_update())
    return None if evidence is None else alert_from_builtins(evidence)


def _fire(conn: Connection, decision: Decision, dashboard_url: str, taxonomy: Taxonomy | None) -> None:
    alert = alert_of(conn, decision, dashboard_url, taxonomy)
    row = {
        "id": alert.id,
        "rule": alert.rule,
        "key": alert.key,
        "state": alert.state.value,
        "severity": alert.severity,
        "started_at": alert.started_at,
        "fired_at": alert.fired_at,
        "resolved_at": None,
        "acknowledged_at": None,
        "acknowledged_by": None,
        "evidence": msgspec.to_builtins(alert),
        "updated_at": datetime.now(UTC),
    }
    if not insert_missing(conn, episodes, [row]):
        return
    fired(conn, alert.id)
    add_event(conn, alert.id, alert.started_at, AlertState.PENDING, JUDGE)
    add_event(conn, alert.id, alert.fired_at, AlertState.FIRING, JUDGE, {"severity": alert.severity})
    announce(conn, alert, AlertState.FIRING)


def _rank(severity: str) -> int:
    return SEVERITIES.index(severity) if severity in SEVERITIES else -1


def worsened(
    conn: Connection, known: Alert, decision: Decision, dashboard_url: str, taxonomy: Taxonomy | None = None
) -> Alert | None:
    """The alert with the figures of an update; None when these are no worse than the known ones."""
    raised = _rank(decision.severity) > _rank(known.severity)
    if not raised and (decision.p_value, -decision.observed) >= (known.p_value, -known.observed):
        return None
    return msgspec.structs.replace(
        alert_of(conn, decision, dashboard_url, taxonomy),
        state=known.state,
        severity=decision.severity if raised else known.severity,
        started_at=known.started_at,
        fired_at=known.fired_at,
        acknowledged_at=known.acknowledged_at,
        acknowledged_by=known.acknowledged_by,
    )


def _worsen(conn: Connection, decision: Decision, dashboard_url: str, taxonomy: Taxonomy | None) -> None:
    known = _locked(conn, decision.episode_id)
    if known is None or known.state is AlertState.RESOLVED:
        return
    worse = worsened(conn, known, decision, dashboard_url, taxonomy)
    if worse is None:
        return
    _store(conn, worse)
    if worse.severity != known.severity:
        add_event(conn, worse.id, decision.at, "raised", JUDGE, {"from": known.severity, "to": worse.severity})
        # Not a public event: routing looks again for receivers that take only the higher severity.
        announce(conn, worse, f"raised:{worse.severity}")


def retold(conn: Connection, alert: Alert) -> Alert:
    """The alert with the publishers and copies that its stories have by now, stored if these are more: a headline that
    others take over is no new story, and says more all the same."""
    stories_now, sources, _ = _evidence(conn, alert.surge, alert.key, alert.window.start, alert.window.end)
    if sources <= alert.sources:
        return alert
    known = _locked(conn, alert.id)
    if known is None or known.state is not alert.state or known.window != alert.window:
        return alert
    more = bounded(msgspec.structs.replace(known, sources=sources, stories=()), stories_now)
    _store(conn, more)
    return more


def _resolve(conn: Connection, episode_id: str, at: datetime) -> None:
    known = _locked(conn, episode_id)
    if known is None or known.state is AlertState.RESOLVED:
        return
    over = msgspec.structs.replace(known, state=AlertState.RESOLVED, resolved_at=at)
    _store(conn, over)
    add_event(conn, over.id, at, AlertState.RESOLVED, JUDGE)
    announce(conn, over, AlertState.RESOLVED)


def record_decisions(
    conn: Connection, decisions: Sequence[Decision], *, dashboard_url: str, taxonomy: Taxonomy | None = None
) -> None:
    """Write the judge's decisions: episodes, audit trail and outbox, with the stories behind them as evidence.

    Belongs into the transaction that moves "judged up to". Recording a decision again changes nothing; an update or
    resolution of an episode that is unknown or over is ignored. The stored figures move only when they get worse.
    Titles are those of `taxonomy` (None: the bundled one).
    """
    for decision in decisions:
        if decision.action == "fire":
            _fire(conn, decision, dashboard_url, taxonomy)
        elif decision.action == "update":
            _worsen(conn, decision, dashboard_url, taxonomy)
        else:
            _resolve(conn, decision.episode_id, decision.at)


def resolve_forgotten(conn: Connection, rule: str, firing: Collection[str], at: datetime) -> int:
    """Resolve the open episodes of `rule` that are not among `firing`, the ones that its judge still knows of.

    A judge that goes by other settings than the one before it will never resolve them. Returns their number.
    """
    unresolved = select(episodes.c.id).where(episodes.c.rule == rule, episodes.c.state != AlertState.RESOLVED.value)
    forgotten = [one for one in conn.scalars(unresolved.order_by(episodes.c.id)) if one not in firing]
    for one in forgotten:
        _resolve(conn, one, at)
    return len(forgotten)


def acknowledge(conn: Connection, episode_id: str, *, by: str, at: datetime) -> Alert:
    """Somebody takes the alert on. Acknowledging twice keeps the first name.

    Raises `ConfigurationError` when there is no such alert or it is over.
    """
    known = _locked(conn, episode_id)
    if known is None:
        raise ConfigurationError(f"There is no alert {episode_id}.", "`sentiment-monitor alerts list` shows them.")
    if known.state is AlertState.RESOLVED:
        raise ConfigurationError(f"The alert {episode_id} is resolved already.")
    if known.state is AlertState.ACKNOWLEDGED:
        return known
    taken = msgspec.structs.replace(known, state=AlertState.ACKNOWLEDGED, acknowledged_at=at, acknowledged_by=by)
    _store(conn, taken)
    add_event(conn, taken.id, at, AlertState.ACKNOWLEDGED, by)
    announce(conn, taken, AlertState.ACKNOWLEDGED)
    return taken


def get_alert(conn: Connection, episode_id: str) -> Alert | None:
    """The alert as it stands now; None for an unknown id."""
    evidence = conn.scalar(select(episodes.c.evidence).where(episodes.c.id == episode_id))
    return None if evidence is None else alert_from_builtins(evidence)


def list_alerts(conn: Connection, *, states: Iterable[str] = (), key: str = "", limit: int = 1000) -> list[Alert]:
    """Alerts, the youngest first; only those in one of `states` and under `key` when these are given."""
    query = select(episodes.c.evidence).order_by(episodes.c.fired_at.desc(), episodes.c.id).limit(limit)
    wanted = list(states)
    if wanted:
        query = query.where(episodes.c.state.in_(wanted))
    if key:
        query = query.where(episodes.c.key == key)
    return [alert_from_builtins(evidence) for evidence in conn.scalars(query)]


_is_topic = episodes.c.key.startswith(TOPIC, autoescape=True)
# The wider first, since a wider alert that is let go may hold back the narrower ones; then the oldest.
_WIDEST_FIRST: Final = (
    case((episodes.c.key == MARKET, 0), (_is_topic, 1), else_=2),
    episodes.c.fired_at,
    episodes.c.id,
)


def firing_ids(conn: Connection, *, held: bool = False) -> list[str]:
    """The ids of all alerts that fire and that nobody has acknowledged: the market's, topics', tickers', the oldest
    first; only those of which a notice is held back when `held`."""
    c = episodes.c
    query = select(c.id).where(c.state == AlertState.FIRING.value).order_by(*_WIDEST_FIRST)
    if held:
        query = query.where(c.id.in_(select(deliveries.c.episode_id).where(deliveries.c.state == HELD)))
    return list(conn.scalars(query))


def firing_alerts(conn: Connection, ids: Collection[str] | None = None) -> list[Alert]:
    """All alerts that fire and that nobody has acknowledged, in the order of `firing_ids`; of these `ids` when they are
    given."""
    c = episodes.c
    query = select(c.evidence).where(c.state == AlertState.FIRING.value).order_by(*_WIDEST_FIRST)
    if ids is not None:
        query = query.where(c.id.in_(ids))
    return [alert_from_builtins(evidence) for evidence in conn.scalars(query)]


def wider_alerts(conn: Connection) -> list[Alert]:
    """All open alerts about the market and topics, the youngest first: those that may explain others."""
    c = episodes.c
    active = c.state.in_((AlertState.FIRING.value, AlertState.ACKNOWLEDGED.value))
    query = select(c.evidence).where(active, or_(c.key == MARKET, _is_topic)).order_by(c.fired_at.desc(), c.id)
    return [alert_from_builtins(evidence) for evidence in conn.scalars(query)]


def alerts_around(conn: Connection, key: str, since: datetime, until: datetime) -> list[Alert]:
    """The alerts about a key that were open at some time from `since` to `until`, the youngest first."""
    c = episodes.c
    ended_before = c.resolved_at.is_not(None) & (c.resolved_at < since)
    query = select(c.evidence).where(c.key == key, c.fired_at <= until, ~ended_before)
    return [alert_from_builtins(evidence) for evidence in conn.scalars(query.order_by(c.fired_at.desc(), c.id))]


def audit_trail(conn: Connection, episode_id: str) -> list[dict[str, Any]]:
    """Everything that happened to an episode, oldest first: `at`, `event`, `actor`, `detail`."""
    query = (
        select(alert_events.c.at, alert_events.c.event, alert_events.c.actor, alert_events.c.detail)
        .where(alert_events.c.episode_id == episode_id)
        .order_by(alert_events.c.id)
    )
    return [dict(row) for row in conn.execute(query).mappings()]


def rules_that_took(conn: Connection, episode_id: str) -> set[str]:
    """Names of the rules that have taken an alert so far, from its trail."""
    c = alert_events.c
    took = conn.scalars(select(c.actor).where(c.episode_id == episode_id, c.event == "taken"))
    return {actor.partition(":")[2] for actor in took}


def any_firing(conn: Connection) -> bool:
    """True when an alert fires that nobody has acknowledged."""
    fires = episodes.c.state == AlertState.FIRING.value
    return conn.scalar(select(episodes.c.id).where(fires).limit(1)) is not None
