"""Lengths of time as people write them: `30s`, `5m`, `2h`, `1d`."""

from __future__ import annotations

import re
from datetime import timedelta

__all__ = ["parse_duration"]

_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}
_PART = re.compile(r"(\d+(?:\.\d+)?)([smhd])")


def parse_duration(text: str) -> timedelta:
    """`1h30m` to a timedelta. Raises `ValueError` when it is not of this form, is zero or exceeds a year."""
    compact = text.replace(" ", "").lower()
    parts = _PART.findall(compact)
    if not parts or "".join(number + unit for number, unit in parts) != compact:
        raise ValueError(f"{text!r} is not a length of time such as 30s, 5m, 2h or 1d")
    length = sum((timedelta(**{_UNITS[unit]: float(number)}) for number, unit in parts), timedelta())
    if not timedelta() < length <= timedelta(days=366):
        raise ValueError(f"{text!r} must be longer than nothing and at most a year")
    return length
