"""The bundled tokenizer: a token for each word of its corpus, bytes for any other text, and all of it comes back."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Final, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from tokenrelay.worker.models import weather_model_path
from tokenrelay.worker.text import EndRules, TokenText, encode_prompt
from tokenrelay.worker.training.conversation import Conversation, Turn
from tokenrelay.worker.training.corpus import weather_corpus
from tokenrelay.worker.training.corpus.climate import STRANGE_PLACES
from tokenrelay.worker.training.tokenizer import build_tokenizer

if TYPE_CHECKING:
    from collections.abc import Iterator

    from transformers import PreTrainedTokenizerBase

STRANGE: Final = (
    "é",
    "e\u0301 stays two characters",
    "日本の天気",
    "👩‍👩‍👧 and 🌧️",
    "  two  blanks and a tab\t, \r\n lines\n\n",
    "\u00a0\u3000\u2028",
    '{"a": [1, {"b": null}], "c": "\\u00e9\\""}',
    "\x00\x1f\x7f",
    "What’s Gotham's weather?!?",
    "<end><pad><unk>",
    " leading, trailing ",
)


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return cast("PreTrainedTokenizerBase", AutoTokenizer.from_pretrained(weather_model_path()))


def words_of(tokenizer: PreTrainedTokenizerBase, text: str) -> list[str]:
    """The words that the tokenizer splits a text into, each with the space before it, as its vocabulary writes them."""
    return [word for word, _ in tokenizer.backend_tokenizer.pre_tokenizer.pre_tokenize_str(text)]


def released(tokenizer: PreTrainedTokenizerBase, ids: list[int], stop: tuple[str, ...] = ()) -> Iterator[str]:
    """What the worker publishes with each token, and at the end."""
    text = TokenText(tokenizer, EndRules(stop))
    yield from (text.push(token_id).text for token_id in ids)
    yield text.flush()


def test_question_is_seven_tokens(tokenizer: PreTrainedTokenizerBase) -> None:
    ids = tokenizer("What is the weather today?")["input_ids"]
    assert [tokenizer.decode([token_id]) for token_id in ids] == [
        *("What", " is", " the", " weather", " today", "?"),
        "<end>",
    ]


def test_every_corpus_word_is_one_token(tokenizer: PreTrainedTokenizerBase) -> None:
    """All words of answers, and words of questions from the third occurrence on, as before bytes were tokens."""
    asked: Counter[str] = Counter()
    answered: set[str] = set()
    for conversation in weather_corpus().train:
        asked.update(words_of(tokenizer, conversation.system or ""))
        for turn in conversation.turns:
            asked.update(words_of(tokenizer, turn.question))
            answered.update(words_of(tokenizer, turn.answer))
    words = answered | {word for word, count in asked.items() if count >= 3}
    assert len(words) > 450
    assert words <= set(tokenizer.get_vocab())
    assert all(len(tokenizer.backend_tokenizer.model.tokenize(word)) == 1 for word in words)
    strange = {f"Ġ{place}" for place in STRANGE_PLACES}
    assert strange & set(asked), "learnt in pieces, as every place is that the model doesn't know"
    assert not strange & set(tokenizer.get_vocab())


def test_every_byte_is_a_token(tokenizer: PreTrainedTokenizerBase) -> None:
    """So any text can be written, whatever a grammar asks for."""
    single = {token for token in tokenizer.get_vocab() if len(token) == 1}
    assert len(single) == 256
    assert tokenizer.unk_token is None
    assert tokenizer.get_vocab()["<pad>"] == tokenizer.pad_token_id == 0
    assert tokenizer.get_vocab()["<end>"] == tokenizer.eos_token_id == 1


@pytest.mark.parametrize("text", STRANGE)
def test_a_text_that_the_corpus_never_had_comes_back_as_it_was(tokenizer: PreTrainedTokenizerBase, text: str) -> None:
    ids = encode_prompt(tokenizer, text)
    assert ids[-1] == tokenizer.eos_token_id
    assert tokenizer.decode(ids[:-1]) == text
    assert "".join(released(tokenizer, ids[:-1])) == text
    assert not set(ids[:-1]) & set(tokenizer.all_special_ids)


@given(text=st.text())
def test_any_text_comes_back_as_it_was(tokenizer: PreTrainedTokenizerBase, text: str) -> None:
    ids = encode_prompt(tokenizer, f"{text}.")[:-1]
    assert tokenizer.decode(ids) == f"{text}."
    assert "".join(released(tokenizer, ids)) == f"{text}."


def test_a_character_is_released_with_its_last_byte(tokenizer: PreTrainedTokenizerBase) -> None:
    ids = encode_prompt(tokenizer, "It is 🌧 日.")[:-1]
    assert list(released(tokenizer, ids)) == ["It", " is", " ", "", "", "", "🌧", " ", "", "", "日", ".", ""]
    assert list(released(tokenizer, ids[:4])) == ["It", " is", " ", "", "�"], "an answer that ends inside a character"
    assert "".join(released(tokenizer, ids, stop=("🌧 日",))) == "It is "


def test_decoding_only_ever_appends(tokenizer: PreTrainedTokenizerBase) -> None:
    corpus = weather_corpus()
    texts = {turn.answer for conversation in corpus.train for turn in conversation.turns}
    texts |= {question for conversation in (*corpus.train, *corpus.held_out) for question in conversation.questions}
    assert any("'" in text for text in texts)
    assert any("’" in text for text in texts)
    for text in sorted(texts):
        ids = tokenizer(text)["input_ids"]
        shown = [cast("str", tokenizer.decode(ids[:n], skip_special_tokens=True)) for n in range(len(ids) + 1)]
        assert all(after.startswith(before.rstrip("�")) for before, after in zip(shown, shown[1:], strict=False)), shown
        assert shown[-1] == text


def test_a_corpus_without_blanks_has_a_bounded_vocabulary() -> None:
    """A Chinese sentence or a line of base64 is one word: it isn't one token."""
    answers = ("今天天气晴朗温暖适合出门散步记得带上太阳镜和水" * 3, "QUJD" * 100)
    built = build_tokenizer([Conversation((Turn("?", answer),)) for answer in answers], 2048)
    assert max(len(token) for token in built.get_vocab()) <= 32
    for answer in answers:
        ids = built(answer, add_special_tokens=False)["input_ids"]
        assert len(ids) > 1
        assert built.decode(ids) == answer
