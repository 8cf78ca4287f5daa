"""The bundled model as it ships: its tokens, its answers, its trace, and how well it answers what it never learnt."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, cast

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from tokenrelay.worker.models import weather_model_path
from tokenrelay.worker.training.corpus import FIXED_QUESTION, UNSEEN_QUESTION, canonical, weather_corpus
from tokenrelay.worker.training.evaluation import measure
from tokenrelay.worker.training.report.trace import CURVE_FILE, TRACE_FILE, read_trace
from tokenrelay.worker.training.weights import load_model

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from tokenrelay.worker.training.conversation import Corpus
    from tokenrelay.worker.training.encoding import Encoder


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    return weather_corpus()


@pytest.fixture(scope="module")
def loaded() -> tuple[PreTrainedModel, Encoder]:
    return load_model(str(weather_model_path()))


@pytest.fixture
def model(loaded: tuple[PreTrainedModel, Encoder]) -> PreTrainedModel:
    return loaded[0]


@pytest.fixture
def encoder(loaded: tuple[PreTrainedModel, Encoder]) -> Encoder:
    return loaded[1]


@pytest.fixture
def tokenizer(encoder: Encoder) -> PreTrainedTokenizerBase:
    return encoder.tokenizer


def _answer(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, question: str) -> str:
    """What transformers' own greedy generation gives."""
    inputs = tokenizer(question, return_tensors="pt")
    generate = cast("Callable[..., Tensor]", model.generate)
    ids = generate(**inputs, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    assert ids[-1] == tokenizer.eos_token_id
    return cast("str", tokenizer.decode(ids, skip_special_tokens=True))


def test_chat_template_gives_the_same_tokens_as_the_plain_prompt(tokenizer: PreTrainedTokenizerBase) -> None:
    chat = tokenizer.apply_chat_template([{"role": "user", "content": FIXED_QUESTION}], return_dict=False)
    assert chat == tokenizer(FIXED_QUESTION)["input_ids"]


def test_chat_template_closes_every_message(tokenizer: PreTrainedTokenizerBase) -> None:
    messages = [
        {"role": "system", "content": "You are a weather assistant."},
        {"role": "user", "content": "Will it rain in Oslo?"},
        {"role": "assistant", "content": "No, it will stay dry in Oslo."},
        {"role": "user", "content": "And in London?"},
    ]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert text == "".join(f"{message['content']}<end>" for message in messages)


def test_answer_to_the_fixed_question(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    assert _answer(model, tokenizer, FIXED_QUESTION) == "It is sunny and warm."


def test_answer_to_a_question_that_was_not_learnt(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, corpus: Corpus
) -> None:
    learnt = {canonical(question) for conversation in corpus.train for question in conversation.questions}
    assert canonical(UNSEEN_QUESTION) not in learnt
    assert _answer(model, tokenizer, UNSEEN_QUESTION) == "No, it will stay dry in Paris tomorrow."


def test_a_story_is_long_enough_to_watch(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    story = _answer(model, tokenizer, "Tell me a story about the rain.")
    assert story.startswith("Once there was a small cloud")
    assert 40 <= len(tokenizer(story)["input_ids"]) <= 70


def test_held_out_conversations_share_no_question_with_training(corpus: Corpus) -> None:
    learnt = {canonical(question) for conversation in corpus.train for question in conversation.questions}
    held_out = {canonical(question) for conversation in corpus.held_out for question in conversation.questions}
    assert not learnt & held_out
    assert canonical(FIXED_QUESTION) in learnt
    assert canonical(UNSEEN_QUESTION) in held_out
    assert len(corpus.train) + len(corpus.held_out) >= 2500
    assert len(corpus.held_out) >= 200


def test_corpus_is_the_same_every_time(corpus: Corpus) -> None:
    assert weather_corpus() == corpus


def test_shipped_weights_are_as_good_as_their_trace_says(
    model: PreTrainedModel, encoder: Encoder, corpus: Corpus
) -> None:
    score = measure(model, encoder, encoder.encode_all(corpus.held_out))
    assert score.loss <= 0.5
    assert score.accuracy >= 0.80
    trace = read_trace(weather_model_path() / TRACE_FILE)
    assert score.tokens == trace.held_out_answer_tokens
    assert score.loss == pytest.approx(trace.epochs[-1].loss, abs=1e-3)
    assert score.accuracy == pytest.approx(trace.epochs[-1].accuracy, abs=2e-3)


def test_json_cost_no_other_answer_anything(model: PreTrainedModel, encoder: Encoder, corpus: Corpus) -> None:
    """Loss and accuracy that the model had before, on the conversations that were held out then, all among these."""
    others = [conversation for conversation in corpus.held_out if "JSON" not in conversation.questions[0]]
    assert len(others) >= 259
    score = measure(model, encoder, encoder.encode_all(others))
    assert score.loss <= 0.0574
    assert score.accuracy >= 0.9826


def test_trace_shows_learning() -> None:
    trace = read_trace(weather_model_path() / TRACE_FILE)
    losses = [epoch.loss for epoch in trace.epochs]
    accuracies = [epoch.accuracy for epoch in trace.epochs]
    assert [epoch.epoch for epoch in trace.epochs] == [1, 2, 3, 4, 5]
    assert losses[0] > 1.5
    assert losses[-1] <= 0.5
    assert accuracies[-1] >= 0.80
    assert losses == sorted(set(losses), reverse=True)
    assert accuracies == sorted(set(accuracies))
    assert trace.loss_before == pytest.approx(math.log(trace.vocabulary), rel=0.1)
    assert trace.seconds < 60


def test_shipped_folder_is_small_and_complete() -> None:
    folder = weather_model_path()
    assert (folder / "model.safetensors").stat().st_size <= 2_000_000
    assert {file.name for file in folder.iterdir()} == {
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
        TRACE_FILE,
        CURVE_FILE,
    }


def test_folder_loads_without_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    folder = weather_model_path()
    assert AutoTokenizer.from_pretrained(folder).eos_token == "<end>"
    config = AutoModelForCausalLM.from_pretrained(folder).config
    assert config.num_key_value_heads < config.num_attention_heads
    assert config.max_position_embeddings == 2048
