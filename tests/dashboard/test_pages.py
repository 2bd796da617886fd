"""The pages without a browser: what they show, what their forms do, what they say when something is wrong."""

from __future__ import annotations

import json
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest
from sqlalchemy import Engine
from streamlit.testing.v1 import AppTest

import dashboard
from dashboard import store as dashboard_store
from dashboard.views import system
from monitor.records import Sentiment
from monitor.settings import Settings
from monitor.storage import deliveries
from monitor.storage.alerts import get_alert, record_decisions
from monitor.storage.audit import changes
from monitor.storage.deliveries import Delivery
from monitor.storage.engine import reading, writing
from monitor.storage.labels import Label, add_labels, label_history
from monitor.storage.pending import end_pending
from monitor.storage.receivers import disable, list_receivers, sync
from monitor.storage.rules import list_rules
from monitor.storage.silences import list_silences
from monitor.storage.tables import pending
from monitor.surges.decisions import episode_id
from monitor.surges.live import LiveJudge
from monitor.taxonomy import Taxonomy, taxonomy_of
from tests.dashboard import sample

PAGES = ("overview", "alerts", "rules", "delivery", "articles", "labels", "system")


@pytest.fixture(autouse=True)
def own_main_module(monkeypatch: pytest.MonkeyPatch) -> None:
    """A simulated page stays behind as `__main__`, which processes spawned by later tests would run; put it back."""
    monkeypatch.setitem(sys.modules, "__main__", sys.modules["__main__"])


def view(name: str, **query: str) -> AppTest:
    """A page by itself, as its address with this query opens it."""

    def script(name: str) -> None:
        from importlib import import_module

        import streamlit as st

        from dashboard.navigation import pages
        from dashboard.store import guarded

        st.navigation(pages())
        guarded(import_module(f"dashboard.views.{name}").show)()

    test = AppTest.from_function(script, kwargs={"name": name}, default_timeout=30)
    for key, value in query.items():
        test.query_params[key] = value
    return test.run()


def shown(test: AppTest) -> str:
    """All text of a page."""
    assert not test.exception
    parts = [element.value for element in (*test.markdown, *test.caption, *test.info, *test.warning, *test.error)]
    return "\n".join(map(str, (*parts, *(element.proto.body for element in test.get("html")))))


def test_the_frame_opens_on_the_overview(filled: Engine) -> None:
    test = AppTest.from_file(str(Path(dashboard.__file__).with_name("app.py")), default_timeout=30).run()
    assert not test.exception
    assert [title.value for title in test.title] == ["Overview"]


def test_overview_counts_what_is_stored(filled: Engine) -> None:
    test = view("overview")
    assert not test.exception
    metrics = {metric.label: metric.value for metric in test.metric}
    assert metrics["Open alerts"] == "1"
    assert int(metrics["Stories"].replace(",", "")) > 300
    assert len(test.get("vega_lite_chart") or test.get("arrow_vega_lite_chart")) == 2


def test_overview_of_one_ticker(filled: Engine) -> None:
    everything = view("overview", range="all")
    one = view("overview", key="ticker:BA", range="all")
    number = [int(each.metric[0].value.replace(",", "")) for each in (everything, one)]
    assert 0 < number[1] < number[0]


def test_overview_of_a_key_without_news(filled: Engine) -> None:
    assert "No news about this" in shown(view("overview", key="ticker:NONE"))


def test_topics_are_those_of_this_installation(filled: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = tmp_path / "topics.json"
    topics = [{"name": "gossip", "title": "Talk of the town"}, {"name": "markets", "title": "Bazaars"}]
    own.write_text(json.dumps({"name": "own", "topics": topics}))
    monkeypatch.setenv("SENTIMENT_MONITOR_TAXONOMY_FILE", str(own))
    test = view("articles", item=sample.CHART_ITEM)
    box = next(box for box in test.selectbox if box.label == "Topic")
    assert box.options[:2] == ["Talk of the town", "Bazaars"]
    box.set_value("gossip")
    test.text_input(key="person").set_value("Anna")
    next(button for button in test.button if button.label == "Save the correction").click().run()
    with reading(filled) as connection:
        (label,) = label_history(connection, sample.CHART_ITEM)
    assert label.topic == "gossip"
    assert list(view("labels").dataframe[0].value["topic"]) == ["Talk of the town"]
    assert "Topic: Bazaars" in next(box for box in view("overview").selectbox if "topic" in box.label).options


@pytest.mark.parametrize("name", ["overview", "alerts", "labels"])
def test_the_topics_are_read_a_few_times_a_page_and_not_once_a_row(
    name: str, filled: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    with writing(filled) as connection:
        for n in range(12):
            fired = sample.surge_decision(episode_id=episode_id("surge", f"topic:t{n}", 1), key=f"topic:t{n}")
            record_decisions(connection, [fired], dashboard_url="http://127.0.0.1:8501")
            label = Label(id=f"l{n}", text=f"text {n}", topic="markets", author="Anna", created_at=sample.END)
            add_labels(connection, [label])
    reads = []

    def counted(settings: Settings) -> Taxonomy:
        reads.append(settings)
        return taxonomy_of(settings)

    monkeypatch.setattr(dashboard_store, "taxonomy_of", counted)
    test = view(name)
    assert not test.exception
    assert test.dataframe[0].value.shape[0] >= 10
    assert 1 <= len(reads) <= 3


@pytest.mark.parametrize("name", PAGES)
def test_an_empty_store_gets_a_helpful_sentence(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SENTIMENT_MONITOR_DATABASE_URL", f"sqlite:///{tmp_path / 'empty.db'}")
    assert "sentiment-monitor" in shown(view(name)) or "No alert has fired yet" in shown(view(name))


@pytest.mark.parametrize("name", PAGES)
def test_a_database_that_is_away_is_one_sentence(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SENTIMENT_MONITOR_DATABASE_URL", "postgresql://nobody@127.0.0.1:1/none?connect_timeout=2")
    test = view(name)
    assert not test.exception
    assert len(test.error) == 1
    assert "database cannot be used" in test.error[0].value.replace("\\", "")


def test_alerts_are_listed_and_filtered(filled: Engine) -> None:
    assert len(view("alerts").dataframe[0].value) == 2
    assert list(view("alerts", state="firing").dataframe[0].value["about"]) == ["BA"]
    assert list(view("alerts", about="legal").dataframe[0].value["state"]) == ["○ resolved"]
    assert "No alert matches" in shown(view("alerts", about="zebra"))


def test_an_alert_shows_its_evidence(filled: Engine) -> None:
    test = view("alerts", alert=sample.ALERT_ID)
    text = shown(test)
    assert "BA: surge of negative stories" in text
    metrics = {metric.label: (metric.value, metric.delta) for metric in test.metric}
    assert metrics["Negative stories in 60 min"] == ("31", "0.9 expected")
    assert metrics["Negative share"] == ("94%", "21% expected")
    assert "Boeing" in text
    assert "<summary>" in text, "copies of a story are listed"
    assert "articles?item=s" in text


def test_an_unknown_alert_or_article(filled: Engine) -> None:
    assert "There is no alert" in shown(view("alerts", alert="<b>nothing</b>"))
    text = shown(view("articles", item="<b>nothing</b>"))
    assert "There is no article" in text
    assert "<b>nothing" not in text


def test_acknowledging_needs_a_name_and_is_stored(filled: Engine) -> None:
    test = view("alerts", alert=sample.ALERT_ID)
    acknowledge = next(button for button in test.button if button.label == "Acknowledge")
    assert acknowledge.disabled
    test.text_input(key="person").set_value("Anna").run()
    next(button for button in test.button if button.label == "Acknowledge").click().run()
    assert not test.exception
    with reading(filled) as connection:
        alert = get_alert(connection, sample.ALERT_ID)
    assert alert is not None
    assert (alert.state, alert.acknowledged_by) == ("acknowledged", "Anna")
    assert all(button.label != "Acknowledge" for button in test.button)


def test_what_is_pending_is_listed_by_itself(filled: Engine) -> None:
    at = datetime.now(UTC)
    row = {"rule": "negative-surge", "surge": "negative", "started_at": at, "seen_at": at, "window_minutes": 60}
    with writing(filled) as connection:
        for name, score in (("p1", 1.6), ("p2", 3.6)):
            connection.execute(pending.insert().values(id=name, key=f"ticker:{name}", score=score, bar=4.0, **row))
    test = view("alerts")
    assert "pending" not in set(test.dataframe[0].value["state"].str.partition(" ")[2])
    test.button_group(key="state").set_value(["pending"]).run()
    (listed,) = test.dataframe
    assert list(listed.value["about"]) == ["p2", "p1"], "the nearest to the bar first"
    assert list(listed.value["to the bar"]) == [0.9, 0.4]
    assert "Nobody is told" in shown(test)
    test.button_group(key="state").set_value(["pending", "firing"]).run()
    assert len(test.dataframe) == 2
    test.text_input(key="about").set_value("p1").run()
    assert list(test.dataframe[0].value["about"]) == ["p1"]
    with writing(filled) as connection:
        end_pending(connection, "negative-surge", at)
    test.run()
    assert "Nothing is pending." in shown(test)


def test_a_silence_is_made_and_ended(filled: Engine) -> None:
    test = view("alerts", alert=sample.ALERT_ID)
    test.text_input(key="person").set_value("Anna").run()
    next(button for button in test.button if button.label.startswith("Silence")).click().run()
    assert "Say why" in shown(test)
    next(field for field in test.text_input if field.label == "Why").set_value("known")
    next(button for button in test.button if button.label.startswith("Silence")).click().run()
    with reading(filled) as connection:
        (silence,) = list_silences(connection, datetime.now(UTC))
    assert (silence.key, silence.author, silence.comment) == (sample.SURGE_KEY, "Anna", "known")
    listed = view("delivery")
    assert sample.SURGE_KEY in shown(listed)
    listed.button(key=f"end-{silence.id}").click().run()
    with reading(filled) as connection:
        assert list_silences(connection, datetime.now(UTC)) == []


def test_a_silence_that_does_not_say_why_is_refused_and_stays_to_be_mended(filled: Engine) -> None:
    def field(test: AppTest, label: str) -> Any:
        return next(field for field in test.text_input if field.label == label)

    test = named("delivery")
    field(test, "Key or pattern").set_value("topic:*")
    press(test, "Silence")
    assert "Say why" in shown(test)
    assert field(test, "Key or pattern").value == "topic:*"
    field(test, "Why").set_value("a planned outage")
    press(test, "Silence")
    assert "a planned outage" in shown(test)
    assert field(test, "Key or pattern").value == field(test, "Why").value == ""
    with reading(filled) as connection:
        (silence,) = list_silences(connection, datetime.now(UTC))
    test.button(key=f"end-{silence.id}").click().run()


def press(test: AppTest, label: str) -> AppTest:
    """Press the button of that name."""
    found = next(button for button in test.button if button.label == label)
    assert not found.disabled, label
    return found.click().run()


def named(name: str, **query: str) -> AppTest:
    """A page on which somebody has given a name."""
    return view(name, **query).text_input(key="person").set_value("Anna").run()


def test_a_rule_is_made_muted_switched_and_removed(filled: Engine) -> None:
    test = named("rules")
    assert "negative-surge" in shown(test), "the built-in rule is there before the notifier has run"
    test.text_input(key="rule-name-").set_value("banks").run()
    test.text_input(key="rule-keys-").set_value("tickers:JPM").run()
    assert "matches no key" in test.error[0].value.replace("\\", "")
    test.text_input(key="rule-keys-").set_value("ticker:JPM ticker:BAC").run()
    press(test, "Save")
    assert "In force now" in test.success[0].value
    with reading(filled) as connection:
        rule = next(rule for rule in list_rules(connection) if rule.name == "banks")
    assert (rule.definition["keys"], rule.author, rule.enabled) == (["ticker:JPM", "ticker:BAC"], "Anna", True)
    test.button(key="mute-banks").click().run()
    test.button(key="switch-banks").click().run()
    with reading(filled) as connection:
        rule = next(rule for rule in list_rules(connection) if rule.name == "banks")
    assert (rule.enabled, rule.muted(datetime.now(UTC))) == (False, True)
    test.button(key="remove-banks").click().run()
    with reading(filled) as connection:
        assert [rule.name for rule in list_rules(connection)] == ["negative-surge"]
        events = [change.event for change in changes(connection, subject="rule:banks")]
    assert events == ["removed", "switched off", "muted", "added"]
    assert "banks" in shown(view("rules", rule="banks")), "a rule that is gone is still looked back on"


def test_the_form_asks_what_a_rule_watches_and_for_the_evidence_of_that(filled: Engine) -> None:
    test = named("rules")
    test.text_input(key="rule-name-").set_value("good news").run()
    test.button_group(key="rule-surge-").set_value("positive").run()
    test.number_input(key="rule-min_positive_stories-").set_value(4).run()
    press(test, "Save")
    with reading(filled) as connection:
        rule = next(rule for rule in list_rules(connection) if rule.name == "good news")
    assert rule.definition == {"name": "good news", "surge": "positive", "min_positive_stories": 4}
    assert "surges of positive stories" in shown(test)
    test.button_group(key="rule-surge-").set_value("volume").run()
    asked = {number.label for number in test.number_input}
    assert "Stories, at least" in asked
    assert not any("share" in label for label in asked)
    test.button(key="remove-good news").click().run()


def test_rules_in_a_text_are_refused_with_their_line(filled: Engine) -> None:
    test = named("rules")
    test.text_area(key="rules-toml").set_value("[[rules]]\nname = 'x'\nkeys = 3\n").run()
    assert "line 3" in test.error[0].value.replace("\\", "")


def test_rules_are_tried_on_history(filled: Engine, tmp_path: Path) -> None:
    live = LiveJudge(filled, Settings(data_dir=tmp_path), 1)
    while live.advance():
        pass
    live.release()
    test = press(named("rules"), "Try the rules in force")
    metrics = {metric.label: metric.value for metric in test.metric}
    assert metrics["Surges found"] == metrics["Announced by the rules"] != "0"
    assert "negative-surge" in shown(test)
    asked = view("alerts")
    asked.selectbox(key="why-key").set_value("ticker:BA").run()
    press(asked, "Ask")
    assert "negative stories" in shown(asked)
    assert "An alert needs" in {metric.label for metric in asked.metric}
    asked.selectbox(key="why-surge").set_value("positive").run()
    press(asked, "Ask")
    assert "positive stories" in shown(asked)


def test_receivers_are_tested_and_notices_sent_again(filled: Engine) -> None:
    now = datetime.now(UTC)
    with writing(filled) as connection:
        sync(connection, {"desk": {"kind": "webhook", "address": "https://x/…", "rate_per_minute": 1}}, now)
        disable(connection, "desk", "It answered 410 (gone).", now)
        lost = Delivery(
            id="m1", episode_id="e1", event="firing", receiver="desk", position=1, payload="", created_at=now
        )
        deliveries.add(connection, [msgspec.structs.replace(lost, state="failed", last_error="The receiver is off")])
    test = view("delivery")
    assert test.button(key="test-desk").disabled, "who acts has to say so"
    test = named("delivery")
    assert "It answered 410" in shown(test)
    test.button(key="test-desk").click().run()
    test.button(key="on-desk").click().run()
    press(test, "Send all again now")
    assert not test.exception
    with reading(filled) as connection:
        assert deliveries.tests_of_receivers(connection)["desk"].state == "pending"
        assert [row.id for row in deliveries.of_episode(connection, "e1") if row.state == "pending"] == ["m1"]
        (status,) = list_receivers(connection)
        actors = {change.actor for change in changes(connection) if change.event in ("switched on", "replayed")}
    assert status.enabled
    assert actors == {"Anna"}


def test_articles_are_found_paged_and_opened(filled: Engine) -> None:
    test = view("articles", range="all")
    first = list(test.dataframe[0].value["title"])
    assert len(first) == 50
    next(button for button in test.button if button.label == "Older").click().run()
    second = list(test.dataframe[0].value["title"])
    assert first != second
    next(button for button in test.button if button.label == "Newer").click().run()
    assert list(test.dataframe[0].value["title"]) == first
    found = view("articles", q="third session", range="all").dataframe[0].value
    assert list(found["title"]) == ["Intel slides for a third session, chart shows"]
    assert "Nothing was found" in shown(view("articles", q="zebra", range="all"))


def test_a_stretch_of_time_in_the_address(filled: Engine) -> None:
    begin = int(sample.SURGE_AT.timestamp()) // 60
    table = view("articles", key=sample.SURGE_KEY, **{"from": str(begin), "to": str(begin + 30)}).dataframe[0].value
    assert len(table)
    assert all("2026-03-12 17:00" <= at <= "2026-03-12 17:30" for at in table["published"])
    assert not view("articles", **{"from": "x", "to": "9" * 30}).exception


def test_links_of_the_list_are_web_addresses(filled: Engine) -> None:
    found = view("articles", q="onerror", range="all").dataframe[0].value
    assert len(found) == 1
    assert list(found["link"]) == [None]


def test_an_item_shows_everything(filled: Engine) -> None:
    test = view("articles", item=sample.CHART_ITEM)
    text = shown(test)
    for part in (
        "Intel slides",
        "Volume was above",
        "text_truncated",
        "rule:trading_halt",
        "“halts &lt;b&gt;trading&lt;/b&gt;”",
        "changed Intel; the model said",
        "with 63%",
        "A halt of trading is never good news in itself.",
        "INTC",
        "default-2026.03",
        "it falls",
        "not the future",
    ):
        assert part in text, part
    assert test.get("image")


def test_hostile_text_is_shown_as_text(filled: Engine) -> None:
    test = view("articles", item=sample.HOSTILE_ID)
    text = shown(test)
    assert "<script" not in text
    assert "<img src" not in text
    assert "&lt;img src=x onerror=" in text
    assert 'href="javascript' not in text
    assert "no web address" in text
    labels = [box.label for box in test.selectbox]
    assert all("](javascript" not in label for label in labels)


def test_a_correction_is_stored_with_its_history(filled: Engine) -> None:
    test = view("articles", item=sample.CHART_ITEM)
    save = "Save the correction"
    next(button for button in test.button if button.label == save).click().run()
    assert "give your name" in shown(test)
    test.radio[0].set_value("positive")
    next(box for box in test.selectbox if box.label == "Topic").set_value("markets")
    next(box for box in test.selectbox if box.label.startswith("Towards")).set_value("neutral")
    next(box for box in test.text_input if box.label == "Comment").set_value("ironic")
    test.text_input(key="person").set_value("Anna")
    next(button for button in test.button if button.label == save).click().run()
    assert not test.exception
    assert "stored" in test.success[0].value
    with reading(filled) as connection:
        (label,) = label_history(connection, sample.CHART_ITEM)
    assert (label.sentiment, label.topic, label.author, label.comment) == (
        Sentiment.POSITIVE,
        "markets",
        "Anna",
        "ironic",
    )
    assert label.entities == {"Intel": Sentiment.NEUTRAL}
    assert label.text.startswith("Intel slides for a third session, chart shows\nThe shares")
    assert "ironic" in shown(test)
    assert test.radio[0].value == "positive", "the form shows the newest correction"
    assert list(view("labels").dataframe[0].value["author"]) == ["Anna"]


def test_saving_the_same_again_stores_nothing(filled: Engine) -> None:
    test = view("articles", item=sample.CHART_ITEM)
    for _ in range(2):
        test.text_input(key="person").set_value("Anna")
        next(button for button in test.button if button.label == "Save the correction").click().run()
    assert "already" in test.success[0].value
    with reading(filled) as connection:
        assert len(label_history(connection, sample.CHART_ITEM)) == 1


def test_nothing_judged_is_nothing_saved(filled: Engine) -> None:
    test = view("articles", item=sample.CHART_ITEM)
    test.radio[0].set_value("not judged")
    for box in test.selectbox:
        if "not judged" in box.options:
            box.set_value("not judged")
    test.text_input(key="person").set_value("Anna")
    next(button for button in test.button if button.label == "Save the correction").click().run()
    assert "at least one" in shown(test)
    with reading(filled) as connection:
        assert label_history(connection, sample.CHART_ITEM) == []


def test_system_shows_counts_and_dead_letters(filled: Engine) -> None:
    test = view("system")
    text = shown(test)
    assert "news:2:1041" in text
    assert "&lt;b&gt;unexpected" in text
    metrics = {metric.label: metric.value for metric in test.metric}
    assert metrics["Items stored"] == "672"
    assert metrics["Dead letters"] == "1"


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_an_item_is_explained_by_the_model_in_use(
    filled: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SENTIMENT_MONITOR_DATA_DIR", str(tmp_path / "data"))
    test = view("articles", item=sample.CHART_ITEM)
    test.selectbox(key=f"why-{sample.CHART_ITEM}").set_value("Intel")
    next(button for button in test.button if button.label == "Explain").click().run(timeout=500)
    text = shown(test)
    assert "The model in use says" in text
    assert "slides</span>" in text
    assert "Labelled examples that are alike" in text


def test_figures_that_belong_together_are_named_after_what_they_belong_to() -> None:
    found = {"psi": {"p_negative": 0.0397412, "topic": 1}, "state": "ok", "rest": 0.5}
    assert system._figures(found, 3) == "psi.p_negative 0.0397, psi.topic 1, state ok"
