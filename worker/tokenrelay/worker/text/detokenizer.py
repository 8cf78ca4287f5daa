"""Token IDs to text, one token at a time.

Owns what is held back while a character's bytes are incomplete. Knows a tokenizer; nothing of requests or stop strings.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, cast

from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

if TYPE_CHECKING:
    from collections.abc import Callable

_REPLACEMENT = "\ufffd"


class Detokenizer:
    """The text of an answer, released as its tokens come.

    All releases and `flush` together are `tokenizer.decode(all ids, skip_special_tokens=True)`. One exception: a
    byte-fallback tokenizer decodes a run of byte tokens that isn't UTF-8 as a whole into replacement characters, also
    the characters in it that were complete and are long released; here those stay, and the rest is replaced.

    A small window is decoded each time, the tokens that last gave text and those since, and the difference is the
    release: the first ones carry the spacing rules, which look one token back. (The prefix-offset method, as in
    text-generation-inference and vLLM.)
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._decode = _decoder(tokenizer)
        self._skipped = {token_id for token_id, token in tokenizer.added_tokens_decoder.items() if token.special}
        self._context: list[int] = []  # the tokens that last gave text
        self._pending: list[int] = []  # those since
        self._released = 0  # characters of `_pending`'s text that are out already

    def push(self, token_id: int) -> str:
        """The text that this token releases; empty while the bytes of a character are incomplete."""
        if token_id in self._skipped:
            return ""
        self._pending.append(token_id)
        text = self._pending_text()
        # An incomplete character decodes to replacement characters, as many as the decoder likes: what stands before
        # them is final.
        final = text.rstrip(_REPLACEMENT)
        release = final[self._released :]
        if text and final == text:
            self._context, self._pending, self._released = self._pending, [], 0
        else:
            self._released = max(self._released, len(final))
        return release

    def flush(self) -> str:
        """What is still held: replacement characters for bytes that no token completed."""
        text = self._pending_text()[self._released :] if self._pending else ""
        self._context, self._pending, self._released = self._context + self._pending, [], 0
        return text

    def _pending_text(self) -> str:
        before = self._decode(self._context)
        text = self._decode(self._context + self._pending)
        if text.startswith(before):
            return text[len(before) :]
        # A run of byte tokens that turned out not to be UTF-8 took back what was released.
        return self._decode(self._pending)


def _decoder(tokenizer: PreTrainedTokenizerBase) -> Callable[[list[int]], str]:
    """`tokenizer.decode` without special tokens.

    Most tokenizers only pass the IDs on to the Rust one, 1 µs of the 17 that their call takes. Two calls a token would
    then cost more than publishing it, so the Rust one is called itself.
    """
    kind = type(tokenizer)
    passes_on = (
        isinstance(tokenizer, PreTrainedTokenizerFast)
        and kind.decode is PreTrainedTokenizerBase.decode
        and kind._decode is PreTrainedTokenizerFast._decode
        and not tokenizer.clean_up_tokenization_spaces
    )
    decode = tokenizer.backend_tokenizer.decode if passes_on else tokenizer.decode
    return cast("Callable[[list[int]], str]", partial(decode, skip_special_tokens=True))
