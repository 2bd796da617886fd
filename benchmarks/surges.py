"""How fast stories are signed, contributions counted and minutes judged. Prints one JSON object.

usage: python benchmarks/surges.py [--keys 200] [--days 3]
"""

from __future__ import annotations

import argparse
import json
import time

import numpy as np

from monitor.records import Contribution, ContributionBatch, SourceWatermark
from monitor.stories import signature, signatures
from monitor.surges.counting import Counter, CounterState, CountingConfig
from monitor.surges.decisions import MinuteCounts
from monitor.surges.judge import Judge, JudgeConfig
from monitor.surges.ledger import MemoryLedger

BATCH = 256
MINUTE_MS = 60_000


def main() -> None:
    """Measure on one core with generated headlines; times are process times."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--keys", type=int, default=200)
    parser.add_argument("--days", type=int, default=3)
    options = parser.parse_args()
    g = np.random.default_rng(1)
    minutes = options.days * 24 * 60
    negative = g.poisson(0.005, (minutes, options.keys))
    stories = negative + g.poisson(0.02, (minutes, options.keys))
    at, key = np.nonzero(stories)
    titles = [" ".join(f"w{i}" for i in row) for row in g.integers(6000, size=(len(at), 9))]

    begin = time.process_time()
    sketches = [signature(title) for title in titles]
    signing = time.process_time() - begin
    begin = time.process_time()
    together = signatures([(title, "") for title in titles])
    signing_together = time.process_time() - begin
    if together != sketches:
        raise SystemExit("signed together, stories have other signatures")

    items = [
        Contribution(
            key=f"ticker:K{k}",
            item_id=str(i),
            at=int(m) * MINUTE_MS,
            p_negative=0.1,
            score=0.0,
            negative=False,
            signature=s,
        )
        for i, (m, k, s) in enumerate(zip(at, key, sketches, strict=True))
    ]
    counter, ledger = Counter(CountingConfig(), CounterState()), MemoryLedger()
    begin = time.process_time()
    for start in range(0, len(items), BATCH):
        part = tuple(items[start : start + BATCH])
        source = SourceWatermark("news:0", part[-1].at, False)
        counter.apply([ContributionBatch(contributions=part, sources=(source,), source_count=1)], ledger)
    counting = time.process_time() - begin

    names = np.array([f"ticker:K{k}" for k in range(options.keys)])
    judge = Judge(JudgeConfig())
    begin = time.process_time()
    for minute in range(minutes):
        active = np.flatnonzero(stories[minute])
        judge.step(minute, MinuteCounts(names[active].tolist(), stories[minute, active], negative[minute, active]))
    judging = time.process_time() - begin
    print(
        json.dumps(
            {
                "signatures_per_s": round(len(titles) / signing),
                "signatures_together_per_s": round(len(titles) / signing_together),
                "contributions_per_s": round(len(items) / counting),
                "key_minutes_per_s": round(minutes * options.keys / judging),
                "snapshot_bytes_per_key": round(len(judge.snapshot()) / options.keys),
            }
        )
    )


if __name__ == "__main__":
    main()
