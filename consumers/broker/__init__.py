"""The embedded development broker: a single node that speaks the Kafka protocol, not for production."""
