"""The domain of the sentiment monitor and its services; knows neither torch nor Kafka nor Streamlit."""
