"""The bundled model's answers as JSON: by itself, and under schemas whose fields it wouldn't have chosen."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

import pytest
import torch

from tests.grammars import allowed
from tokenrelay.worker.models import weather_model_path
from tokenrelay.worker.sampling.grammar.compiler import GrammarCompiler
from tokenrelay.worker.sampling.grammar.grammar import Grammar
from tokenrelay.worker.sampling.grammar.matcher import AnswerMask
from tokenrelay.worker.sampling.grammar.token_bytes import read_vocabulary
from tokenrelay.worker.training.corpus.climate import PLACES
from tokenrelay.worker.training.evaluation import greedy_answer
from tokenrelay.worker.training.weights import load_model

if TYPE_CHECKING:
    from collections.abc import Iterator

    from transformers import PreTrainedModel

    from tokenrelay.worker.training.encoding import Encoder

QUESTION: Final = "What is the weather in {}? Answer as JSON."
SOME_PLACES: Final = tuple(PLACES)[::4]
MAX_TOKENS: Final = 60
TYPES: Final = {str: "string", int: "integer", bool: "boolean"}


@pytest.fixture(scope="module")
def loaded() -> tuple[PreTrainedModel, Encoder]:
    return load_model(str(weather_model_path()))


@pytest.fixture(scope="module")
def compiler(loaded: tuple[PreTrainedModel, Encoder]) -> Iterator[GrammarCompiler]:
    _, encoder = loaded
    eos_ids = frozenset({encoder.prompt_ids("")[-1]})
    compiler = GrammarCompiler(read_vocabulary(encoder.tokenizer, len(encoder.tokenizer), eos_ids))
    yield compiler
    compiler.close()


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


def schema_of(fields: tuple[str, ...]) -> Grammar:
    properties = {name: {"type": TYPES[type(facts("Oslo")[name])]} for name in fields}
    schema = {"type": "object", "properties": properties, "required": list(fields), "additionalProperties": False}
    return Grammar("json_schema", json.dumps(schema))


@torch.inference_mode()
def answer_under(mask: AnswerMask, model: PreTrainedModel, encoder: Encoder, question: str) -> str:
    """The greedy answer among the tokens that the mask allows. Fails where it doesn't end."""
    ids: list[int] = []
    while len(ids) < MAX_TOKENS:
        logits = model(input_ids=torch.tensor([[*encoder.prompt_ids(question), *ids]])).logits[0, -1]
        best = max(allowed(mask(ids)), key=lambda token_id: float(logits[token_id]))
        if best == encoder.tokenizer.eos_token_id:
            return str(encoder.tokenizer.decode(ids))
        ids.append(best)
    raise AssertionError(f"no end after {MAX_TOKENS} tokens: {encoder.tokenizer.decode(ids)}")


def test_asked_for_json_it_gives_the_right_object(loaded: tuple[PreTrainedModel, Encoder]) -> None:
    for place in PLACES:
        answer = json.loads(greedy_answer(*loaded, QUESTION.format(place)))
        assert answer == {name: facts(place)[name] for name in ("place", "weather", "degrees", "rain")}


@pytest.mark.parametrize("how", ["{}? Answer as JSON with {}.", "{}?\nAnswer as JSON with {}."])
def test_asked_for_fields_it_gives_these(loaded: tuple[PreTrainedModel, Encoder], how: str) -> None:
    for place in SOME_PLACES:
        answer = json.loads(greedy_answer(*loaded, "What is the weather in " + how.format(place, "degrees and city")))
        assert answer == {"degrees": facts(place)["degrees"], "city": place}


@pytest.mark.parametrize(
    "fields", [("place", "weather", "degrees", "rain"), ("city", "temperature"), ("weather", "place"), ("snow", "city")]
)
def test_under_a_schema_it_gives_a_right_object_that_fits(
    loaded: tuple[PreTrainedModel, Encoder], compiler: GrammarCompiler, fields: tuple[str, ...]
) -> None:
    """The question names no field, and the model doesn't see the schema."""
    for place in SOME_PLACES:
        mask = AnswerMask(compiler.compile(schema_of(fields)))
        answer = json.loads(answer_under(mask, *loaded, QUESTION.format(place)))
        assert list(answer.items()) == [(name, facts(place)[name]) for name in fields]
