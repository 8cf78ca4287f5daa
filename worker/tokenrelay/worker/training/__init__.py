"""Training of the bundled weather-talk model, and fine-tuning of others.

`trainer.train` does it, `command.train_command` is the CLI's `train`. Knows nothing of Redis, requests or the engine.
"""
