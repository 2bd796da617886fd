"""Packs the StockNet price tables (`AAPL.csv`, ... with Date, Open, High, Low, Close, Adj Close, Volume) into
`models/data/prices.npz`, from which charts are rendered.

    python scripts/build_price_data.py FOLDER

Rows with a missing value (three in the published set) and rows that are no bar (low above high) are left out.
"""

from __future__ import annotations

import csv
import sys
from pathlib import Path

import numpy as np

TARGET = Path(__file__).parent.parent / "models" / "data" / "prices.npz"
COLUMNS = ("Open", "High", "Low", "Close", "Volume")


def main(folder: Path) -> None:
    """Read every table of `folder`, write the archive, say what was left out."""
    tickers, starts, days, bars, dropped = [], [0], [], [], 0
    for path in sorted(folder.glob("*.csv")):
        with path.open(newline="") as file:
            for row in csv.DictReader(file):
                try:
                    values = [float(row[name]) for name in COLUMNS]
                except ValueError:
                    dropped += 1
                    continue
                opened, high, low, close, _ = values
                if not (np.isfinite(values).all() and 0 < low <= min(opened, close) <= max(opened, close) <= high):
                    dropped += 1
                    continue
                days.append(np.datetime64(row["Date"], "D").astype(np.int32))
                bars.append(values)
        tickers.append(path.stem)
        starts.append(len(bars))
    np.savez_compressed(
        TARGET,
        tickers=np.array(tickers),
        starts=np.array(starts, dtype=np.int32),
        days=np.array(days, dtype=np.uint16),
        bars=np.array(bars, dtype=np.float32).T,
    )
    print(f"{len(tickers)} tickers, {len(bars)} bars, {dropped} rows left out, {TARGET.stat().st_size} bytes")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
