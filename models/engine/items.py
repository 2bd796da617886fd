"""From an item to the rows that the model is asked about, and from the model's answers to a scored item. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

import numpy as np
from numpy.typing import NDArray

from models.engine.cache import RowScore
from models.rules import PREFIX, Match, SentimentRules
from models.sentences import Place, entity_rows
from models.tokens import Row
from monitor.linking import Mention
from monitor.records import (
    Chart,
    ChartScore,
    EntityScore,
    Modality,
    NewsItem,
    ScoredItem,
    SentimentScore,
    TopicScore,
    Trend,
)
from monitor.taxonomy import Taxonomy

__all__ = ["MAX_ENTITIES", "Flag", "Question", "ScoringRequest", "answer", "entity_shown", "rows_about"]

# Companies of one item whose sentiment is asked for; the most relevant ones.
MAX_ENTITIES: Final = 8
# So many are looked for in each other's sentences.
_NAMED: Final = 16


class Flag:
    """What a scored item's `flags` may hold, besides `rule:<name>` (`models.rules`)."""

    LANGUAGE: Final = "language_unsupported"
    CHART_UNREADABLE: Final = "chart_unreadable"
    NOT_A_CHART: Final = "not_a_chart"
    NO_TEXT: Final = "no_text"
    # The model reads so many characters and tokens, and no more.
    TRUNCATED: Final = "text_truncated"


@dataclass(frozen=True, slots=True)
class ScoringRequest:
    """An item and the charts that came with it.

    A chart alone is an item with the id `chart:<chart_id>` and neither title nor body.
    """

    item: NewsItem
    charts: tuple[Chart, ...] = ()


@dataclass(slots=True)
class Question:
    """What the model is asked about one item.

    Attributes
    ----------
    text : the item's text as far as it is read; "" when the language is one that the model cannot read.
    language : of such a text (ISO 639-1), else None.
    mentions : companies, most relevant first.
    chart : the picture that was taken, if any.
    flags : what is known before the model is asked.
    """

    item: NewsItem
    text: str
    language: str | None
    mentions: list[Mention]
    rules: list[Match]
    chart: Chart | None = None
    flags: tuple[str, ...] = ()


def rows_about(text: str, mentions: Sequence[Mention], language: str) -> dict[str, Row]:
    """The row that asks about each entity that gets one of its own, by ticker; two tickers of one company share one.

    `language` is an ISO 639-1 code, "" for what is not known.
    """
    named: dict[str, list[Place]] = {}
    for mention in mentions[:_NAMED]:
        if mention.start >= 0:
            named.setdefault(mention.name, []).extend(mention.places)
    companies = {name: sorted(places) for name, places in named.items()}
    rows = entity_rows(text, list(companies.values()), language or "en")
    asked = [mention for mention in mentions[:MAX_ENTITIES] if mention.start >= 0]
    return {mention.ticker: rows[companies[mention.name][0]] for mention in asked}


def entity_shown(mention: Mention, chart: Chart | None, mentions: Sequence[Mention]) -> bool:
    """Whether a chart shows this entity: it carries its ticker, or it carries none and there is only one entity."""
    if chart is None:
        return False
    return mention.ticker in chart.tickers if chart.tickers else len(mentions) == 1


def _trend(chart: Chart, score: RowScore, threshold: float) -> ChartScore:
    down, flat, up = (float(p) for p in score.chart)
    label = list(Trend)[int(np.argmax(score.chart))] if score.p_chart >= threshold else Trend.NOT_A_CHART
    return ChartScore(chart_id=chart.chart_id, label=label, down=down, flat=flat, up=up, p_chart=score.p_chart)


def _topic(probabilities: NDArray[np.float32], taxonomy: Taxonomy) -> TopicScore:
    labels = taxonomy.labels
    return TopicScore(
        label=labels[int(np.argmax(probabilities))],
        probabilities={label: float(p) for label, p in zip(labels, probabilities, strict=True)},
    )


def answer(
    question: Question,
    whole: RowScore,
    entities: Mapping[str, RowScore],
    *,
    taxonomy: Taxonomy,
    threshold: float,
    version: str,
    now: datetime,
) -> ScoredItem:
    """The scored item.

    Parameters
    ----------
    whole : the model's answer about the item as a whole.
    entities : its answers about entities, by ticker.
    threshold : probability from which a picture counts as a chart.

    An entity without a span of its own (a ticker that only the item's fields name, or a text that cannot be read)
    takes the item's sentiment. Rules are applied to the item, and to the entity where there is but one: "X files
    for bankruptcy, rival Y gains" says nothing bad about Y.
    """
    item = question.item
    flags = list(question.flags)
    if whole.truncated:
        flags.append(Flag.TRUNCATED)
    if item.text and question.language is None and not whole.said:
        flags.append(Flag.NO_TEXT)
    chart = _trend(question.chart, whole, threshold) if question.chart is not None else None
    if chart is not None and chart.label is Trend.NOT_A_CHART:
        flags.append(Flag.NOT_A_CHART)
    sentiment, rules = SentimentRules.apply(question.rules, SentimentScore.of(whole.sentiment))
    scored: list[EntityScore] = []
    for mention in question.mentions[:MAX_ENTITIES]:
        row = entities.get(mention.ticker)
        towards = sentiment if row is None else SentimentScore.of(row.sentiment)
        if row is not None and len(question.mentions) == 1:
            towards, notes = SentimentRules.apply(question.rules, towards, mention.name)
            # A mark on the item need not be repeated for its company.
            rules += tuple(note for note in notes if note.before is not None)
        scored.append(
            EntityScore(name=mention.name, ticker=mention.ticker, sentiment=towards, relevance=mention.relevance)
        )
    if whole.used_chart:
        modality = Modality.BOTH if whole.said else Modality.CHART
    else:
        modality = Modality.TEXT if item.text else Modality.CHART
    return ScoredItem(
        id=item.id,
        published_at=item.published_at,
        sentiment=sentiment,
        topic=_topic(whole.topic, taxonomy),
        modality=modality,
        model_version=version,
        scored_at=now,
        title=item.title,
        body=item.body,
        source=item.source,
        url=item.url,
        lang=item.lang or question.language or "",
        tickers=item.tickers,
        kind=item.kind,
        chart_ids=item.chart_ids or ((question.chart.chart_id,) if question.chart is not None else ()),
        entities=tuple(scored),
        chart=chart,
        flags=tuple(dict.fromkeys([*flags, *(f"{PREFIX}{rule.name}" for rule in rules)])),
        rules=rules,
    )
