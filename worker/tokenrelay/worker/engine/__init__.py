"""Token generation: token IDs in, token IDs out; no Redis, no RQ, no text.

`contract` says what an engine is; each engine has a folder of its own.
"""
