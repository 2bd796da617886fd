from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import Engine

from monitor.errors import InputError
from monitor.records import Sentiment
from monitor.storage.engine import reading, writing
from monitor.storage.labels import (
    Label,
    add_labels,
    count_labels,
    decode_label,
    label_history,
    list_labels,
    read_labels,
    training_rows,
    write_labels,
)
from monitor.taxonomy import bundled_taxonomy

AT = datetime(2026, 3, 2, 14, 0, tzinfo=UTC)
TAXONOMY = bundled_taxonomy()


def label(number: int = 1, **more: Any) -> Label:
    fields: dict[str, Any] = {
        "id": f"l{number}",
        "text": f"Text {number}",
        "created_at": AT + timedelta(minutes=number),
        "author": "anna",
        "item_id": f"i{number}",
        "sentiment": Sentiment.NEGATIVE,
        "topic": "earnings",
        "entities": {"Müller AG": Sentiment.POSITIVE},
        "comment": "so it is",
    }
    return Label(**(fields | more))


def parse(*lines: object) -> list[Label]:
    data = b"\n".join(line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines)
    return read_labels(data, taxonomy=TAXONOMY, author="import", max_text_chars=1000)


def test_stored_labels_come_back(store: Engine) -> None:
    with writing(store) as connection:
        assert add_labels(connection, [label(1), label(2), label(1)]) == 2
        assert add_labels(connection, [label(2, sentiment=Sentiment.POSITIVE), label(3, topic=None)]) == 1
        assert add_labels(connection, []) == 0
    with reading(store) as connection:
        assert list_labels(connection) == [label(3, topic=None), label(2), label(1)]
        assert list_labels(connection, since=AT + timedelta(minutes=2)) == [label(3, topic=None)]
        assert list_labels(connection, limit=1) == [label(3, topic=None)]
        assert list_labels(connection, author="bert") == []
        assert label_history(connection, "i2") == [label(2)]
        assert count_labels(connection) == 3
        assert count_labels(connection, since=AT + timedelta(minutes=1)) == 2


def test_training_takes_the_newest_judgement_of_each_field(store: Engine) -> None:
    same = {"item_id": "i", "text": "Acme falls"}
    with writing(store) as connection:
        add_labels(
            connection,
            [
                label(1, **same, sentiment=Sentiment.NEUTRAL, topic="ipo", entities={"Acme": Sentiment.NEUTRAL}),
                label(2, **same, sentiment=Sentiment.NEGATIVE, topic=None, entities={"Bolt": Sentiment.POSITIVE}),
                label(3, item_id="", text="No item", sentiment=None, entities={}),
            ],
        )
    with reading(store) as connection:
        first, second = training_rows(connection)
        assert (first.text, first.sentiment, first.topic) == ("Acme falls", Sentiment.NEGATIVE, "ipo")
        assert first.entities == {"Acme": Sentiment.NEUTRAL, "Bolt": Sentiment.POSITIVE}
        assert (second.text, second.sentiment, second.topic) == ("No item", None, "earnings")
        assert [row.text for row in training_rows(connection, since=AT + timedelta(minutes=2))] == ["No item"]


def test_written_labels_are_read_back() -> None:
    labels = [label(1), label(2, sentiment=None, entities={}, comment="", item_id="")]
    assert read_labels(write_labels(labels), taxonomy=TAXONOMY, author="x", max_text_chars=1000) == labels


def test_importing_a_file_twice_stores_it_once(store: Engine) -> None:
    lines = [{"text": "Acme falls", "sentiment": "negative"}, {"text": "Acme falls", "topic": "ipo"}]
    with writing(store) as connection:
        assert add_labels(connection, parse(*lines)) == 2
    with writing(store) as connection:
        assert add_labels(connection, parse(*lines, {"text": "Acme rises", "sentiment": "positive"})) == 1


def test_a_minimal_line() -> None:
    (found,) = parse(b"\xef\xbb\xbf" + b' {"text": " Acme falls ", "sentiment": "negative", "other": 1}\r', b"", b"  ")
    assert (found.text, found.sentiment, found.author) == ("Acme falls", Sentiment.NEGATIVE, "import")


@pytest.mark.parametrize(
    ("line", "what"),
    [
        (b"{", "not JSON"),
        (b"\xff\xfe", "not JSON"),
        ([1], "not a JSON object"),
        ({"sentiment": "negative"}, "text is missing"),
        ({"text": "  ", "sentiment": "negative"}, "text is missing"),
        ({"text": "a"}, "at least one"),
        ({"text": "a", "sentiment": "bad"}, "must be negative, neutral or positive"),
        ({"text": "a", "topic": "sport"}, "not one of the taxonomy"),
        ({"text": "a", "entities": ["x"]}, "must map names"),
        ({"text": "a", "entities": {"x": "up"}}, "sentiment of 'x'"),
        ({"text": "a", "sentiment": "neutral", "created_at": "soon"}, "created_at"),
        ({"text": 3, "sentiment": "neutral"}, "text must be a string"),
        ({"text": "a" * 1001, "sentiment": "neutral"}, "limit is 1000"),
        ({"text": "a", "sentiment": "neutral", "id": "x" * 65}, "limit is 64"),
    ],
)
def test_a_bad_line_is_named(line: object, what: str) -> None:
    with pytest.raises(InputError, match=what) as caught:
        parse({"text": "good", "sentiment": "neutral"}, b"", line)
    assert caught.value.message.startswith("line 3:")


@given(
    st.text(min_size=1, max_size=40),
    st.sampled_from(list(Sentiment)),
    st.dictionaries(st.text(min_size=1, max_size=8), st.sampled_from(list(Sentiment)), max_size=3),
)
def test_decoding_is_stable(text: str, sentiment: Sentiment, entities: dict[str, Sentiment]) -> None:
    """Whatever was taken in once is taken in again as the same label."""
    fields = {"text": text, "sentiment": sentiment.value, "entities": {k: v.value for k, v in entities.items()}}
    try:
        first = decode_label(fields, where="line 1", taxonomy=TAXONOMY, author="a", now=AT)
    except InputError:
        assert not text.replace("\x00", "").strip()
        return
    again = decode_label(fields, where="line 1", taxonomy=TAXONOMY, author="a", now=AT + timedelta(days=1))
    assert first.id == again.id
    assert read_labels(write_labels([first]), taxonomy=TAXONOMY, author="b", max_text_chars=1000) == [first]
