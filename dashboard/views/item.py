"""One item: what it says, what the model made of it, and the form that corrects it."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Final

import streamlit as st

from dashboard.graphs import NEGATIVE, NEUTRAL, POSITIVE, probability_chart
from dashboard.markup import SENTIMENT_MARKS, chip, clock, escape, markup, plain, sentiment_chip, table, web_link
from dashboard.navigation import page
from dashboard.store import change, read, taxonomy
from dashboard.views.explanation import show_explanation, wording
from monitor.alerts.records import clean_url
from monitor.errors import InputError
from monitor.records import ChartScore, EntityScore, Modality, ScoredItem, Sentiment, SentimentScore, Trend
from monitor.storage.articles import ChartImage, article, chart_image
from monitor.storage.labels import Label, add_labels, decode_label, label_history

__all__ = ["show_item"]

TOPICS_SHOWN: Final = 5
READ: Final = {Modality.TEXT: "the text", Modality.CHART: "the chart", Modality.BOTH: "text and chart"}
NOT_JUDGED: Final = "not judged"
SENTIMENTS: Final = tuple(s.value for s in Sentiment)
COLOURS: Final = dict(zip(SENTIMENTS, (NEGATIVE, NEUTRAL, POSITIVE), strict=True))
TRENDS: Final = {
    Trend.DOWN: "▼ it falls",
    Trend.FLAT: "■ it goes sideways",
    Trend.UP: "▲ it rises",
    Trend.NOT_A_CHART: "not a price chart",
}


def _mark(value: str) -> str:
    return f"{SENTIMENT_MARKS[Sentiment(value)]} {value}" if value in SENTIMENTS else value


def _text(item: ScoredItem) -> None:
    known = taxonomy()
    title = item.title or item.body[:200] or f"Chart {', '.join(item.chart_ids)}"
    where = web_link(item.url, item.source or "source") if item.url or item.source else "unknown source"
    tickers = f", about {escape(', '.join(item.tickers))}" if item.tickers else ""
    markup(
        f'<div class="headline">{escape(title)}</div>'
        f"<p>{sentiment_chip(item.sentiment.label)} {chip(known.title(item.topic.label), 'topic')} "
        + " ".join(chip(flag, "info") for flag in item.flags)
        + f' <span class="quiet">{where}, <time>{clock(item.published_at)}</time> UTC, {escape(item.kind)}'
        f"{', ' + escape(item.lang) if item.lang else ''}{tickers}</span></p>"
        + (f'<div class="body">{escape(item.body)}</div>' if item.body else "")
    )
    if item.url and not clean_url(item.url):
        st.caption("Its address is no web address and is not linked.")


def _entities(entities: tuple[EntityScore, ...]) -> None:
    st.subheader("Entities", anchor=False)
    table(
        ("name", "ticker", "sentiment", "p(negative)", "p(positive)", "relevance"),
        (
            (
                escape(entity.name),
                escape(entity.ticker or "–"),
                sentiment_chip(entity.sentiment.label),
                f"{entity.sentiment.negative:.0%}",
                f"{entity.sentiment.positive:.0%}",
                f"{entity.relevance:.0%}",
            )
            for entity in entities
        ),
        "Entities and the sentiment towards them",
    )


def _rules(item: ScoredItem) -> None:
    """Which rules spoke, where, why, and what the model itself had said."""
    if not item.rules:
        return
    st.subheader("Rules", anchor=False)
    table(
        ("rule", "found", "did", "why"),
        (
            (
                escape(rule.name),
                escape(f"“{rule.words}”"),
                "only marks it"
                if rule.before is None
                else f"changed {escape(rule.entity or 'the article')}; the model said "
                f"{sentiment_chip(rule.before.label)} with {max(_probabilities(rule.before)):.0%}",
                escape(rule.why),
            )
            for rule in item.rules
        ),
        "Rules that spoke about this article",
    )


def _probabilities(p: SentimentScore) -> tuple[float, float, float]:
    return p.negative, p.neutral, p.positive


def _scores(item: ScoredItem) -> None:
    known = taxonomy()
    sentiment, topic = st.columns(2)
    with sentiment:
        st.subheader("Sentiment", anchor=False)
        p = item.sentiment
        st.altair_chart(
            probability_chart(dict(zip(SENTIMENTS, _probabilities(p), strict=True)), colours=COLOURS),
            alt="Probabilities of sentiment",
        )
    with topic:
        st.subheader("Topic", anchor=False)
        likeliest = sorted(item.topic.probabilities.items(), key=lambda each: -each[1])[:TOPICS_SHOWN]
        st.altair_chart(
            probability_chart({known.title(name): value for name, value in likeliest}),
            alt="Probabilities of topics",
        )
    if item.entities:
        _entities(item.entities)
    _rules(item)
    markup(
        f'<p class="quiet">Scored from {READ[item.modality]} by {escape(item.model_version)} at '
        f"<time>{clock(item.scored_at)}</time> UTC; id {escape(item.id)}</p>"
    )


def _chart(images: list[ChartImage], score: ChartScore | None, named: int) -> None:
    st.subheader("Chart", anchor=False)
    for image in images:
        st.image(image.image, width="stretch", caption=plain(f"{image.chart_id}, {clock(image.published_at)} UTC"))
    if len(images) < named:
        st.caption("A chart of this item has not arrived or is not kept any more.")
    if score is None:
        st.caption("No chart took part in the score.")
        return
    st.markdown(f"The picture: **{TRENDS[score.label]}** (a price chart with {score.p_chart:.0%}).")
    if score.label is not Trend.NOT_A_CHART:
        st.altair_chart(
            probability_chart(
                {"down": score.down, "flat": score.flat, "up": score.up},
                colours={"down": NEGATIVE, "flat": NEUTRAL, "up": POSITIVE},
            ),
            alt="Probabilities of what the chart shows",
        )
    st.caption("This describes the picture, not the future.")


def _history(labels: list[Label]) -> None:
    st.subheader("Corrections so far", anchor=False)
    if not labels:
        st.caption("None.")
        return
    known = taxonomy()
    table(
        ("made (UTC)", "by", "sentiment", "topic", "entities", "comment"),
        (
            (
                f"<time>{clock(label.created_at)}</time>",
                escape(label.author),
                sentiment_chip(label.sentiment) if label.sentiment else "–",
                escape(known.title(label.topic)) if label.topic else "–",
                escape(", ".join(f"{name}: {value}" for name, value in label.entities.items())) or "–",
                escape(label.comment),
            )
            for label in labels
        ),
        "Corrections so far",
    )


def _same(label: Label, other: Label) -> bool:
    def judged(each: Label) -> tuple[object, ...]:
        return each.sentiment, each.topic, each.entities, each.author, each.comment

    return judged(label) == judged(other)


def _save(item: ScoredItem, fields: dict[str, object], newest: Label | None) -> None:
    """Store what the form says. A form that is sent twice, or says nothing new, makes no second correction."""
    now = datetime.now(UTC)
    label = decode_label(
        fields | {"text": wording(item), "item_id": item.id, "created_at": now.isoformat()},
        where="Not saved",
        taxonomy=taxonomy(),
        now=now,
    )
    if newest is not None and _same(label, newest):
        st.session_state["saved"] = "This correction is stored already."
        return
    with change() as connection:
        add_labels(connection, [label])
    st.session_state["saved"] = "The correction is stored; the next retraining learns from it."


def _form(item: ScoredItem, history: list[Label]) -> None:
    known = taxonomy()
    newest = history[0] if history else None
    st.subheader("Correct it", anchor=False)
    saved = st.session_state.pop("saved", None)
    if saved:
        st.success(saved, icon=":material/check:")
    if not wording(item):
        st.caption("A chart without text cannot be corrected here.")
        return
    st.caption("It shows what the model said, or the newest correction. Saving it says: this is right.")
    # A fresh form for each state of the item: it is filled in with what holds now.
    state = f"{item.id}-{newest.id if newest else ''}"
    with st.form(f"correction-{state}"):
        options = (*SENTIMENTS, NOT_JUDGED)
        right = newest.sentiment if newest and newest.sentiment else item.sentiment.label
        sentiment = st.radio(
            "Sentiment",
            options,
            index=options.index(right.value),
            format_func=_mark,
            horizontal=True,
            key=f"sentiment-{state}",
        )
        topics = (*known.labels, NOT_JUDGED)
        about = newest.topic if newest and newest.topic else item.topic.label
        topic = st.selectbox(
            "Topic",
            topics,
            index=topics.index(about) if about in topics else len(topics) - 1,
            format_func=known.title,
            key=f"topic-{state}",
        )
        entities: dict[str, str] = {}
        for number, entity in enumerate(item.entities):
            towards = newest.entities.get(entity.name) if newest else None
            entities[entity.name] = st.selectbox(
                f"Towards {plain(entity.name)}",
                options,
                index=options.index((towards or entity.sentiment.label).value),
                format_func=_mark,
                key=f"entity-{number}-{state}",
            )
        comment = st.text_input("Comment", max_chars=2000, key=f"comment-{state}")
        author = st.text_input("Your name", key="person", persist_state="session", max_chars=128)
        sent = st.form_submit_button("Save the correction", type="primary", icon=":material/save:")
    if not sent:
        return
    if not (author or "").strip():
        st.warning("Not saved: give your name first.", icon=":material/person:")
        return
    fields: dict[str, object] = {
        "sentiment": None if sentiment == NOT_JUDGED else sentiment,
        "topic": None if topic == NOT_JUDGED else topic,
        "entities": {name: value for name, value in entities.items() if value != NOT_JUDGED},
        "comment": comment or "",
        "author": author,
    }
    try:
        _save(item, fields, newest)
    except InputError as error:
        st.warning(plain(error.message), icon=":material/rule:")
        return
    st.rerun()


def show_item(item_id: str) -> None:
    """Draw one item, or say that there is none of this id."""
    st.page_link(page("articles"), label="All articles", icon=":material/arrow_back:")
    with read() as connection:
        item = article(connection, item_id)
        history = label_history(connection, item_id)
        found = [chart_image(connection, chart_id) for chart_id in item.chart_ids] if item else []
    if item is None:
        st.warning(
            plain(f"There is no article {item_id}; it may be older than what is kept."), icon=":material/search_off:"
        )
        return
    images = [image for image in found if image is not None]
    left, right = st.columns([3, 2], gap="large")
    with left:
        _text(item)
        _scores(item)
        if item.chart_ids or item.chart:
            _chart(images, item.chart, len(item.chart_ids))
        show_explanation(item, images)
    with right:
        _form(item, history)
        _history(history)
