"""The pages and their addresses."""

from __future__ import annotations

from functools import partial
from importlib import import_module

import streamlit as st

from dashboard.store import guarded

__all__ = ["page", "pages"]

_PAGES = {
    "overview": ("Overview", ":material/monitoring:"),
    "alerts": ("Alerts", ":material/notifications:"),
    "rules": ("Rules", ":material/rule:"),
    "delivery": ("Delivery", ":material/send:"),
    "articles": ("Articles", ":material/article:"),
    "labels": ("Labels", ":material/label:"),
    "system": ("System", ":material/settings:"),
}


@guarded
def _show(name: str) -> None:
    import_module(f"dashboard.views.{name}").show()


def page(name: str) -> st.Page:
    """The page of that name: for links and for moving there."""
    title, icon = _PAGES[name]
    return st.Page(partial(_show, name), title=title, icon=icon, url_path=name, default=name == "overview")


def pages() -> list[st.Page]:
    """All pages in the order of the menu."""
    return [page(name) for name in _PAGES]
