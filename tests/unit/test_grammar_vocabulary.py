"""Each token's bytes, from the tokenizers that models have."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, cast

import pytest
from tokenizers import Tokenizer, decoders, models

from tests.grammars import TEXTS, allowed, byte_level_tokenizer, fast, sentencepiece_tokenizer
from tokenrelay.worker.sampling.grammar.compiler import GrammarCompiler
from tokenrelay.worker.sampling.grammar.grammar import Grammar
from tokenrelay.worker.sampling.grammar.matcher import AnswerMask
from tokenrelay.worker.sampling.grammar.token_bytes import UnknownBytes, read_vocabulary

if TYPE_CHECKING:
    from collections.abc import Callable

    from transformers import PreTrainedTokenizerFast

EOS = frozenset({0})


@pytest.mark.parametrize("make", [byte_level_tokenizer, sentencepiece_tokenizer])
def test_the_bytes_of_a_texts_tokens_are_the_text(make: Callable[[], PreTrainedTokenizerFast]) -> None:
    """Also where a token holds a part of a character only."""
    tokenizer = make()
    vocabulary = read_vocabulary(tokenizer, 500, EOS)
    for text in TEXTS:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        written = b"".join(vocabulary.tokens[token_id] for token_id in ids)
        assert written.removeprefix(b" " if vocabulary.drops_first_blank else b"") == text.encode()
    singles = {written for written in vocabulary.tokens if len(written) == 1}
    assert singles >= {bytes([byte]) for byte in range(256)}


def test_special_tokens_and_ids_without_a_token_write_nothing() -> None:
    tokenizer = byte_level_tokenizer()
    vocabulary = read_vocabulary(tokenizer, 500, EOS)
    assert len(vocabulary.tokens) == 500
    assert [vocabulary.tokens[each] for each in (0, 1, 499)] == [b"", b"", b""]
    added = tokenizer.convert_tokens_to_ids("<think>")
    assert vocabulary.tokens[cast("int", added)] == b"<think>"


def test_only_sentencepiece_drops_an_answers_first_blank() -> None:
    assert read_vocabulary(sentencepiece_tokenizer(), 500, EOS).drops_first_blank
    assert not read_vocabulary(byte_level_tokenizer(), 500, EOS).drops_first_blank


def test_a_token_that_decodes_to_something_else_is_left_out() -> None:
    """A decoder that changes some tokens: "is" comes out as "IS"."""
    tokenizer = sentencepiece_tokenizer()
    backend = tokenizer.backend_tokenizer
    backend.decoder = decoders.Sequence([decoders.Replace("is", "IS"), backend.decoder])
    changed = fast(backend)
    tokens = read_vocabulary(changed, 500, EOS).tokens
    assert b"is" not in tokens
    assert b"the" in tokens


def test_a_tokenizer_whose_tokens_have_no_bytes_is_refused() -> None:
    """A decoder of words: a blank before each but the first."""
    words = Tokenizer(models.WordLevel({"<eos>": 0, "a": 1, "b": 2}, unk_token="<eos>"))
    words.decoder = decoders.WordPiece()
    with pytest.raises(UnknownBytes, match="WordPiece"):
        read_vocabulary(fast(words), 3, EOS)


def test_a_tokenizer_that_removes_blanks_is_refused() -> None:
    tokenizer = byte_level_tokenizer()
    tokenizer.clean_up_tokenization_spaces = True
    with pytest.raises(UnknownBytes, match="clean_up_tokenization_spaces"):
        read_vocabulary(tokenizer, 500, EOS)


def test_an_answer_begins_with_no_blank_that_would_be_dropped() -> None:
    """Otherwise " is" would be allowed, and the answer be "is", which the pattern doesn't match."""
    vocabulary = read_vocabulary(sentencepiece_tokenizer(), 500, EOS)
    grammar = Grammar("regex", " ?is")
    for kept, first in (
        (vocabulary, {b"i", b"is"}),
        (replace(vocabulary, drops_first_blank=False), {b"i", b"is", b" ", b" is"}),
    ):
        compiler = GrammarCompiler(kept)
        mask = AnswerMask(compiler.compile(grammar))
        compiler.close()
        assert {vocabulary.tokens[each] for each in allowed(mask([]))} == first
        blank = vocabulary.tokens.index(b" ")
        assert blank not in allowed(mask([vocabulary.tokens.index(b"i")]))
