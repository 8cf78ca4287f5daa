"""RQ's mirror: what RQ's own tools see of this worker, and what they can do to it. Requests are not decided here."""
