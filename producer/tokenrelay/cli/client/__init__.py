"""Commands for one request: ask, submit, follow, cancel, trace."""
