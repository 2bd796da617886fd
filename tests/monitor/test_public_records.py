"""What other people's programs read: every public record with all of its fields, as its published schema says."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, get_args

import msgspec
import pytest
from jsonschema import Draft202012Validator

from monitor.alerts.records import Alert, AlertState, AlertWindow
from monitor.records import (
    SCHEMA_VERSION,
    AppliedRule,
    EntityScore,
    Modality,
    NewsItem,
    ScoredItem,
    Sentiment,
    SentimentScore,
    TopicScore,
    encode,
)

SCHEMAS = Path(__file__).parents[2] / "docs" / "schemas"
AT = datetime(2026, 3, 2, 9, 30, tzinfo=UTC)
NEUTRAL = SentimentScore(label=Sentiment.NEUTRAL, negative=0.0, neutral=1.0, positive=0.0)

# Each with the least that it can be made from: whatever has a default is left to it.
RECORDS: dict[str, Any] = {
    "news-item": NewsItem(id="a", published_at=AT, title="t"),
    "scored-item": ScoredItem(
        id="a",
        published_at=AT,
        sentiment=NEUTRAL,
        topic=TopicScore(label="macro", probabilities={"macro": 1.0}),
        modality=Modality.TEXT,
        model_version="m",
        scored_at=AT,
        entities=(EntityScore(name="Acme", sentiment=NEUTRAL),),
        rules=(AppliedRule(name="r", effect="flag", why="w", words="x"),),
    ),
    "alert": Alert(
        id="e",
        state=AlertState.FIRING,
        rule="r",
        key="market",
        title="Market",
        severity="high",
        window=AlertWindow(minutes=15, start=AT, end=AT),
        observed=3,
        expected=0.5,
        total=4,
        share=0.75,
        expected_share=0.2,
        p_value=1e-4,
        sources=2,
        stories=(),
        model_version="m",
        started_at=AT,
        fired_at=AT,
        link="",
    ),
}


def kinds(kind: Any) -> Iterator[type]:
    """A record's class and those of the records in it."""
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        yield kind
        for field in msgspec.structs.fields(kind):
            yield from kinds(field.type)
    for inner in get_args(kind):
        yield from kinds(inner)


def missing(record: Any, written: Any, place: str = "") -> list[str]:
    """Fields of a record, and of the records in it, that are not in what was written."""
    if isinstance(record, tuple):
        return [name for one, found in zip(record, written, strict=True) for name in missing(one, found, place)]
    if not isinstance(record, msgspec.Struct):
        return []
    absent = [f"{place}{name}" for name in record.__struct_fields__ if name not in written]
    for name in record.__struct_fields__:
        if name in written:
            absent += missing(getattr(record, name), written[name], f"{place}{name}.")
    return absent


@pytest.mark.parametrize("name", RECORDS)
def test_a_record_has_all_its_fields_and_its_schema_version(name: str) -> None:
    written = json.loads(encode(RECORDS[name]))
    assert missing(RECORDS[name], written) == []
    assert written["schema_version"] == SCHEMA_VERSION


@pytest.mark.parametrize("name", RECORDS)
def test_no_part_of_a_record_leaves_its_defaults_out(name: str) -> None:
    assert [kind.__name__ for kind in kinds(type(RECORDS[name])) if kind.__struct_config__.omit_defaults] == []


@pytest.mark.parametrize("name", RECORDS)
def test_what_is_written_is_what_the_schema_says(name: str) -> None:
    schema = json.loads((SCHEMAS / f"{name}.schema.json").read_text(encoding="utf-8"))
    Draft202012Validator.check_schema(schema)
    written = json.loads(encode(RECORDS[name]))
    assert [error.message for error in Draft202012Validator(schema).iter_errors(written)] == []


def test_every_schema_and_every_topic_is_told_of() -> None:
    from consumers.topics import topic_specs
    from monitor.settings import Settings

    told = (SCHEMAS / "README.md").read_text(encoding="utf-8")
    assert [path.name for path in SCHEMAS.glob("*.json") if path.name not in told] == []
    assert [spec.name for spec in topic_specs(Settings()) if f"`{spec.name}`" not in told] == []
