"""A few rules over the model: auditable, in one TOML file, and every item they touch says so.

The bundled file is `models/data/rules.toml`; `sentiment_rules_file` in the settings names another one instead.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Final, Literal, NamedTuple

import msgspec

from monitor.errors import ConfigurationError
from monitor.records import AppliedRule, SentimentScore

__all__ = ["PREFIX", "Match", "Rule", "SentimentRules", "load_rules"]

PREFIX: Final = "rule:"
_SEARCHED: Final = 4_000
_WORDS_CHARS: Final = 200


class Rule(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One rule; `models/data/rules.toml` says what the fields mean."""

    name: str
    pattern: str
    effect: Literal["not_positive", "not_negative", "flag"]
    why: str
    unless: str = ""
    ceiling: float = 0.2


class Match(NamedTuple):
    """A rule that speaks about a text, and the words in which it found what it looks for."""

    rule: Rule
    words: str


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    rule: list[Rule] = []


def _limited(sentiment: SentimentScore, effect: str, ceiling: float) -> SentimentScore:
    """`sentiment` with one side cut to `ceiling`; what is cut off goes to the other two in their proportion."""
    p = [sentiment.negative, sentiment.neutral, sentiment.positive]
    side = 2 if effect == "not_positive" else 0
    if p[side] <= ceiling:
        return sentiment
    others = [i for i in range(3) if i != side]
    rest = sum(p[i] for i in others)
    for i in others:
        p[i] = (1.0 - ceiling) * (p[i] / rest if rest > 0 else 0.5)
    p[side] = ceiling
    return SentimentScore.of(p)


class SentimentRules:
    """Compiled rules, applied in the order of the file."""

    def __init__(self, rules: Sequence[Rule]) -> None:
        """Raises `ConfigurationError` naming the rule whose pattern or ceiling is wrong."""
        names = [rule.name for rule in rules]
        self.rules = {rule.name: rule for rule in rules}
        if len(self.rules) != len(names):
            raise ConfigurationError("Two sentiment rules have the same name.", "Names stand in the flags of items.")
        self._compiled: list[tuple[Rule, re.Pattern[str], re.Pattern[str] | None]] = []
        for rule in rules:
            # Below a third, so that the side that was cut is never the likeliest.
            if not 0.0 <= rule.ceiling < 1 / 3:
                raise ConfigurationError(f"The sentiment rule {rule.name} needs a ceiling from 0 to below 1/3.")
            try:
                pattern = re.compile(rule.pattern, re.IGNORECASE)
                unless = re.compile(rule.unless, re.IGNORECASE) if rule.unless else None
            except re.error as error:
                raise ConfigurationError(f"The sentiment rule {rule.name} has a wrong pattern: {error}.") from error
            self._compiled.append((rule, pattern, unless))

    def matching(self, text: str) -> list[Match]:
        """Rules that speak about a text; its first 4,000 characters are searched."""
        searched = text[:_SEARCHED]
        found = []
        for rule, pattern, unless in self._compiled:
            place = pattern.search(searched)
            if place and not (unless and unless.search(searched)):
                found.append(Match(rule, place.group()[:_WORDS_CHARS]))
        return found

    @staticmethod
    def apply(
        matches: Sequence[Match], sentiment: SentimentScore, entity: str = ""
    ) -> tuple[SentimentScore, tuple[AppliedRule, ...]]:
        """The sentiment after the rules, and a note of each that changed it or only marks.

        `entity` names what the sentiment is about; empty: the item.
        """
        notes = []
        for rule, words in matches:
            limited = sentiment if rule.effect == "flag" else _limited(sentiment, rule.effect, rule.ceiling)
            changed = limited is not sentiment
            if changed or rule.effect == "flag":
                before = sentiment if changed else None
                notes.append(
                    AppliedRule(
                        name=rule.name, effect=rule.effect, why=rule.why, words=words, before=before, entity=entity
                    )
                )
            sentiment = limited
        return sentiment, tuple(notes)


def load_rules(path: Path | None = None) -> SentimentRules:
    """Rules of a TOML file, or the bundled ones. Raises `ConfigurationError` saying what is wrong."""
    origin = str(path) if path else "rules.toml"
    try:
        content = (
            path.read_bytes() if path else (resources.files("models") / "data" / "rules.toml").read_bytes()
        ).decode()
        file = msgspec.convert(tomllib.loads(content), _File)
    except OSError as error:
        raise ConfigurationError(f"The sentiment rules {origin} cannot be read: {error.strerror}.") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, msgspec.ValidationError) as error:
        raise ConfigurationError(f"The sentiment rules {origin} are not valid: {error}.") from error
    return SentimentRules(file.rule)
