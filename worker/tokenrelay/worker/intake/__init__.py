"""Intake: queued jobs become claims of this worker. It owns no attempt: what it claims it posts to the loop."""
