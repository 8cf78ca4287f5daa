"""Text on both sides of the engine: prompts to token IDs, token IDs to released text. Knows no engine and no Redis."""

from tokenrelay.worker.text.bad_words import bad_word_ids
from tokenrelay.worker.text.detokenizer import Detokenizer
from tokenrelay.worker.text.prompts import Rendering, encode_prompt
from tokenrelay.worker.text.release import EndRules, TextRelease, TokenText
from tokenrelay.worker.text.stops import StopMatcher

__all__ = [
    "Detokenizer",
    "EndRules",
    "Rendering",
    "StopMatcher",
    "TextRelease",
    "TokenText",
    "bad_word_ids",
    "encode_prompt",
]
