"""The model that ships in the wheel. Knows its path, nothing of loading or training."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path


def weather_model_path() -> Path:
    """The folder of the bundled weather-talk model, as `from_pretrained` takes it."""
    return Path(str(files(__name__) / "weather"))
