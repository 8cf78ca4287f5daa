"""Reads from Redis: one request's record, and the models that live workers serve."""
