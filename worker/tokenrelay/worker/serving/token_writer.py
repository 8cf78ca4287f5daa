"""What each token of a model writes, for readers that have no tokenizer."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Final, cast

from tokenrelay.worker.sampling.grammar.token_bytes import UnknownBytes, conversion

if TYPE_CHECKING:
    from collections.abc import Callable

    from transformers import PreTrainedTokenizerBase

_KEPT: Final = 65_536


def token_writer(tokenizer: PreTrainedTokenizerBase) -> Callable[[int], bytes]:
    """The function from a token ID to its bytes; for an ID that the tokenizer doesn't have, none.

    Special tokens give their names. Where a token has no bytes of its own, those of its text by itself.
    """
    try:
        to_bytes = conversion(tokenizer)
    except UnknownBytes:
        to_bytes = None
    added = tokenizer.added_tokens_decoder

    @lru_cache(_KEPT)
    def write(token_id: int) -> bytes:
        if token_id in added:
            return added[token_id].content.encode()
        token = cast("str | None", tokenizer.convert_ids_to_tokens(token_id))
        if token is None:
            return b""
        written = to_bytes(token) if to_bytes else None
        return str(tokenizer.decode([token_id])).encode() if written is None else written

    return write
