"""Resuming: a claim stands where the earlier attempts stopped, text included."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tokenrelay.shared.errors import RequestError
from tokenrelay.shared.wire.entries import State
from tokenrelay.worker.core.attempts import Ending

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tokenrelay.shared.store.replies import Granted
    from tokenrelay.shared.store.requests import WrittenToken
    from tokenrelay.worker.serving.prompts import PromptReader
    from tokenrelay.worker.text import TokenText


def emitted_tokens(granted: Granted, reader: PromptReader) -> tuple[WrittenToken, ...]:
    """What earlier attempts emitted. Raises RequestError `continuation_mismatch`."""
    emitted = granted.emitted
    try:
        pairs = tuple((piece.decode(), int(token)) for token, piece in zip(emitted[::2], emitted[1::2], strict=True))
    except ValueError as error:
        raise RequestError(f"the stream can't be read: {error}", code="continuation_mismatch") from error
    if not reader.in_vocabulary([token for _, token in pairs]):
        raise RequestError("the stream holds tokens that aren't this model's", code="continuation_mismatch")
    if not granted.logprobs:
        return pairs
    if len(granted.logprobs) != len(pairs):
        raise RequestError("the stream lacks tokens' logprobs", code="continuation_mismatch")
    return tuple((*pair, logprobs) for pair, logprobs in zip(pairs, granted.logprobs, strict=True))


def resume(text: TokenText, emitted: Sequence[WrittenToken], budget: int) -> Ending | None:
    """Replay the emitted tokens into `text`. The ending, where they had already come to it."""
    if not emitted:
        return None
    releases = text.replay(token[1] for token in emitted)
    if [release.text for release in releases] != [token[0] for token in emitted]:
        return Ending.failure("continuation_mismatch", "the emitted tokens' text can't be rebuilt")
    if releases[-1].stopped:
        return Ending(State.COMPLETED, "stop")
    return Ending.natural(text, "length") if len(emitted) >= budget else None
