"""The bundled corpus of weather talk: `weather_corpus` gives it."""

from __future__ import annotations

from tokenrelay.worker.training.corpus.mixture import FIXED_QUESTION, UNSEEN_QUESTION, canonical, weather_corpus

__all__ = ["FIXED_QUESTION", "UNSEEN_QUESTION", "canonical", "weather_corpus"]
