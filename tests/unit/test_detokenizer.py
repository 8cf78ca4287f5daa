"""Incremental text of the three kinds of tokenizers, against decoding everything at once."""

from __future__ import annotations

import random
from functools import cache
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from tokenrelay.worker.text import Detokenizer, EndRules, TextRelease, TokenText

if TYPE_CHECKING:
    from collections.abc import Iterable

SENTENCES = [
    "It is sunny and warm. Isn't it? They don't know, do they!",
    "今天天气很好,阳光明媚。",
    "Sunny ☀️ and rainy 🌧️ and snow ❄️, 👩‍👩‍👧‍👦 family 🇩🇪",
    "Zażółć gęślą jaźń naïve café  two  spaces\nnew line\ttab",
]
UNSEEN = "Привет 안녕 🦊🦊 ไทย é́ x"


@cache
def byte_level() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=380,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<|end|>"],
        show_progress=False,
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>")  # type: ignore[no-untyped-call]
    fast.add_tokens([AddedToken("<tool>", special=False)])
    return fast


@cache
def sentencepiece() -> PreTrainedTokenizerFast:
    pieces = ["▁", "▁It", "▁is", "▁sunny", "▁and", ".", "▁warm", "i", "t", "s", "n", "▁天", "天", "气", "\n", "▁▁"]
    tokens = ["<unk>", "<s>", "</s>", *[f"<0x{byte:02X}>" for byte in range(256)], *pieces]
    tokenizer = Tokenizer(
        models.Unigram([(token, -float(rank)) for rank, token in enumerate(tokens)], unk_id=0, byte_fallback=True)
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="first")
    # As Llama 2's tokenizer.json has it.
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    )


@cache
def word_level() -> PreTrainedTokenizerFast:
    words = [
        "<unk>",
        "<end>",
        "It",
        "is",
        "sunny",
        "and",
        "warm",
        ".",
        "?",
        ",",
        "do",
        "n't",
        "##s",
        "'",
        "not",
        "天气",
    ]
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.decoder = decoders.WordPiece(prefix="##", cleanup=True)
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer, unk_token="<unk>", eos_token="<end>"
    )


KINDS = {"byte_level": byte_level, "sentencepiece": sentencepiece, "word_level": word_level}
kinds = pytest.mark.parametrize("kind", list(KINDS))


def pushed(tokenizer: PreTrainedTokenizerFast, token_ids: Iterable[int]) -> str:
    detokenizer = Detokenizer(tokenizer)
    return "".join([detokenizer.push(token_id) for token_id in token_ids]) + detokenizer.flush()


def decoded(tokenizer: PreTrainedTokenizerFast, token_ids: list[int]) -> str:
    return str(tokenizer.decode(token_ids, skip_special_tokens=True))


@pytest.mark.parametrize("kind", ["byte_level", "word_level"])
@settings(deadline=None, max_examples=300)
@given(data=st.data())
def test_any_ids_give_the_text_of_decoding_them_all(kind: str, data: st.DataObject) -> None:
    tokenizer = KINDS[kind]()
    token_ids = data.draw(st.lists(st.integers(0, len(tokenizer) - 1), max_size=24))
    assert pushed(tokenizer, token_ids) == decoded(tokenizer, token_ids)


def ids_of(tokenizer: PreTrainedTokenizerFast, tokens: list[str]) -> list[int]:
    return [int(tokenizer.vocab[token]) for token in tokens]


def byte_ids(character: str) -> list[int]:
    return ids_of(sentencepiece(), [f"<0x{byte:02X}>" for byte in character.encode()])


@settings(deadline=None, max_examples=300)
@given(
    st.lists(
        st.one_of(
            st.integers(0, 2).map(lambda token_id: [token_id]),
            st.integers(259, len(sentencepiece()) - 1).map(lambda token_id: [token_id]),
            st.characters(codec="utf-8").map(byte_ids),
        ),
        max_size=16,
    )
)
def test_byte_fallback_gives_the_text_of_decoding_them_all(pieces: list[list[int]]) -> None:
    token_ids = [token_id for piece in pieces for token_id in piece]
    assert pushed(sentencepiece(), token_ids) == decoded(sentencepiece(), token_ids)


@settings(deadline=None, max_examples=300)
@given(st.lists(st.integers(0, len(sentencepiece()) - 1), max_size=24))
def test_byte_fallback_never_takes_text_back(token_ids: list[int]) -> None:
    # A run of bytes that isn't UTF-8: what is out stays, and every token that isn't a byte keeps its text.
    text = pushed(sentencepiece(), token_ids)
    words = [token_id for token_id in token_ids if token_id > 258]
    kept = text.replace("\ufffd", "").replace(" ", "")
    for word in sentencepiece().convert_ids_to_tokens(words):
        assert word.replace("▁", "") in kept


@kinds
@pytest.mark.parametrize("text", [*SENTENCES, UNSEEN])
def test_real_text(kind: str, text: str) -> None:
    tokenizer = KINDS[kind]()
    token_ids = tokenizer.encode(text, add_special_tokens=False)
    assert pushed(tokenizer, token_ids) == decoded(tokenizer, token_ids)
    if kind == "byte_level":
        assert pushed(tokenizer, token_ids) == text


@pytest.mark.parametrize("tokenizer", [byte_level(), sentencepiece()], ids=["byte_level", "sentencepiece"])
def test_a_character_comes_with_its_last_byte(tokenizer: PreTrainedTokenizerFast) -> None:
    fox = byte_ids("🦊") if tokenizer is sentencepiece() else tokenizer.encode("🦊", add_special_tokens=False)
    assert len(fox) > 1
    detokenizer = Detokenizer(tokenizer)
    assert [detokenizer.push(token_id) for token_id in fox * 2] == ["", *[""] * (len(fox) - 2), "🦊"] * 2
    assert detokenizer.push(fox[0]) == ""
    assert detokenizer.flush() == "\ufffd"
    assert detokenizer.flush() == ""


def test_a_character_that_is_out_stays_when_the_bytes_behind_it_are_broken() -> None:
    detokenizer = Detokenizer(sentencepiece())
    broken = [*byte_ids("天"), *byte_ids("天")[:1], *ids_of(sentencepiece(), ["▁is"])]
    assert [detokenizer.push(token_id) for token_id in broken] == ["", "", "天", "", "\ufffd is"]


def test_words_are_spaced_and_punctuation_is_not() -> None:
    tokenizer = word_level()
    detokenizer = Detokenizer(tokenizer)
    ids = ids_of(tokenizer, ["It", "is", "sunny", "<end>", "and", "warm", "."])
    assert [detokenizer.push(token_id) for token_id in ids] == ["It", " is", " sunny", "", " and", " warm", "."]


def test_the_window_stays_small() -> None:
    # Linear in the answer's length: a window that grows would make 20,000 tokens take minutes.
    tokenizer = byte_level()
    ids = [tokenizer.eos_token_id] * 10_000 + random.Random(0).choices(range(1, len(tokenizer)), k=10_000)
    assert pushed(tokenizer, ids) == decoded(tokenizer, ids)


@kinds
def test_replay_continues_as_if_nothing_had_happened(kind: str) -> None:
    tokenizer = KINDS[kind]()
    ids = tokenizer.encode(SENTENCES[0] + SENTENCES[2], add_special_tokens=False)
    whole = TokenText(tokenizer, EndRules(("warm. x", "family 🇩🇪 no")))
    releases = [whole.push(token_id) for token_id in ids]
    for cut in range(len(ids)):
        resumed = TokenText(tokenizer, EndRules(("warm. x", "family 🇩🇪 no")))
        assert resumed.replay(ids[:cut]) == releases[:cut]
        assert [resumed.push(token_id) for token_id in ids[cut:]] == releases[cut:]


def test_token_text_stops_inside_a_token_and_flushes_what_is_left() -> None:
    tokenizer = word_level()
    ids = ids_of(tokenizer, ["It", "is", "sunny", "and"])
    text = TokenText(tokenizer, EndRules(("unn",)))
    assert text.replay(ids) == [
        TextRelease("It", stopped=False),
        TextRelease(" is", stopped=False),
        TextRelease(" s", stopped=True),
        TextRelease("", stopped=True),
    ]
    assert (text.flush(), text.stopped) == ("", True)
    text = TokenText(tokenizer, EndRules((" sunny day",)))
    assert [release.text for release in text.replay(ids[:3])] == ["It", " is", ""]
    assert (text.flush(), text.stopped) == (" sunny", False)
