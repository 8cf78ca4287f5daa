"""Resuming: a claim stands where the earlier attempts stopped, text included."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tokenrelay.shared.errors import RequestError
from tokenrelay.shared.wire.entries import State
from tokenrelay.worker.core.attempts import Ending

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tokenrelay.worker.serving.prompts import PromptReader
    from tokenrelay.worker.text import TokenText


def emitted_tokens(emitted: Sequence[bytes], reader: PromptReader) -> tuple[tuple[str, int], ...]:
    """What earlier attempts emitted, as (text, token ID). Raises RequestError `continuation_mismatch`."""
    try:
        pairs = tuple((piece.decode(), int(token)) for token, piece in zip(emitted[::2], emitted[1::2], strict=True))
    except ValueError as error:
        raise RequestError(f"the stream can't be read: {error}", code="continuation_mismatch") from error
    if not reader.in_vocabulary([token for _, token in pairs]):
        raise RequestError("the stream holds tokens that aren't this model's", code="continuation_mismatch")
    return pairs


def resume(text: TokenText, emitted: Sequence[tuple[str, int]], budget: int) -> Ending | None:
    """Replay the emitted tokens into `text`. The ending, where they had already come to it."""
    if not emitted:
        return None
    releases = text.replay(token_id for _, token_id in emitted)
    if [release.text for release in releases] != [piece for piece, _ in emitted]:
        return Ending.failure("continuation_mismatch", "the emitted tokens' text can't be rebuilt")
    if releases[-1].stopped:
        return Ending(State.COMPLETED, "stop")
    return Ending.natural(text, "length") if len(emitted) >= budget else None
