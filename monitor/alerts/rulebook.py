"""The rules in force: those of the configuration and those kept in the store, read anew whenever they are needed, so
that a rule made in the dashboard holds at once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime
from typing import Any

from sqlalchemy import Connection

from monitor.alerts.rules import Rule, Rules, rule_of
from monitor.alerts.tomlfile import Entry
from monitor.errors import RuleError
from monitor.storage.rules import BUILT_IN_ORIGIN, STORE, list_rules, sync_rules
from monitor.surges.judge import JudgeConfig
from monitor.telemetry import get_logger

__all__ = ["in_force", "rule_from", "take_up"]

log = get_logger(__name__)


def rule_from(definition: Mapping[str, Any], judge: JudgeConfig) -> Rule:
    """A rule from its fields, as the store keeps it or a form gives it. Raises `RuleError`."""
    return rule_of(Entry("the rule", "rules", 1, [""], dict(definition)), judge)


def take_up(conn: Connection, configured: Rules, now: datetime) -> None:
    """Tell the store which rules the configuration has."""
    definitions = {rule.name: rule.definition for rule in configured.rules}
    built_in = next((rule.name for rule in configured.rules if rule.built_in), "")
    sync_rules(conn, definitions, now, built_in=built_in)


def in_force(conn: Connection, configured: Rules) -> Rules:
    """The configured rules, the built-in one as it was switched, and those of the store.

    A stored rule that is not valid any more (an exchange or a window that is gone) is left out, and reported.
    """
    stored = list_rules(conn)
    switched = {rule.name: rule.enabled for rule in stored if rule.origin == BUILT_IN_ORIGIN}
    rules = {
        rule.name: rule if switched.get(rule.name, True) else replace(rule, enabled=False) for rule in configured.rules
    }
    for row in stored:
        if row.origin != STORE or row.name in rules:
            continue
        try:
            rules[row.name] = rule_from(row.definition, configured.judge)
        except RuleError as error:
            log.warning("a stored rule cannot be used", rule=row.name, error=error.message)
    return Rules(configured.judge, tuple(rules.values()))
