"""What retention may drop of alerts: episodes that are long over, with everything that hangs on them.

Nothing goes that is open or undelivered: an episode stays, whole, as long as it has not ended, an event of it has not
been published and routed, or a notice of it waits, is held back or was given up (somebody may send it again).
"""

from __future__ import annotations

from datetime import datetime, timedelta

from sqlalchemy import ColumnElement, Table, and_, exists, or_, select

from monitor.settings import Settings
from monitor.storage.deliveries import DELIVERED, DIGEST, DROPPED, TEST
from monitor.storage.tables import alert_events, audit_log, deliveries, episodes, outbox, pending, silences

__all__ = ["alert_conditions"]


def alert_conditions(settings: Settings, now: datetime, clock: datetime) -> list[tuple[Table, ColumnElement[bool]]]:
    """What to drop from each table, in this order; `now` is event time, `clock` the wall clock."""
    length = timedelta(days=settings.retention_alerts_days)
    arrived = deliveries.c.state.in_((DELIVERED, DROPPED))
    waits = exists().where(deliveries.c.episode_id == episodes.c.id, ~arrived)
    # An event that is not public is never published.
    public = ~outbox.c.event.startswith("raised:")
    unannounced = exists().where(
        outbox.c.episode_id == episodes.c.id,
        or_(outbox.c.routed_at.is_(None), and_(public, outbox.c.published_at.is_(None))),
    )
    over = and_(episodes.c.resolved_at.is_not(None), episodes.c.resolved_at < now - length, ~waits, ~unannounced)
    gone = select(episodes.c.id).where(over)
    old = deliveries.c.created_at < clock - length
    # What came to nothing is asked about as long as it can be judged again.
    shorter = timedelta(days=min(settings.retention_alerts_days, settings.retention_ticks_days))
    came_to_nothing = pending.c.ended_at < now - shorter
    member = deliveries.alias("member")
    has_members = exists().where(member.c.digest_id == deliveries.c.id)
    return [
        (deliveries, and_(deliveries.c.episode_id.in_(gone), arrived)),
        (deliveries, and_(deliveries.c.event == DIGEST, arrived, old, ~has_members)),
        (deliveries, and_(deliveries.c.event == TEST, old)),
        (alert_events, alert_events.c.episode_id.in_(gone)),
        (alert_events, alert_events.c.episode_id.in_(select(pending.c.id).where(came_to_nothing))),
        (pending, came_to_nothing),
        (outbox, outbox.c.episode_id.in_(gone)),
        (episodes, over),
        (silences, silences.c.ends_at < clock - length),
        (audit_log, audit_log.c.at < clock - length),
    ]
