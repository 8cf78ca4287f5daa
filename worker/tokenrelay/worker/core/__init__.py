"""The core of the worker: claim, generate, publish, lease. One loop owns the attempts."""
