"""Alert rules, life cycle, routing and delivery."""
