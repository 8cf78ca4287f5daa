"""Followed requests: one poller of Redis for a process, one feed a request, and their readers."""
