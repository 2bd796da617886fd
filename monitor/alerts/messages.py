"""Notices as text for people: what chat, mail and pagers show.

The text is plain; whoever sends it escapes it for where it goes. The title is made of our own words and the key alone,
without characters that any markup gives a meaning, since some services do not escape titles.
"""

from __future__ import annotations

import re
from typing import Final

import msgspec

from monitor.alerts.records import (
    SEVERITIES,
    Alert,
    AlertState,
    AlertStory,
    Digest,
    DigestEntry,
    Notice,
    clean_text,
    expectation,
)
from monitor.surges.sorts import NEGATIVE, VOLUME, stories_of

__all__ = ["Message", "message_of"]

STORIES_SHOWN: Final = 5
_MARKUP = re.compile(r"[^\w .,:;&$%+/'-]", re.UNICODE)


class Message(msgspec.Struct, frozen=True, kw_only=True):
    """A notice as text. `state` and `severity` are those of the alert (of the gravest one in a digest); `subject` is
    the alert's id, by which a pager joins what belongs together, empty for a digest; `link` leads to the dashboard."""

    title: str
    body: str
    state: AlertState
    severity: str
    subject: str
    link: str


def _plain(text: str) -> str:
    return " ".join(_MARKUP.sub(" ", text).split())


def _headline(about: Alert | DigestEntry) -> str:
    title = _plain(about.title)
    if about.state is AlertState.FIRING:
        return f"{about.severity.upper()}: {title}, {about.observed} {stories_of(about.surge)}"
    # Two sorts may surge under one key: which of them is over?
    which = "" if about.surge == NEGATIVE else f", {stories_of(about.surge)}"
    return f"{about.state.value.capitalize()}: {title}{which}"


def _figures(alert: Alert) -> str:
    time = f"in the {alert.window.minutes} minutes to {alert.window.end:%Y-%m-%d %H:%M} UTC"
    rest = f"p = {alert.p_value:.1e} over all windows; {alert.sources} sources."
    if alert.surge == VOLUME:
        return f"{alert.total} stories {time}, {expectation(alert.expected)} expected; {rest}"
    return (
        f"{alert.observed} of {alert.total} stories {alert.surge} {time}, {expectation(alert.expected)} expected; "
        f"share {alert.share:.0%} against {alert.expected_share:.0%}; {rest}"
    )


def _surely(alert: Alert, story: AlertStory) -> str:
    if alert.surge == VOLUME:
        return ""
    probability = story.p_negative if alert.surge == NEGATIVE else story.p_positive
    return f", p({alert.surge}) {probability:.2f}"


def _of_notice(notice: Notice) -> Message:
    alert = notice.data
    lines = [_figures(alert)]
    if alert.state is AlertState.ACKNOWLEDGED:
        lines.append(f"Acknowledged by {clean_text(alert.acknowledged_by or 'somebody', 128)}.")
    if alert.state is AlertState.RESOLVED and alert.resolved_at:
        lines.append(f"Over since {alert.resolved_at:%Y-%m-%d %H:%M} UTC.")
    for story in alert.stories[:STORIES_SHOWN]:
        copies = f", {story.copies} copies" if story.copies > 1 else ""
        address = f" {story.url}" if story.url else ""
        lines.append(f"- {story.title} ({story.source}{copies}{_surely(alert, story)}){address}")
    if len(alert.stories) > STORIES_SHOWN:
        lines.append(f"and {len(alert.stories) - STORIES_SHOWN} more")
    lines.append(alert.link)
    return Message(
        title=_headline(alert),
        body="\n".join(lines),
        state=alert.state,
        severity=alert.severity,
        subject=alert.id,
        link=alert.link,
    )


def _of_digest(entries: tuple[DigestEntry, ...]) -> Message:
    firing = [entry for entry in entries if entry.state is AlertState.FIRING]
    gravest = max(firing or entries, key=lambda e: SEVERITIES.index(e.severity) if e.severity in SEVERITIES else -1)
    lines = [f"- {_headline(e)} ({expectation(e.expected)} expected) {e.link}" for e in entries]
    return Message(
        title=f"{len(entries)} alerts, {len(firing)} of them firing",
        body="\n".join(lines),
        state=AlertState.FIRING if firing else gravest.state,
        severity=gravest.severity,
        subject="",
        link=gravest.link,
    )


def message_of(body: str) -> Message:
    """The text of a notice or digest from the body that a webhook would get.

    Raises `msgspec.ValidationError` when it is neither.
    """
    kind = msgspec.json.decode(body)
    if isinstance(kind, dict) and kind.get("type") == "alert.digest":
        return _of_digest(msgspec.convert(kind, Digest).data.notices)
    return _of_notice(msgspec.convert(kind, Notice))
