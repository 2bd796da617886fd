"""`alerts why`: the answer for a past time, from the stored counts."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from sqlalchemy import insert

from monitor.settings import load_settings
from monitor.storage import tables as t
from monitor.storage.engine import open_engine, writing
from monitor.storage.migrate import upgrade
from monitor.surges.live import LiveJudge
from monitor.surges.ticks import MINUTE_MS
from tests.monitor.cli.conftest import Cli

BEGIN, MINUTES, SURGE = 28_400_010, 1800, 1700


def fill(data_dir: Path, key: str = "ticker:AAA", **given: Any) -> None:
    """A key known for more than a day, with thirty negative stories at the end; judged as it is live."""
    g = np.random.default_rng(3)
    rows = []
    for minute in range(MINUTES):
        negative = 2 if SURGE <= minute < SURGE + 15 else int(g.random() < 0.01)
        stories = negative + int(g.random() < 0.04)
        if stories or not minute:
            stories = stories or 1
            counted = {"stories": stories, "negative_stories": negative, "items": stories, "negative_items": negative}
            rows.append({"key": key, "minute": BEGIN + minute, "score_sum": 0.0, "late": 0} | counted)
    settings = load_settings(None, data_dir=data_dir, **given)
    engine = open_engine(settings.database)
    upgrade(engine)
    partition = {"next_offset": 1, "sources": [], "source_count": 0, "log": "", "counted": 0, "late": 0, "stale": 0}
    with writing(engine) as connection:
        connection.execute(insert(t.ticks), rows)
        closed = {"watermark": (BEGIN + MINUTES) * MINUTE_MS, "updated_at": datetime.now(UTC)}
        connection.execute(insert(t.partitions).values(partition=0, **partition, **closed))
    judge = LiveJudge(engine, settings, 1)
    while judge.advance():
        pass
    judge.release()
    engine.dispose()


def at(minute: int) -> str:
    return datetime.fromtimestamp((BEGIN + minute) * 60, UTC).isoformat()


def test_any_judged_time_is_explained_and_others_are_refused(cli: Cli, tmp_path: Path) -> None:
    fill(tmp_path / "data")
    fired = cli("alerts", "why", "ticker:AAA", "--at", at(SURGE + 15))
    assert fired.code == 0, fired.err
    assert "firing" in fired.out
    # Times look alike, and the clock of each is named: the judge's are those of the news.
    surge = datetime.fromtimestamp((BEGIN + SURGE) * 60, UTC)
    assert f"An episode has been firing since {surge:%Y-%m-%d %H:}" in fired.out
    assert re.search(rf"^  event time  {surge:%Y-%m-%d} \d\d:\d\d:00  raised by judge  from: ", fired.out, re.MULTILINE)
    (alert,) = map(json.loads, cli("alerts", "list", "--json").out.splitlines())
    assert cli("alerts", "ack", alert["id"], "--by", "ada").code == 0
    taken = cli("alerts", "why", "ticker:AAA", "--at", at(SURGE + 15)).out
    assert re.findall(r"\dT\d|\+00:00", taken) == []
    assert re.search(r"^  wall clock  \d{4}-\d\d-\d\d \d\d:\d\d:\d\d  acknowledged by ada$", taken, re.MULTILINE)
    shown = cli("alerts", "show", alert["id"]).out
    clocks = re.findall(r"^  (event time|wall clock)  \S+ \S+  (\w+) ", shown, re.MULTILINE)
    assert (clocks[0], clocks[-1]) == (("event time", "pending"), ("wall clock", "acknowledged"))
    asked = json.loads(cli("alerts", "why", alert["id"][:8], "--json").out)
    assert (asked["standing"]["key"], asked["standing"]["verdict"]) == ("ticker:AAA", "firing")
    assert datetime.fromisoformat(asked["at"]) == datetime.fromisoformat(alert["fired_at"])
    before = json.loads(cli("alerts", "why", "ticker:AAA", "--at", at(SURGE - 10), "--json").out)
    assert before["standing"]["verdict"] in {"below_bar", "too_few_stories"}
    assert before["highest"] < before["standing"]["bar"]
    assert "Known for" in cli("alerts", "why", "ticker:AAA", "--at", at(600)).out
    assert "Nothing was counted" in cli("alerts", "why", "ticker:ZZZ").out
    late = cli("alerts", "why", "ticker:AAA", "--at", at(MINUTES + 60))
    assert (late.code, late.out) == (3, "")
    assert "has not been judged" in late.err
    assert "Ask for" in late.err


def test_a_store_without_judging_says_so(cli: Cli) -> None:
    empty = cli("alerts", "why", "market")
    assert empty.code == 3
    assert "Nothing has been judged yet" in empty.err
