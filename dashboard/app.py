"""What Streamlit runs for every visit: the frame around the pages."""

from __future__ import annotations

from pathlib import Path

import streamlit as st

from dashboard.markup import style
from dashboard.navigation import page, pages

# A file of ours: Streamlit's own icons are fetched from the network when they stand in the browser's tab.
ICON = str(Path(__file__).with_name("icon.svg"))

st.set_page_config(page_title="Sentiment monitor", page_icon=ICON, layout="wide")
style()
current = st.navigation(pages(), position="top")
wanted = st.query_params.get("alert")
if wanted and current.url_path != page("alerts").url_path:
    # Alerts carry the address of the dashboard itself and their id.
    st.switch_page(page("alerts"), query_params={"alert": wanted})
current.run()
