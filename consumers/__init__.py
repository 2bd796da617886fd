"""The processes on Kafka: thin shells round the pure code in `monitor` and the models in `models`."""
