"""Followed requests: one hub per process reads Redis, one feed per request broadcasts to its readers."""
