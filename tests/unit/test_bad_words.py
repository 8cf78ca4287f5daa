"""Bad words as token sequences: of a BPE tokenizer as vLLM's, and of one that knows few words."""

from __future__ import annotations

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from tokenrelay.shared.errors import RequestError
from tokenrelay.shared.options import Limits, filled, validate
from tokenrelay.shared.store.jobs import Execution
from tokenrelay.worker.core.attempts import Attempt, Work, engine_request
from tokenrelay.worker.text import bad_word_ids


def byte_level() -> PreTrainedTokenizerFast:
    """Every letter, and `no` as one token at the start of a text and behind a blank."""
    letters = ["Ġ", "a", "b", "n", "o", "no", "Ġno"]
    vocab = {token: index for index, token in enumerate(letters)}
    tokenizer = Tokenizer(models.BPE(vocab, [("n", "o"), ("Ġ", "no")]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)  # type: ignore[no-untyped-call]


def word_level() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.WordLevel({"?": 0, "sunny": 1, "day": 2}, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="?")  # type: ignore[no-untyped-call]


def test_a_word_is_excluded_at_the_start_and_behind_a_blank() -> None:
    assert bad_word_ids(byte_level(), ["no"]) == ((5,), (6,))
    assert bad_word_ids(byte_level(), [" no"]) == ((5,), (6,)), "blanks before it don't count, as in vLLM"
    # Behind a blank it has another length, where vLLM leaves it out: `no` behind a blank is one token.
    assert bad_word_ids(byte_level(), ["ab"]) == ((1, 2), (0, 1, 2))


def test_a_sequence_is_there_once() -> None:
    assert bad_word_ids(word_level(), ["sunny day", "sunny  day", "sunny"]) == ((1, 2), (1,))


def test_a_word_that_the_vocabulary_cannot_write_excludes_nothing() -> None:
    assert bad_word_ids(word_level(), ["rainy", "sunny"]) == ((1,),)


def test_a_word_without_tokens_is_refused() -> None:
    with pytest.raises(RequestError, match="bad_words: ' ' has no tokens") as caught:
        bad_word_ids(word_level(), ["sunny", " "])
    assert caught.value.field == "bad_words"


def test_the_engine_is_given_the_sequences() -> None:
    options = filled(validate({"prompt": "x", "model": "m", "seed": 1}, Limits(1_000, 100)))
    attempt = Attempt(Execution("request", "queue"), "1:1", 1, 60, tokens=[("x", 1)])
    asked = engine_request(attempt, Work(options, (3,), 9, bad_words=((5,), (6,))))
    assert (asked.sampling.bad_words, asked.emitted_ids) == (((5,), (6,)), (1,))
