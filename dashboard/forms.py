"""What the forms of several pages share: who acts, and for how long."""

from __future__ import annotations

from typing import Any, Final

import streamlit as st

__all__ = ["LENGTHS_H", "length", "person"]

LENGTHS_H: Final = (1, 4, 12, 24, 72, 168)


def person(*, place: Any = st) -> str:
    """The name of who acts: asked once, kept for the session, written beside what they do. Empty: not given."""
    given = place.text_input("Your name", key="person", persist_state="session", max_chars=128)
    return (given or "").strip()


def length(hours: int) -> str:
    """A length as a person reads it."""
    return f"{hours} h" if hours < 48 else f"{hours // 24} d"
