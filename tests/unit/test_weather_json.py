"""The bundled model's answers as JSON: by itself, and where only an object of another form is left to it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

import pytest
import regex
import torch

from tokenrelay.worker.models import weather_model_path
from tokenrelay.worker.training.corpus.climate import PLACES
from tokenrelay.worker.training.evaluation import greedy_answer
from tokenrelay.worker.training.weights import load_model

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from tokenrelay.worker.training.encoding import Encoder

QUESTION: Final = "What is the weather in {}? Answer as JSON."
SOME_PLACES: Final = tuple(PLACES)[::4]
MAX_TOKENS: Final = 60


@pytest.fixture(scope="module")
def loaded() -> tuple[PreTrainedModel, Encoder]:
    return load_model(str(weather_model_path()))


def facts(place: str) -> dict[str, Any]:
    climate = PLACES[place]
    return {
        "place": place,
        "city": place,
        "weather": climate.sky,
        "degrees": climate.degrees,
        "temperature": climate.degrees,
        "rain": climate.rain,
        "snow": climate.snow,
    }


@torch.inference_mode()
def constrained_answer(model: PreTrainedModel, encoder: Encoder, question: str, pattern: str) -> str:
    """The greedy answer among those that match `pattern` as a whole: as a grammar's token mask does it, but slowly."""
    texts = [encoder.tokenizer.decode([token_id]) for token_id in range(len(encoder.tokenizer))]
    ids, answer = list(encoder.prompt_ids(question)), ""
    for _ in range(MAX_TOKENS):
        logits = model(input_ids=torch.tensor([ids])).logits[0, -1]
        for token_id in logits.argsort(descending=True).tolist():
            if token_id == encoder.tokenizer.eos_token_id and regex.fullmatch(pattern, answer):
                return answer
            if token_id not in encoder.tokenizer.all_special_ids and regex.fullmatch(
                pattern, answer + texts[token_id], partial=True
            ):
                ids, answer = [*ids, token_id], answer + texts[token_id]
                break
    raise AssertionError(f"no end after {MAX_TOKENS} tokens: {answer}")


def test_asked_for_json_it_gives_the_right_object(loaded: tuple[PreTrainedModel, Encoder]) -> None:
    """Every place that it knows."""
    for place in PLACES:
        answer = json.loads(greedy_answer(*loaded, QUESTION.format(place)))
        assert answer == {name: facts(place)[name] for name in ("place", "weather", "degrees", "rain")}


@pytest.mark.parametrize("how", ["{}? Answer as JSON with {}.", "{}?\nAnswer as JSON with {}."])
def test_asked_for_fields_it_gives_these(loaded: tuple[PreTrainedModel, Encoder], how: str) -> None:
    for place in SOME_PLACES:
        answer = json.loads(greedy_answer(*loaded, "What is the weather in " + how.format(place, "degrees and city")))
        assert list(answer.items()) == [("degrees", facts(place)["degrees"]), ("city", place)]


@pytest.mark.parametrize("fields", [("city", "temperature"), ("weather", "place"), ("snow", "degrees", "city")])
def test_held_to_other_fields_it_fills_them_in_rightly(
    loaded: tuple[PreTrainedModel, Encoder], fields: tuple[str, ...]
) -> None:
    """Fields, and an order of them, that it would not have chosen: as under a JSON schema."""
    kinds = {str: '"[^"\\\\]*"', int: "-?[0-9]+", bool: "true|false"}
    members = [f'"{name}": (?:{kinds[type(facts("Oslo")[name])]})' for name in fields]
    for place in SOME_PLACES:
        answer = constrained_answer(*loaded, QUESTION.format(place), rf"\{{{', '.join(members)}\}}")
        assert list(json.loads(answer).items()) == [(name, facts(place)[name]) for name in fields]
