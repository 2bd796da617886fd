"""A person's way through the dashboard in a real browser."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine

from monitor.storage.engine import open_engine, reading
from monitor.storage.labels import label_history
from tests.dashboard import sample
from tests.dashboard.process import running_dashboard

CHROMIUM = shutil.which("chromium") or "/usr/bin/chromium"
DRIVER = shutil.which("chromedriver") or "/usr/bin/chromedriver"
FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--window-size=1400,1600",
)
PATIENCE_S = 60

pytestmark = [
    pytest.mark.browser,
    pytest.mark.timeout(600),
    pytest.mark.skipif(
        not (Path(CHROMIUM).exists() and Path(DRIVER).exists()), reason="Chromium and its driver are not installed"
    ),
]


class Visit:
    """A browser on the dashboard, with the few things that a visitor does."""

    def __init__(self, driver: Any, address: str) -> None:
        self.driver = driver
        self.address = address

    def open(self, path: str) -> None:
        """Go to an address."""
        self.driver.get(self.address + path)

    def wait(self, condition: Any, what: str) -> Any:
        """Wait until `condition(driver)` holds; returns its value."""
        from selenium.common.exceptions import StaleElementReferenceException
        from selenium.webdriver.support.ui import WebDriverWait

        waiting = WebDriverWait(self.driver, PATIENCE_S, ignored_exceptions=[StaleElementReferenceException])
        return waiting.until(condition, f"waited for {what}; there is: {self.text()[:1500]}")

    def text(self) -> str:
        """All that can be read on the page."""
        return str(self.driver.execute_script("return document.body ? document.body.innerText : ''"))

    def see(self, text: str) -> None:
        """Wait until this can be read."""
        self.wait(lambda _: text in self.text(), text)

    def all(self, css: str) -> list[Any]:
        """Elements now."""
        return list(self.driver.find_elements("css selector", css))

    def one(self, css: str) -> Any:
        """The first element, once it is there."""
        return self.wait(lambda _: next(iter(self.all(css)), None), css)

    def settle(self) -> None:
        """Wait until the page has been drawn to its end, and make sure that nothing went wrong on it."""
        self.wait(
            lambda _: not self.all('[data-testid="stStatusWidget"]') and not self.all('[data-testid="stSkeleton"]'),
            "the page to be drawn",
        )
        assert not self.all('[data-testid="stException"]'), self.text()
        assert "Traceback" not in self.text()


@pytest.fixture(scope="module")
def store(sample_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Engine:
    path = tmp_path_factory.mktemp("browser-store") / "monitor.db"
    shutil.copyfile(sample_file, path)
    return open_engine(f"sqlite:///{path}")


@pytest.fixture(scope="module")
def visit(store: Engine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Visit]:
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"performance": "ALL"})
    with running_dashboard(tmp_path_factory.mktemp("home"), str(store.url)) as address:
        driver = webdriver.Chrome(options=options, service=Service(DRIVER))
        try:
            yield Visit(driver, address)
        finally:
            driver.quit()


def click_first_row(visit: Visit) -> None:
    """Tick the first row of the first table, which is drawn on a canvas."""
    from selenium.webdriver import ActionChains

    table = visit.one('[data-testid="stDataFrame"] canvas')
    visit.driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", table)
    size = table.size
    # Offsets count from the middle: the tick box is at the left, the first row below the head.
    ActionChains(visit.driver).move_to_element_with_offset(
        table, 16 - size["width"] // 2, 53 - size["height"] // 2
    ).click().perform()


@pytest.mark.parametrize(
    ("path", "title", "words"),
    [
        ("/", "Overview", ("Whole market", "Alerts in this range", "Topics", "Fell most")),
        ("/alerts", "Alerts", ("Tick one to open it", "Why did this alert, or not?")),
        ("/rules", "Rules", ("negative-surge", "Make or try rules", "Watches surges of", "Hours and receivers")),
        ("/delivery", "Delivery", ("Receivers", "Not delivered", "Silences in force")),
        ("/articles", "Articles", ("Page 1",)),
        ("/labels", "Labels", ("No corrections yet",)),
        ("/system", "System", ("Dead letters", "Models", "Jobs")),
    ],
)
def test_pages_load(visit: Visit, path: str, title: str, words: tuple[str, ...]) -> None:
    visit.open(path)
    for word in (title, *words):
        visit.see(word)
    visit.settle()
    assert {word for word in (title, *words) if word not in visit.text()} == set()


def test_the_form_asks_for_the_evidence_of_what_a_rule_watches(visit: Visit) -> None:
    visit.open("/rules")
    visit.see("Negative share, at least")
    visit.settle()
    for words, asked in (("positive stories", "Positive share, at least"), ("all stories", "Stories, at least")):
        buttons = visit.all('[data-testid="stButtonGroup"] button')
        chosen = next(button for button in buttons if button.text.startswith(words))
        visit.driver.execute_script("arguments[0].click()", chosen)
        visit.see(asked)
        visit.settle()
    # What the page had before stays until the new one is drawn to its end.
    visit.wait(lambda _: "share, at least" not in visit.text(), "the question about a share to go")


def test_charts_are_drawn(visit: Visit) -> None:
    visit.open("/?key=ticker:BA")
    drawn = '[data-testid="stVegaLiteChart"] canvas, .vega-embed svg'
    visit.wait(lambda _: len(visit.all(drawn)) >= 2, "two charts")
    visit.settle()
    assert all(one.size["width"] > 100 and one.size["height"] > 50 for one in visit.all(drawn))


def test_from_an_alert_to_an_article_to_a_correction(visit: Visit, store: Engine) -> None:
    visit.open(f"/?alert={sample.ALERT_ID}")
    visit.see("BA: surge of negative stories")
    visit.see("Stories behind it")
    visit.see("0.9 expected")
    assert "/alerts" in visit.driver.current_url
    visit.settle()
    link = visit.one('.stHtml a[href^="articles?item="]')
    headline = link.text
    visit.driver.execute_script("arguments[0].click()", link)
    visit.see("Correct it")
    visit.see(headline)
    item_id = visit.driver.current_url.partition("item=")[2]
    visit.settle()

    visit.one('[role="radiogroup"] label')
    visit.driver.find_element("xpath", "//*[@role='radiogroup']//label[contains(., 'neutral')]").click()
    visit.one('input[aria-label="Comment"]').send_keys("a follow-up, not news")
    visit.one('input[aria-label="Your name"]').send_keys("Anna")
    visit.one('[data-testid="stFormSubmitButton"] button').click()
    visit.see("The correction is stored")
    visit.settle()
    with reading(store) as connection:
        (label,) = label_history(connection, item_id)
    assert (label.sentiment, label.author, label.comment) == ("neutral", "Anna", "a follow-up, not news")
    visit.open("/labels")
    visit.see("1 corrections")


def test_an_article_is_opened_from_the_list(visit: Visit) -> None:
    visit.open("/articles?q=third+session&range=all")
    visit.see("Page 1")
    visit.settle()
    click_first_row(visit)
    visit.see("Correct it")
    visit.see("This describes the picture, not the future")
    visit.wait(
        lambda driver: driver.execute_script(
            "const i = document.querySelector('[data-testid=stImage] img'); return i && i.naturalWidth > 0"
        ),
        "the chart image",
    )
    assert f"item={sample.CHART_ITEM}" in visit.driver.current_url


def test_hostile_text_does_nothing(visit: Visit) -> None:
    for path in (f"/articles?item={sample.HOSTILE_ID}", "/articles?q=onerror&range=all"):
        visit.open(path)
        visit.see("Correct it" if "item" in path else "Page 1")
        visit.settle()
        assert visit.driver.title not in ("1", "broken")
        assert not visit.all(".stMain a[href^='javascript']")
        assert not visit.all(".stMain img[src='x']")
        assert not visit.all(".stMain script")


def test_nothing_is_fetched_from_elsewhere(visit: Visit) -> None:
    """The dashboard works where there is no network, and tells nobody that it is used."""
    import json

    visit.driver.get_log("performance")
    visit.open("/?range=all")
    visit.see("Fell most")
    visit.settle()
    asked = []
    for line in visit.driver.get_log("performance"):
        message = json.loads(line["message"])["message"]
        if message["method"] == "Network.requestWillBeSent":
            asked.append(message["params"]["request"]["url"])
    assert asked
    assert [url for url in asked if not url.startswith((visit.address, "data:", "blob:"))] == []
