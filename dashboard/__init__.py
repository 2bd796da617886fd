"""The Streamlit pages for analysts; they read the store through `monitor.storage` queries only."""
