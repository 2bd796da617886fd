"""What rules would have announced of the alerts of a replay: the verdict that the notifier goes by, over event time."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

from monitor.alerts.records import Alert, AlertState
from monitor.alerts.rules import Rules

if TYPE_CHECKING:
    from monitor.surges.backtest import BacktestAlert

__all__ = ["announced"]

_MINUTE = timedelta(minutes=1)


def announced(rules: Rules, found: BacktestAlert) -> bool:
    """True when an enabled rule takes an alert at some minute from its firing to its end, by the figures of its worst
    minute. Of a sort of surge that no rule watches every alert is: somebody has asked for that sort by its name.

    As in the notifier, hours are looked at again while it fires: one that begins before they do is announced then.
    """
    if found.surge not in rules.watched:
        return True
    alert = Alert(
        id=found.id,
        state=AlertState.FIRING,
        rule=found.rule,
        surge=found.surge,
        key=found.key,
        title=found.key,
        severity=found.severity,
        window=found.window,
        observed=found.observed,
        expected=found.expected,
        total=found.total,
        share=found.share,
        expected_share=found.expected_share,
        p_value=found.p_value,
        sources=found.sources,
        stories=found.stories,
        model_version="",
        started_at=found.started_at,
        fired_at=found.fired_at,
        link="",
    )
    # One that fires at the end of the input is looked at as far as its figures go.
    at, end = found.fired_at, found.resolved_at or max(found.fired_at, found.window.end)
    while at <= end:
        if rules.verdict(alert, at).taken_by:
            return True
        at += _MINUTE
    return False
