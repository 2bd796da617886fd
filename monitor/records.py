"""The records that travel between the processes, and the one place that decodes them.

Every record is an immutable `msgspec.Struct`; `encode` and the `decode_*` functions are the only ways on and off
the wire. The JSON Schemas in `docs/schemas/` are generated from these classes (`scripts/generate.py`). A public record
carries every one of its fields and its schema version, so that a reader need not know the defaults.
Times are UTC; on the wire they are RFC 3339 strings.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Annotated, Any, Final, TypeVar

import msgspec

SCHEMA_VERSION: Final = 1
EARLIEST: Final = datetime(1990, 1, 1, tzinfo=UTC)
MAX_FUTURE: Final = timedelta(days=1)
MAX_ID_CHARS: Final = 256
# A chart that is scored by itself is stored as an item with the id `chart:<chart_id>`.
MAX_CHART_ID_CHARS: Final = MAX_ID_CHARS - len("chart:")
MAX_TICKERS: Final = 64
MAX_CHART_IDS: Final = 64

_TICKER = re.compile(r"[^\s:,]{1,32}")

T = TypeVar("T")


class Sentiment(StrEnum):
    """The three classes of sentiment, in the order of every probability vector."""

    NEGATIVE = "negative"
    NEUTRAL = "neutral"
    POSITIVE = "positive"


class Trend(StrEnum):
    """What a chart shows, in the order of its probability vector; `NOT_A_CHART` is an abstention, not a class."""

    DOWN = "down"
    FLAT = "flat"
    UP = "up"
    NOT_A_CHART = "not_a_chart"


class Modality(StrEnum):
    """Which inputs a score was made from."""

    TEXT = "text"
    CHART = "chart"
    BOTH = "both"


class NewsItem(msgspec.Struct, frozen=True, kw_only=True):
    """One piece of news as a feed yields it and as it lies on the `news` topic.

    `title` or `body` is never empty (but for the stand-in item of a chart that came alone).
    """

    id: str
    published_at: datetime
    title: str = ""
    body: str = ""
    source: str = ""
    url: str = ""
    lang: str = ""
    tickers: tuple[str, ...] = ()
    kind: str = "news"
    chart_ids: tuple[str, ...] = ()
    schema_version: int = SCHEMA_VERSION

    @property
    def text(self) -> str:
        """Title and body as one text for the classifier."""
        return f"{self.title}\n{self.body}".strip()


class Chart(msgspec.Struct, frozen=True, kw_only=True):
    """One chart image as it lies on the `charts` topic: the value is `image`, all else travels in headers."""

    chart_id: str
    image: bytes
    published_at: datetime
    item_id: str = ""
    tickers: tuple[str, ...] = ()


class SentimentScore(msgspec.Struct, frozen=True, kw_only=True):
    """Calibrated probabilities of sentiment; they sum to 1.

    `score` is p(positive) - p(negative), in [-1, 1]: always what the probabilities say, whatever was handed in.
    """

    label: Sentiment
    negative: float
    neutral: float
    positive: float
    score: float = 0.0

    def __post_init__(self) -> None:
        msgspec.structs.force_setattr(self, "score", self.positive - self.negative)

    @classmethod
    def of(cls, probabilities: Iterable[float]) -> SentimentScore:
        """From a vector (3,) in the order of `Sentiment`."""
        p = [float(x) for x in probabilities]
        label = list(Sentiment)[max(range(3), key=p.__getitem__)]
        return cls(label=label, negative=p[0], neutral=p[1], positive=p[2])


class TopicScore(msgspec.Struct, frozen=True, kw_only=True):
    """Topic of an item: the likeliest label and the probabilities of all labels of the taxonomy."""

    label: str
    probabilities: dict[str, float]


class EntityScore(msgspec.Struct, frozen=True, kw_only=True):
    """Sentiment towards one entity. `ticker` is empty when the name could not be linked.

    `relevance` in [0, 1] says how much the item is about this entity.
    """

    name: str
    sentiment: SentimentScore
    ticker: str = ""
    relevance: float = 1.0


class ChartScore(msgspec.Struct, frozen=True, kw_only=True):
    """What the picture shows: net move over its own high-low range. Describes the picture, never the future.

    `p_chart` is the probability that the picture is a price chart at all; below the bar `label` is `not_a_chart`.
    """

    chart_id: str
    label: Trend
    down: float
    flat: float
    up: float
    p_chart: float


class AppliedRule(msgspec.Struct, frozen=True, kw_only=True):
    """A rule that spoke about an item: what it is called, the words that it found, and why it is there.

    `effect` is `not_positive`, `not_negative` or `flag`. `before` is the model's own sentiment where the rule changed
    it. `entity` names the entity whose sentiment was changed; empty: the item's.
    """

    name: str
    effect: str
    why: str
    words: str
    before: SentimentScore | None = None
    entity: str = ""


class ScoredItem(msgspec.Struct, frozen=True, kw_only=True):
    """One scored item: the record of the public `scored` topic and the line that `score` prints."""

    id: str
    published_at: datetime
    sentiment: SentimentScore
    topic: TopicScore
    modality: Modality
    model_version: str
    scored_at: datetime
    title: str = ""
    body: str = ""
    source: str = ""
    url: str = ""
    lang: str = ""
    tickers: tuple[str, ...] = ()
    kind: str = "news"
    chart_ids: tuple[str, ...] = ()
    entities: tuple[EntityScore, ...] = ()
    chart: ChartScore | None = None
    flags: tuple[str, ...] = ()
    rules: tuple[AppliedRule, ...] = ()
    schema_version: int = SCHEMA_VERSION

    def ticker_sentiment(self, ticker: str) -> SentimentScore:
        """Sentiment towards `ticker`: its entity's if one was linked to it, else the whole item's."""
        for entity in self.entities:
            if entity.ticker == ticker:
                return entity.sentiment
        return self.sentiment


# Epoch milliseconds between 1970 and 2109.
EventMs = Annotated[int, msgspec.Meta(ge=0, lt=1 << 42)]


class Contribution(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, array_like=True, gc=False):
    """What one item adds to one window key. Internal: lists of these travel on `contributions`.

    `at` is the event time in epoch milliseconds. `signature` is the story's (`monitor.stories.signature`), by which
    copies of it are found. `title` and `url` are there in a back-test only: live they are read from the store.
    `retracted` says that the item no longer counts under the key: it was scored again, to another topic or with other
    tickers. `negative` and `positive` are the label's; a neutral item is neither.
    """

    key: Annotated[str, msgspec.Meta(min_length=1, max_length=160)]
    item_id: Annotated[str, msgspec.Meta(min_length=1, max_length=256)]
    at: EventMs
    p_negative: Annotated[float, msgspec.Meta(ge=0, le=1)]
    score: Annotated[float, msgspec.Meta(ge=-1, le=1)]
    negative: bool
    signature: Annotated[bytes, msgspec.Meta(max_length=48)]
    source: str = ""
    title: str = ""
    url: str = ""
    retracted: bool = False
    positive: bool = False


class SourceWatermark(msgspec.Struct, frozen=True, array_like=True):
    """How far one input partition (`news:0`, `charts:3`) has been worked off: every record up to `at` (epoch ms,
    event time) is in this or an earlier record. `idle` says that the partition is read to its end and quiet, `ended`
    that it has been for so long that nothing more is expected for the minute of `at`."""

    source: str
    at: EventMs
    idle: bool
    ended: bool = False


class ContributionBatch(msgspec.Struct, frozen=True, kw_only=True):
    """One record of `contributions`: what one scoring batch adds to the keys of one partition.

    `sources` tells the progress of the input partitions that the sending worker owns; `source_count` is the number
    of input partitions of all workers together, so that the aggregator knows when it has heard of every one.
    """

    contributions: tuple[Contribution, ...]
    sources: tuple[SourceWatermark, ...]
    source_count: int
    schema_version: int = SCHEMA_VERSION


class Rejected(msgspec.Struct, frozen=True, kw_only=True):
    """Why a record cannot be processed. `code` is stable and short, `reason` one sentence for a person."""

    code: str
    reason: str


_decoder: Final = msgspec.json.Decoder()
_encoder: Final = msgspec.json.Encoder()


def encode(record: Any) -> bytes:
    """JSON bytes of any record."""
    return _encoder.encode(record)


def decode_strict(kind: type[T], value: bytes) -> T:
    """A record that this product wrote itself. Raises `msgspec.ValidationError` on anything else."""
    return msgspec.json.decode(value, type=kind)


def parse_time(value: object) -> datetime | None:
    """RFC 3339 (or a date alone) to UTC; None when it is neither. A time without zone is taken as UTC."""
    if not isinstance(value, str) or len(value) > 64:
        return None
    try:
        at = datetime.fromisoformat(value.strip())
    except ValueError:
        return None
    return at.replace(tzinfo=UTC) if at.tzinfo is None else at.astimezone(UTC)


def check_time(value: object, now: datetime) -> datetime | Rejected:
    """`published_at` of a record, or why it is absurd. `now` is the reader's clock (UTC)."""
    if value is None or value == "":
        return Rejected(code="missing_published_at", reason="The field published_at is missing.")
    try:
        at = parse_time(value)
    except OverflowError:
        at = None
    if at is None:
        return Rejected(code="bad_published_at", reason=f"published_at is not an RFC 3339 time: {str(value)[:64]!r}.")
    if at < EARLIEST:
        return Rejected(code="absurd_date", reason=f"published_at {at.isoformat()} lies before 1990.")
    if at > now + MAX_FUTURE:
        return Rejected(code="absurd_date", reason=f"published_at {at.isoformat()} lies over a day in the future.")
    return at


def derive_id(source: str, url: str, title: str, body: str, published_at: datetime) -> str:
    """A stable id for an item that has none: the same news from the same place gives the same id."""
    parts = (source, url) if url else (source, title, body, published_at.isoformat())
    return hashlib.sha256("\x1f".join(parts).encode("utf-8", "surrogatepass")).hexdigest()[:32]


def derive_chart_id(item_id: str, image: bytes) -> str:
    """A stable id for a chart that has none: the same picture of the same item gives the same id, of another item, or
    alone (`item_id` empty), another one."""
    own = item_id.encode("utf-8", "surrogatepass") + b"\x1f" if item_id else b""
    return hashlib.sha256(own + image).hexdigest()[:32]


def _text(fields: Mapping[str, Any], name: str) -> str | Rejected:
    value = fields.get(name)
    if value is None:
        return ""
    if not isinstance(value, str):
        return Rejected(code="bad_field", reason=f"The field {name} must be a string.")
    return value.replace("\x00", "").strip()


def _names(fields: Mapping[str, Any], name: str) -> tuple[str, ...] | Rejected:
    value = fields.get(name)
    if value is None:
        return ()
    if not isinstance(value, list) or not all(isinstance(x, str) for x in value):
        return Rejected(code="bad_field", reason=f"The field {name} must be a list of strings.")
    names = (x.replace("\x00", "").strip() for x in value)
    return tuple(dict.fromkeys(name for name in names if name))


def normalise_tickers(values: Iterable[str]) -> tuple[str, ...]:
    """Upper case, without `$`, each once, in order; what cannot be a ticker is left out."""
    seen = (v.strip().lstrip("$").upper() for v in values)
    return tuple(dict.fromkeys(v for v in seen if _TICKER.fullmatch(v)))[:MAX_TICKERS]


def news_item(fields: object, now: datetime) -> NewsItem | Rejected:
    """A news item from decoded JSON, checked field by field; unknown fields are ignored."""
    if not isinstance(fields, dict):
        return Rejected(code="not_an_object", reason="The record is not a JSON object.")
    texts: dict[str, str] = {}
    for name in ("id", "source", "url", "title", "body", "lang", "kind"):
        text = _text(fields, name)
        if isinstance(text, Rejected):
            return text
        texts[name] = text
    if not texts["title"] and not texts["body"]:
        return Rejected(code="no_text", reason="Both title and body are missing or empty.")
    at = check_time(fields.get("published_at"), now)
    if isinstance(at, Rejected):
        return at
    tickers, chart_ids = _names(fields, "tickers"), _names(fields, "chart_ids")
    if isinstance(tickers, Rejected):
        return tickers
    if isinstance(chart_ids, Rejected):
        return chart_ids
    item_id = texts["id"] or derive_id(texts["source"], texts["url"], texts["title"], texts["body"], at)
    if len(item_id) > MAX_ID_CHARS:
        return Rejected(code="bad_id", reason=f"The id is longer than {MAX_ID_CHARS} characters.")
    if any(len(chart_id) > MAX_CHART_ID_CHARS for chart_id in chart_ids):
        return Rejected(code="bad_id", reason=f"A chart's id is longer than {MAX_CHART_ID_CHARS} characters.")
    return NewsItem(
        id=item_id,
        published_at=at,
        title=texts["title"],
        body=texts["body"],
        source=texts["source"],
        url=texts["url"],
        lang=texts["lang"],
        tickers=normalise_tickers(tickers),
        kind=texts["kind"] or "news",
        chart_ids=chart_ids[:MAX_CHART_IDS],
    )


def decode_json(value: bytes | None) -> Any:
    """What JSON says, or a `Rejected` that tells why it is none. Never raises."""
    if not value:
        return Rejected(code="empty", reason="The record is empty.")
    try:
        text = value.decode("utf-8")
    except UnicodeDecodeError as error:
        return Rejected(code="bad_encoding", reason=f"The record is not UTF-8 (byte {error.start}).")
    try:
        return _decoder.decode(text)
    except (msgspec.DecodeError, RecursionError) as error:
        return Rejected(code="bad_json", reason=f"The record is not JSON: {error}.")


def decode_news(value: bytes | None, now: datetime) -> NewsItem | Rejected:
    """A news item from the bytes of a Kafka record. Never raises."""
    fields = decode_json(value)
    return fields if isinstance(fields, Rejected) else news_item(fields, now)


def decode_chart(
    value: bytes | None, headers: Iterable[tuple[str, bytes]], now: datetime, max_bytes: int
) -> Chart | Rejected:
    """A chart from a Kafka record: image bytes in the value, all else in headers. Does not decode the image.

    Without a `chart_id` header the id is derived (`derive_chart_id`). `tickers` is a comma-separated list.
    """
    if not value:
        return Rejected(code="empty", reason="The image is empty.")
    if len(value) > max_bytes:
        return Rejected(code="oversized", reason=f"The image has {len(value)} bytes; the limit is {max_bytes}.")
    fields: dict[str, str] = {}
    for name, raw in headers:
        try:
            fields[name] = (raw or b"").decode("utf-8").replace("\x00", "").strip()
        except UnicodeDecodeError:
            return Rejected(code="bad_encoding", reason=f"The header {name[:64]} is not UTF-8.")
    at = check_time(fields.get("published_at"), now)
    if isinstance(at, Rejected):
        return at
    chart_id = fields.get("chart_id") or derive_chart_id(fields.get("item_id", ""), value)
    if len(chart_id) > MAX_CHART_ID_CHARS or len(fields.get("item_id", "")) > MAX_ID_CHARS:
        return Rejected(
            code="bad_id",
            reason=f"An id is too long: chart_id has {MAX_CHART_ID_CHARS}, item_id {MAX_ID_CHARS} characters at most.",
        )
    return Chart(
        chart_id=chart_id,
        image=value,
        published_at=at,
        item_id=fields.get("item_id", ""),
        tickers=normalise_tickers(fields.get("tickers", "").split(",")),
    )
