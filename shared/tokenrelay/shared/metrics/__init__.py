"""Metrics: their types, their exposition in text, and those of the queues."""
