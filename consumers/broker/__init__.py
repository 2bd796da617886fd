"""An embedded development broker that speaks the Kafka protocol: one node, loopback, not for production."""
