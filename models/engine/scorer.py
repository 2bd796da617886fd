"""The scorer: items and charts in, scored items out; batched, cached, and able to change its model while it runs."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final

import xxhash

from models.answers import LoadedModel
from models.bundle import load_model
from models.charts.images import decode_image
from models.engine.batching import token_budget
from models.engine.cache import RowScore, ScoreCache, row_key
from models.engine.forward import Forward, RowFailure, starved
from models.engine.items import Flag, Question, ScoringRequest, answer, entity_shown, rows_about
from models.engine.language import LanguageGuard, languages_of
from models.engine.packed import scripted
from models.engine.precision import prepare
from models.registry import resolve
from models.rules import SentimentRules, load_rules
from models.tokens import Row, TokenizedRow
from monitor.companies import CompanyTable, bundled_companies, load_companies
from monitor.errors import ModelError, StorageError
from monitor.linking import link
from monitor.records import Chart, NewsItem, Rejected, ScoredItem
from monitor.telemetry import get_logger

if TYPE_CHECKING:
    from sqlalchemy import Engine
    from torch import Tensor

    from monitor.settings import Settings

__all__ = ["Scorer", "open_scorer"]

log = get_logger(__name__)

_DECODERS: Final = 4


@dataclass(frozen=True)
class _Picture:
    """A chart ready for the network."""

    chart: Chart
    digest: bytes
    pixels: Tensor


@dataclass(frozen=True)
class _Serving:
    """Everything that belongs to one model; exchanged as a whole, so that a batch is scored by one model alone."""

    model: LoadedModel
    precision: str
    registered: str
    forward: Forward
    guard: LanguageGuard
    cache: ScoreCache

    @property
    def threshold(self) -> float:
        vision = self.model.network.vision
        return vision.threshold if vision is not None else 1.0


@dataclass(slots=True)
class _Asked:
    """One item on its way: its question, picture and the keys of its rows."""

    question: Question
    picture: _Picture | None
    whole: bytes = b""
    entities: dict[str, bytes] = field(default_factory=dict)


class Scorer:
    """Scores items with the model in force.

    `score` and `refresh` may be called from different threads. While the forward passes of one call run (one a core, or
    one after the other on a card), the items of another call are decoded, linked and split into tokens, or its answers
    put together. An error in any stage is raised in the call that it belongs to.
    """

    def __init__(self, settings: Settings, engine: Engine | None = None, name: str = "") -> None:
        """Load the model that `settings` and the registry in `engine` name, or the one called `name`.

        Raises `ModelError`, `ConfigurationError` or `StorageError`.
        """
        self._settings = settings
        self._engine = engine
        self._name = name
        self._rules: SentimentRules = load_rules(
            Path(settings.sentiment_rules_file) if settings.sentiment_rules_file else None
        )
        self._companies: CompanyTable = (
            load_companies(Path(settings.companies_file)) if settings.companies_file else bundled_companies()
        )
        self._decoders = ThreadPoolExecutor(_DECODERS, thread_name_prefix="decode")
        # None, as "" is a version too: that of the shipped default.
        self._refused: str | None = None
        found = resolve(settings, engine, name)
        self._serving = self._load(found.path, found.version)

    def _load(self, path: Path, registered: str, before: _Serving | None = None) -> _Serving:
        """A model ready to serve, with the language guard of the one `before` it where both read the same."""
        settings = self._settings
        model = load_model(path, device=settings.device or None)
        precision = prepare(model, settings)
        if model.device.type == "cpu":
            # On a card the interpreter waits for the card anyway, and errors keep their class.
            model.reader = scripted(model.reader)
        log.info("model loaded", version=model.version, device=str(model.device), precision=precision)
        guard = LanguageGuard(languages_of(model.file.text_backbone, settings.model_languages))
        if before is not None:
            if before.guard.languages == guard.languages:
                guard = before.guard
            else:
                guard.load()
        return _Serving(
            model=model,
            precision=precision,
            registered=registered,
            forward=Forward(
                model, token_budget=token_budget(settings, model.device), image_budget=settings.worker_image_budget
            ),
            guard=guard,
            cache=ScoreCache(settings.score_cache_rows),
        )

    @property
    def model_version(self) -> str:
        """Version of the model that the next call of `score` uses."""
        return self._serving.model.version

    @property
    def model(self) -> LoadedModel:
        """The model that the next call of `score` uses."""
        return self._serving.model

    @property
    def precision(self) -> str:
        """Arithmetic of the text encoder that the next call of `score` uses: fp32, bf16 or int8."""
        return self._serving.precision

    @property
    def token_budget(self) -> int:
        """Tokens in one forward pass at the most, on the device in use."""
        return self._serving.forward.token_budget

    def refresh(self) -> bool:
        """Take up a newly promoted model; True when the model has changed.

        The new one is loaded and made ready beside the old one, which serves until then; a batch in progress ends with
        the model that it began with. A version that cannot be loaded, for whatever reason, is refused once and not
        tried again, and the store being away changes nothing.
        """
        if self._engine is None or self._name or self._settings.model:
            return False
        try:
            found = resolve(self._settings, self._engine)
        except (StorageError, ModelError) as error:
            log.warning("cannot look for a newer model", error=str(error))
            return False
        if found.version in (self._serving.registered, self._refused):
            return False
        try:
            serving = self._load(found.path, found.version, self._serving)
        except Exception as error:  # noqa: BLE001 - whatever is wrong with the new one, the old one goes on
            self._refused = found.version
            log.error("promoted model cannot be loaded, the old one stays", version=found.version, error=str(error))
            return False
        self._refused = None
        self._serving = serving
        return True

    def score(self, requests: Sequence[ScoringRequest]) -> list[ScoredItem | Rejected]:
        """One result for each request, in their order.

        An item is rejected when it has neither text nor a readable chart (`no_text`, or why its chart cannot be
        read) or when the model fails on it alone (`unscorable`). Raises `ModelError` when the device has failed, or
        memory does not suffice for one item.
        """
        return self._score(requests, self._serving)

    def wait_for_room(self, seconds: float) -> None:
        """While rows for the model in force wait that go before those of a short text that comes now, for so long (in
        seconds) at the most."""
        self._serving.forward.wait_for_room(seconds)

    def rows_about(self, item: NewsItem | ScoredItem, text: str) -> dict[str, Row]:
        """What is read of an item's text when it is asked how its companies fare, by ticker; others take the item's
        sentiment, as all do of a text in a language that the model cannot read."""
        if self._serving.guard.unreadable(text) is not None:
            return {}
        mentions = link(text, item.tickers, title_chars=len(item.title) or None, table=self._companies)
        return rows_about(text, mentions, item.lang)

    def warm_up(self) -> None:
        """Load what is otherwise loaded when the first text needs it, which takes seconds."""
        self._serving.guard.load()
        self.score([ScoringRequest(NewsItem(id="first", published_at=datetime.now(UTC), title="Shares rise."))])

    def close(self) -> None:
        """Stop the threads that decode pictures."""
        self._decoders.shutdown(wait=False, cancel_futures=True)

    def _score(self, requests: Sequence[ScoringRequest], serving: _Serving) -> list[ScoredItem | Rejected]:
        pictures = self._pictures(requests, serving)
        asked: list[_Asked | Rejected] = [
            self._ask(request, picture, serving) for request, picture in zip(requests, pictures, strict=True)
        ]
        known, wanted = self._collect([one for one in asked if isinstance(one, _Asked)], serving)
        known |= self._run(wanted, serving)
        now = datetime.now(UTC)
        return [one if isinstance(one, Rejected) else self._answer(one, known, serving, now) for one in asked]

    def _pictures(self, requests: Sequence[ScoringRequest], serving: _Serving) -> list[_Picture | Rejected | None]:
        """The picture of each request: several are decoded at a time, one by one where memory does not suffice."""
        shown = [request for request in requests if request.charts]
        if not shown:
            return [None] * len(requests)
        try:
            found = iter(list(self._decoders.map(lambda request: self._picture(request, serving.model), shown)))
        except MemoryError:
            serving.forward.halve()
            try:
                found = iter([self._picture(request, serving.model) for request in shown])
            except MemoryError as error:
                raise starved(error) from error
        return [next(found) if request.charts else None for request in requests]

    def _picture(self, request: ScoringRequest, model: LoadedModel) -> _Picture | Rejected | None:
        """The first of the charts that can be read; why the first cannot when none can; None without charts."""
        problem: Rejected | None = None
        if request.charts and model.network.vision is None:
            return Rejected(code="charts_not_supported", reason="The model in force reads no pictures.")
        for chart in request.charts:
            image = decode_image(chart.image, max_pixels=self._settings.max_chart_pixels)
            if isinstance(image, Rejected):
                problem = problem or image
                continue
            assert model.network.vision is not None
            pixels = model.network.vision.preprocess(image)
            return _Picture(chart, xxhash.xxh3_128_digest(chart.image), pixels)
        return problem

    def _ask(
        self, request: ScoringRequest, picture: _Picture | Rejected | None, serving: _Serving
    ) -> _Asked | Rejected:
        item = request.item
        text = item.text[: self._settings.max_text_chars]
        if not text:
            if isinstance(picture, Rejected):
                return picture
            if picture is None:
                return Rejected(code="no_text", reason="The item has neither a text nor a chart.")
        flags = [Flag.CHART_UNREADABLE] if isinstance(picture, Rejected) else []
        shown = picture if isinstance(picture, _Picture) else None
        language = serving.guard.unreadable(text)
        if language is not None:
            flags.append(Flag.LANGUAGE)
        if len(text) < len(item.text):
            flags.append(Flag.TRUNCATED)
        tickers = (*item.tickers, *(ticker for chart in request.charts for ticker in chart.tickers))
        mentions = link(text, tickers, title_chars=len(item.title) or None, table=self._companies)
        question = Question(
            item=item,
            text="" if language is not None else text,
            language=language,
            mentions=mentions,
            rules=self._rules.matching(text) if text else [],
            chart=shown.chart if shown is not None else None,
            flags=tuple(flags),
        )
        return _Asked(question, shown)

    def _collect(
        self, asked: Sequence[_Asked], serving: _Serving
    ) -> tuple[dict[bytes, RowScore | RowFailure], dict[bytes, tuple[Row, Tensor | None]]]:
        """Rows whose score is known already, and those to ask the model about, each once."""
        known: dict[bytes, RowScore | RowFailure] = {}
        wanted: dict[bytes, tuple[Row, Tensor | None]] = {}
        for one in asked:
            question, picture = one.question, one.picture
            rows: list[tuple[str | None, Row, _Picture | None]] = [(None, Row(question.text), picture)]
            if question.text:
                about = rows_about(question.text, question.mentions, question.item.lang)
                for mention in question.mentions:
                    if mention.ticker in about:
                        seen = entity_shown(mention, picture.chart if picture else None, question.mentions)
                        rows.append((mention.ticker, about[mention.ticker], picture if seen else None))
            for ticker, row, shown in rows:
                key = row_key(serving.model.version, row.text, row.entity, shown.digest if shown else b"")
                if ticker is None:
                    one.whole = key
                else:
                    one.entities[ticker] = key
                if key in known or key in wanted:
                    continue
                cached = serving.cache.get(key)
                if cached is not None:
                    known[key] = cached
                else:
                    wanted[key] = (row, shown.pixels if shown else None)
        return known, wanted

    def _run(
        self, wanted: dict[bytes, tuple[Row, Tensor | None]], serving: _Serving
    ) -> dict[bytes, RowScore | RowFailure]:
        found: dict[bytes, RowScore | RowFailure] = {}
        ready: list[TokenizedRow] = []
        keys: list[bytes] = []
        tokenized = serving.forward.tokenize([row for row, _ in wanted.values()])
        for (key, (_, pixels)), row in zip(wanted.items(), tokenized, strict=True):
            if isinstance(row, RowFailure):
                found[key] = row
                continue
            row.pixels = pixels
            ready.append(row)
            keys.append(key)
        for key, score in zip(keys, serving.forward.run(ready), strict=True):
            found[key] = score
            if isinstance(score, RowScore):
                serving.cache.put(key, score)
        return found

    def _answer(
        self, one: _Asked, known: dict[bytes, RowScore | RowFailure], serving: _Serving, now: datetime
    ) -> ScoredItem | Rejected:
        whole = known[one.whole]
        if isinstance(whole, RowFailure):
            return Rejected(code="unscorable", reason=str(whole))
        entities: dict[str, RowScore] = {}
        for ticker, key in one.entities.items():
            row = known[key]
            # An entity that cannot be scored alone takes the item's sentiment.
            if isinstance(row, RowScore):
                entities[ticker] = row
        return answer(
            one.question,
            whole,
            entities,
            taxonomy=serving.model.taxonomy,
            threshold=serving.threshold,
            version=serving.model.version,
            now=now,
        )


def open_scorer(settings: Settings, engine: Engine | None = None, name: str = "") -> Scorer:
    """A scorer with the model in force: `name`, else `settings.model`, else the promoted one, else the shipped one.

    `engine` is the store whose registry is asked, and asked again by `refresh`. Raises `ModelError`,
    `ConfigurationError` or `StorageError`.
    """
    return Scorer(settings, engine, name)
