"""Pairs of real tweets and the charts of their shares up to then, from an archive of StockNet (Xu and Cohen 2018).

The archive's tweets carry a ticker and a time and no sentiment. What can be known of a pair without one is where the
tweet says nothing by itself (`$AAPL chart`): there the chart decides. These pairs are for measuring: Twitter's terms do
not let the texts be shipped.
"""

from __future__ import annotations

import json
import random
import re
import tarfile
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import Final, NamedTuple

import numpy as np
import torch
from torch import Tensor

from models.backbones import VisionBackbone
from models.charts.dataset import drawn_bars
from models.charts.labels import TREND_ORDER
from models.charts.prices import Bars, load_prices
from models.charts.screens import worn
from models.training.datasets import Example
from models.training.pairs import NEUTRAL, Pair, Pictures
from monitor.errors import InputError

__all__ = ["Tweet", "bare_tweets", "bars_until", "read_tweets", "tweet_pairs"]

# Words that name a thing to look at and say nothing about how it fares.
_EMPTY: Final = """
rt via chart charts daily weekly monthly intraday stock stocks share shares price prices quote news today now
here look at the this is my our your new updated update watch watching watchlist trade trading trader traders
investing finance market markets option options video live more see on for of a an in and with technical
analysis user url
"""
_EMPTY_WORDS: Final = frozenset(_EMPTY.split())
_CASHTAG: Final = re.compile(r"\$ ?[a-z]+(?:[._][a-z])?", re.IGNORECASE)
_WORD: Final = re.compile(r"[^\W\d_]+")
# Figures of a move, arrows, emoji: they say something.
_SAYING: Final = re.compile(r"[%+\u2190-\u2bff\U0001f000-\U0001ffff]|\d\.\d")
_JOINED: Final = re.compile(r"\$ (?=[A-Za-z])")
_PLACEHOLDER: Final = re.compile(r"\b(?:AT_USER|URL)\b")


class Tweet(NamedTuple):
    """`text` as it was written as far as the archive tells; `at` in UTC."""

    text: str
    ticker: str
    at: datetime


def read_tweets(archive: Path) -> Iterator[Tweet]:
    """The tweets of the archive (`tweet/preprocessed/TICKER/DATE`, JSON Lines in a tar). Raises `InputError`."""
    try:
        with tarfile.open(archive) as tar:
            for member in tar:
                path = PurePosixPath(member.name)
                file = tar.extractfile(member) if member.isfile() and len(path.parts) > 1 else None
                for line in file or ():
                    fields = json.loads(line)
                    text = _PLACEHOLDER.sub("", _JOINED.sub("$", " ".join(fields["text"])))
                    at = datetime.strptime(fields["created_at"], "%a %b %d %H:%M:%S %z %Y").astimezone(UTC)
                    yield Tweet(" ".join(text.split()), path.parts[-2], at)
    except (OSError, tarfile.TarError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{archive} is no archive of StockNet tweets: {error}.") from error


def bare_tweets(archive: Path, count: int, *, seed: int) -> list[Tweet]:
    """At most `count` different tweets about tickers with prices that say nothing but what they are about."""
    prices = load_prices()
    found: dict[str, Tweet] = {}
    for tweet in read_tweets(archive):
        if tweet.ticker in prices and _CASHTAG.search(tweet.text) and _says_nothing(tweet.text):
            found.setdefault(tweet.text.lower(), tweet)
    tweets = list(found.values())
    random.Random(seed).shuffle(tweets)  # noqa: S311 - a sample, no secret
    return tweets[:count]


def _says_nothing(text: str) -> bool:
    return not _SAYING.search(text) and all(
        word.lower() in _EMPTY_WORDS for word in _WORD.findall(_CASHTAG.sub(" ", text))
    )


def bars_until(bars: Bars, at: datetime, count: int) -> Bars:
    """The last `count` bars of sessions before the day of `at`: what a chart could show at that moment."""
    stop = int(np.searchsorted(bars.dates, np.datetime64(at.date())))
    return bars.between(max(0, stop - count), stop)


def tweet_pairs(vision: VisionBackbone, archive: Path, count: int, *, seed: int) -> tuple[list[Pair], Pictures]:
    """At most `count` bare tweets, each with the chart of its ticker up to the day before; the chart decides.

    The tweets are of all tickers: drawn otherwise, the chart encoder has seen bars of most of them.

    Raises `InputError` when the archive cannot be read or holds no such tweet.
    """
    rng = np.random.default_rng([seed, 23])
    prices = load_prices()
    pixels: list[Tensor] = []
    labels: list[int] = []
    texts: list[Example] = []
    for tweet in bare_tweets(archive, count, seed=seed):
        shown = bars_until(prices[tweet.ticker], tweet.at, int(rng.integers(15, 120)))
        if shown.count < 5:
            continue
        drawn = drawn_bars(rng, shown)
        pixels.append(vision.preprocess(worn(drawn.picture, rng)))
        labels.append(TREND_ORDER.index(drawn.trend))
        texts.append(Example(text=tweet.text, sentiment=NEUTRAL, origin="tweets"))
    if not texts:
        raise InputError(f"{archive} holds no tweet that says nothing about a ticker with prices.")
    pictures = Pictures(vision, torch.stack(pixels), np.array(labels, dtype=np.int64))
    return [Pair(text, number, labels[number]) for number, text in enumerate(texts)], pictures
