"""Training: how the bundled weather-talk model is made, and how another model is fine-tuned.

`trainer.train` does it, `command.train_command` is the CLI's `train`. Knows nothing of Redis, requests or the engine.
"""
