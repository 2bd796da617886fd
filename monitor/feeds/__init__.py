"""Where news comes from: feeds yield `NewsItem`s and know nothing of Kafka."""
