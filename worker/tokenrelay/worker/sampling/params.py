"""Sampling options of one request. A further option of the draw begins here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, cast

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tokenrelay.shared.options import Submission


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How the tokens of one request are drawn. docs/sampling.md defines what each option does."""

    temperature: float  # 0 takes the likeliest token
    top_k: int  # 0 = off
    top_p: float  # 1 = off
    seed: int  # 0 <= seed < 2**63
    min_p: float = 0.0  # 0 = off
    logit_bias: tuple[tuple[int, float], ...] = ()  # (vocabulary ID, bias), each ID once
    repetition_penalty: float = 1.0  # of IDs in the prompt or the answer; 1 = off
    frequency_penalty: float = 0.0  # of IDs in the answer, for each occurrence
    presence_penalty: float = 0.0  # of IDs in the answer, once
    bad_words: tuple[tuple[int, ...], ...] = ()  # token sequences that may not be completed
    min_tokens: int = 0  # tokens before the request may end by a token
    stop_token_ids: tuple[int, ...] = ()  # tokens that end the request, beside the model's own

    @classmethod
    def of(cls, options: Submission, bad_words: tuple[tuple[int, ...], ...] = ()) -> SamplingParams:
        """The request's own; submit has resolved the seed. `bad_words` are the option's words as the model's tokens.

        A request of wire version 1 has none of the options after `seed`.
        """
        given = cast("Mapping[str, Any]", options)
        return cls(
            temperature=given["temperature"],
            top_k=given["top_k"],
            top_p=given["top_p"],
            seed=given["seed"],
            min_p=given.get("min_p", 0.0),
            logit_bias=tuple(sorted((int(token_id), bias) for token_id, bias in given.get("logit_bias", {}).items())),
            repetition_penalty=given.get("repetition_penalty", 1.0),
            frequency_penalty=given.get("frequency_penalty", 0.0),
            presence_penalty=given.get("presence_penalty", 0.0),
            bad_words=bad_words,
            min_tokens=given.get("min_tokens", 0),
            stop_token_ids=tuple(given.get("stop_token_ids", ())),
        )

    @property
    def adjusts(self) -> bool:
        """Whether an option changes the raw scores, before temperature and filters."""
        return bool(
            self.logit_bias
            or self.bad_words
            or self.min_tokens
            or self.frequency_penalty
            or self.presence_penalty
            or self.repetition_penalty != 1.0
        )


NEUTRAL: Final[Mapping[str, Any]] = {
    "temperature": 0.0,
    "top_k": 0,
    "top_p": 1.0,
    "min_p": 0.0,
    "logit_bias": {},
    "repetition_penalty": 1.0,
    "frequency_penalty": 0.0,
    "presence_penalty": 0.0,
    "bad_words": [],
    "min_tokens": 0,
    "stop_token_ids": [],
}
"""The options that this package's draw supports, in any engine, and the values at which they have no effect."""
DRAW_OPTIONS: Final = frozenset(NEUTRAL)
