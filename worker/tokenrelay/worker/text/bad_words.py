"""Words that an answer may not contain, as the token sequences that would write them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tokenrelay.shared.errors import RequestError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from transformers import PreTrainedTokenizerBase


def bad_word_ids(tokenizer: PreTrainedTokenizerBase, words: Sequence[str]) -> tuple[tuple[int, ...], ...]:
    """The token sequences of each word, as at the start of a text and behind a blank, each once.

    As vLLM's, which leaves out the one behind a blank where it has another length. Raises RequestError for a word that
    has no tokens. A word that the vocabulary can't write has none to exclude.
    """
    sequences: dict[tuple[int, ...], None] = {}
    for word in words:
        bare = word.lstrip()
        for text in (bare, f" {bare}"):
            ids = tuple(tokenizer.encode(text, add_special_tokens=False))
            if not ids and text == bare:
                raise RequestError(
                    f"bad_words: {word!r} has no tokens in this model's vocabulary; give visible text",
                    field="bad_words",
                )
            if ids and tokenizer.unk_token_id not in ids:
                sequences[ids] = None
    return tuple(sequences)
