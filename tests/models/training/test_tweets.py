"""Pairs of tweets and charts: what counts as saying nothing, and what a chart could show at that moment."""

from __future__ import annotations

import io
import json
import tarfile
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from models.backbones import ChartVision
from models.charts.encoder import ChartEncoder, ChartEncoderConfig
from models.charts.labels import TREND_ORDER, trend_of
from models.charts.prices import load_prices
from models.training.tweets import Tweet, bare_tweets, bars_until, read_tweets, tweet_pairs
from monitor.errors import InputError


def archive(folder: Path, tweets: dict[str, list[str]], created_at: str = "Fri Jan 03 22:11:41 +0100 2014") -> Path:
    path = folder / "tweets.tar.gz"
    with tarfile.open(path, "w:gz") as tar:
        for ticker, texts in tweets.items():
            lines = [json.dumps({"text": text.split(), "created_at": created_at}) for text in texts]
            content = "\n".join(lines).encode()
            member = tarfile.TarInfo(f"tweet/preprocessed/{ticker}/2014-01-03")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def test_tweets_are_read_with_their_ticker_and_time_and_without_placeholders(tmp_path: Path) -> None:
    path = archive(tmp_path, {"AAPL": ["rt AT_USER $ aapl chart URL"], "MSFT": ["$ msft"]})
    at = datetime(2014, 1, 3, 21, 11, 41, tzinfo=UTC)
    assert list(read_tweets(path)) == [Tweet("rt $aapl chart", "AAPL", at), Tweet("$msft", "MSFT", at)]


def test_only_what_says_nothing_is_bare(tmp_path: Path) -> None:
    saying = [
        "$ aapl breakout",
        "$ aapl +3.2 %",
        "$ aapl \N{ROCKET}",
        "$ aapl 52.35",
        "apple chart",
        "$ aapl buy the dip",
    ]
    bare = ["$ aapl daily chart URL", "AT_USER look at $ aapl", "$ AAPL DAILY CHART"]
    path = archive(tmp_path, {"AAPL": saying + bare, "NONE": ["$ none chart"]})
    found = {tweet.text for tweet in bare_tweets(path, 10, seed=1)}
    assert found == {"$aapl daily chart", "look at $aapl"}
    assert len(bare_tweets(path, 1, seed=1)) == 1


def test_a_chart_ends_before_the_day_of_the_tweet() -> None:
    bars = load_prices()["AAPL"]
    at = datetime(2014, 1, 3, 22, tzinfo=UTC)
    shown = bars_until(bars, at, 30)
    assert shown.count == 30
    assert shown.dates[-1] == np.datetime64("2014-01-02")
    assert bars_until(bars, datetime(2000, 1, 1, tzinfo=UTC), 30).count == 0


def test_the_chart_decides_what_a_pair_says(tmp_path: Path) -> None:
    usual = ChartEncoderConfig()
    torch.manual_seed(0)
    vision = ChartVision(ChartEncoder(usual))
    seen: list[Tensor] = []
    preprocess = vision.preprocess
    vision.preprocess = lambda image: seen.append(preprocess(image)) or seen[-1]  # type: ignore[method-assign,func-returns-value]
    texts = ["$ aapl chart", "look at $ aapl", "$ aapl today"]
    pairs, pictures = tweet_pairs(vision, archive(tmp_path, {"AAPL": texts}), 10, seed=5)
    assert len(pairs) == len(seen) == 3
    assert sorted(pair.text.text for pair in pairs) == ["$aapl chart", "$aapl today", "look at $aapl"]
    assert [pair.sentiment for pair in pairs] == [int(pictures.labels[pair.picture]) for pair in pairs]
    assert {TREND_ORDER[pair.sentiment] for pair in pairs} <= {trend_of(x) for x in (-1.0, 0.0, 1.0)}


def test_what_is_no_archive_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.tar").write_bytes(b"nothing")
    with pytest.raises(InputError, match="no archive of StockNet tweets"):
        list(read_tweets(tmp_path / "x.tar"))
    with pytest.raises(InputError, match="no tweet that says nothing"):
        tweet_pairs(ChartVision(ChartEncoder()), archive(tmp_path, {"AAPL": ["$ aapl soars"]}), 10, seed=5)
