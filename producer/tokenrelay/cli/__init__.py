"""The command line `tokenrelay`: ask, submit, follow, cancel, status, trace, demo."""
