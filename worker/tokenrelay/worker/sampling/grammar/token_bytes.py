"""The bytes that each token of a tokenizer writes."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Final, cast

from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from tokenrelay.worker.sampling.grammar.vocabulary import Vocabulary

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    _ToBytes = Callable[[str], bytes | None]

_BYTE: Final = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_BLANK: Final = "\u2581"
"""How SentencePiece writes a blank."""


class UnknownBytes(Exception):
    """This tokenizer's tokens have no bytes of their own: what one writes depends on its neighbours."""


def read_vocabulary(tokenizer: PreTrainedTokenizerBase, size: int, eos_ids: frozenset[int]) -> Vocabulary:
    """The vocabulary of a model with `size` token IDs. Raises UnknownBytes.

    Byte-level BPE, and SentencePiece's Unigram and BPE. Each token's bytes are compared with what the tokenizer
    decodes behind another token; one that differs is left out, and so never drawn under a grammar.
    """
    to_bytes = conversion(tokenizer)
    tokens = [b""] * size
    added = tokenizer.added_tokens_decoder
    for token, token_id in tokenizer.get_vocab().items():
        if token_id >= size:
            continue
        known = added.get(token_id)
        if known is None:
            tokens[token_id] = to_bytes(token) or b""
        elif not known.special:
            tokens[token_id] = known.content.encode()
    for token_id in eos_ids:
        tokens[token_id] = b""
    behind = _Decoder(tokenizer, tokens)
    differing = [each for each, written in enumerate(tokens) if written and not behind.writes(each, written)]
    if len(differing) > size // 10:
        raise UnknownBytes(
            f"{len(differing)} of its {size} tokens decode to something else, depending on their neighbours"
        )
    for token_id in differing:
        tokens[token_id] = b""
    if not any(tokens):
        raise UnknownBytes("none of its tokens writes anything")
    return Vocabulary(tuple(tokens), tuple(sorted(eos_ids)), behind.drops_first_blank())


def conversion(tokenizer: PreTrainedTokenizerBase) -> _ToBytes:
    """The function from a token, as the vocabulary writes it, to its bytes. Raises UnknownBytes."""
    if getattr(tokenizer, "clean_up_tokenization_spaces", False):
        raise UnknownBytes("it removes blanks before punctuation (clean_up_tokenization_spaces)")
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        if hasattr(tokenizer, "sp_model"):
            return _sentencepiece_bytes
        raise UnknownBytes(f"{type(tokenizer).__name__} doesn't say how it decodes")
    decoder = json.loads(tokenizer.backend_tokenizer.to_str())["decoder"]
    steps = {step["type"]: step for step in _steps(decoder)}
    if "ByteLevel" in steps:
        return _byte_level_bytes
    if "ByteFallback" in steps or "Metaspace" in steps:
        return _sentencepiece_bytes
    raise UnknownBytes(f"it decodes by {', '.join(steps) or 'no rule'}, not byte by byte")


def _steps(decoder: Mapping[str, object] | None) -> Iterator[Mapping[str, str]]:
    if decoder and decoder["type"] == "Sequence":
        for each in cast("list[Mapping[str, object]]", decoder["decoders"]):
            yield from _steps(each)
    elif decoder:
        yield cast("Mapping[str, str]", decoder)


def _sentencepiece_bytes(token: str) -> bytes:
    byte = _BYTE.fullmatch(token)
    return bytes([int(byte[1], 16)]) if byte else token.replace(_BLANK, " ").encode()


def _byte_level_bytes(token: str) -> bytes | None:
    try:
        return bytes(_BYTE_OF[char] for char in token)
    except KeyError:
        return None


def _byte_characters() -> Iterator[tuple[str, int]]:
    """GPT-2's character for each byte: itself where it is visible in Latin-1, else the next one from U+0100 on."""
    hidden = 0
    for byte in range(256):
        if 0x21 <= byte <= 0x7E or 0xA1 <= byte <= 0xAC or 0xAE <= byte:
            yield chr(byte), byte
        else:
            yield chr(256 + hidden), byte
            hidden += 1


_BYTE_OF: Final = dict(_byte_characters())


class _Decoder:
    """What the tokenizer itself makes of a token."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, tokens: list[bytes]) -> None:
        fast = isinstance(tokenizer, PreTrainedTokenizerFast)
        self._decode = tokenizer.backend_tokenizer.decode if fast else tokenizer.decode
        letters = (each for each, written in enumerate(tokens) if written.isalpha() and len(written) == 1)
        self._before = next(letters, None)
        if self._before is None:
            raise UnknownBytes("no token of it is a single letter")
        self._letter = self._text([self._before])
        self._tokens = tokens

    def _text(self, ids: list[int]) -> str:
        return cast("str", self._decode(ids, skip_special_tokens=True))

    def writes(self, token_id: int, expected: bytes) -> bool:
        """Whether the token behind a letter writes these bytes. Parts of characters can't be compared: they pass."""
        try:
            text = expected.decode()
        except UnicodeDecodeError:
            return True
        return self._text([cast("int", self._before), token_id]) == self._letter + text

    def drops_first_blank(self) -> bool:
        """Whether a token that begins with a blank writes none at the begin of an answer."""
        blank = next((each for each, written in enumerate(self._tokens) if re.fullmatch(rb" [a-z]+", written)), None)
        return blank is not None and not self._text([blank]).startswith(" ")
