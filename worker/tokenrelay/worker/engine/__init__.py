"""Token generation: token IDs in, token IDs out; no Redis, no RQ, no text.

`contract` defines an engine, `factory` makes one by its name; each engine has a folder of its own.
"""
