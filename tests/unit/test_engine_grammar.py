"""Grammars in the default engine: at temperature 3, resumed at random tokens, beside rows without one, in float64."""

from __future__ import annotations

import json
import random
import re
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
import torch

from tests.grammars import save_tiny_model
from tests.polled_engine import PolledEngine
from tests.unit.test_engine_draw import outcomes
from tokenrelay.worker.engine.contract import GRAMMAR_DEAD_END, EngineRequest
from tokenrelay.worker.engine.transformers.kv_cache import EngineSettings
from tokenrelay.worker.engine.transformers.models import load_model
from tokenrelay.worker.sampling.grammar.compiler import GrammarCompiler
from tokenrelay.worker.sampling.grammar.grammar import Grammar
from tokenrelay.worker.sampling.grammar.matcher import AnswerMask
from tokenrelay.worker.sampling.grammar.token_bytes import read_vocabulary
from tokenrelay.worker.sampling.params import SamplingParams

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tokenrelay.worker.engine.transformers.models import LoadedModel

TOKENS = 96
SCHEMA = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "minLength": 4, "maxLength": 12},
        "degrees": {"type": "integer", "minimum": -40, "maximum": 50},
        "sky": {"enum": ["clear", "räin", "snow 🌍"]},
    },
    "required": ["city", "degrees", "sky"],
    "additionalProperties": False,
}
PATTERN = r"[世界🌍ü]{6,12}( [a-z]{3,9}){2}\."
GRAMMARS = {
    "schema": Grammar("json_schema", json.dumps(SCHEMA)),
    "object": Grammar("json_object"),
    "regex": Grammar("regex", PATTERN),
    "choice": Grammar.of({"type": "choice", "value": ["It is sunny.", "It is snowing.", "Grüße 🌍"]}),
    "lark": Grammar("lark", 'start: item ("," item)~4..9\nitem: /[a-zü]{2,8}/ | "(" item ")"'),
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    folder = tmp_path_factory.mktemp("tiny")
    save_tiny_model(folder)
    return load_model(folder, device="cpu", dtype="float64")


@pytest.fixture(scope="module")
def compiler(model: LoadedModel) -> Iterator[GrammarCompiler]:
    compiler = GrammarCompiler(read_vocabulary(model.tokenizer, 440, model.eos_token_ids))
    yield compiler
    compiler.close()


@pytest.fixture(scope="module")
def engine(model: LoadedModel) -> Iterator[PolledEngine]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    engine = PolledEngine(model, EngineSettings(slots=16))
    engine.begin()
    yield engine
    engine.stop()
    torch.set_num_threads(threads)


def requests(compiler: GrammarCompiler) -> list[EngineRequest]:
    """Four of each grammar, and four without one."""
    found = []
    for name in (*GRAMMARS, "plain"):
        compiled = compiler.compile(GRAMMARS[name]) if name in GRAMMARS else None
        for seed in range(4):
            mask = AnswerMask(compiled) if compiled else None
            sampling = SamplingParams(3.0, 0, 1.0, seed=seed)
            found.append(EngineRequest(f"{name}{seed}", (7, 8, 9), (), TOKENS, sampling, token_mask=mask))
    return found


def test_answers_match_and_resume_with_the_same_tokens(
    engine: PolledEngine, model: LoadedModel, compiler: GrammarCompiler
) -> None:
    """120 answers resumed at random tokens, most of them inside a JSON string or between the bytes of a character.

    Each takeover has a mask of its own, as on another worker."""
    asked = requests(compiler)
    whole = outcomes(engine, *asked)
    texts = {name: str(model.tokenizer.decode(tokens)) for name, (tokens, _) in whole.items()}
    complete = [name for name, (_, end) in whole.items() if end == "stop"]
    for name in complete:
        check(name.rstrip("0123456789"), texts[name])
    assert {name.rstrip("0123456789") for name in complete} >= {"schema", "regex", "choice", "lark"}
    assert {end for _, end in whole.values()} == {"stop", "length"}
    rng = random.Random(11)
    cuts = [
        (each, cut)
        for each in asked
        for cut in rng.sample(range(1, len(whole[each.engine_id][0]) + 1), min(5, len(whole[each.engine_id][0])))
    ]
    inside = [cut for each, cut in cuts if "\ufffd" in model.tokenizer.decode(whole[each.engine_id][0][:cut])]
    assert len(cuts) >= 100
    assert len(inside) >= 5, "between the bytes of a character"
    resumed = []
    for each, cut in cuts:
        mask = AnswerMask(each.token_mask.grammar) if isinstance(each.token_mask, AnswerMask) else None
        emitted = tuple(whole[each.engine_id][0][:cut])
        name = f"{each.engine_id}@{cut}"
        resumed.append(replace(each, engine_id=name, emitted_ids=emitted, token_mask=mask))
    answers = outcomes(engine, *resumed)
    for each, cut in cuts:
        tokens, end = whole[each.engine_id]
        assert answers[f"{each.engine_id}@{cut}"] == (tokens[cut:], end), (each.engine_id, cut)


def check(kind: str, text: str) -> None:
    """Whether a complete answer matches."""
    if kind == "schema":
        answer = json.loads(text)
        assert list(answer) == ["city", "degrees", "sky"]
        assert 4 <= len(answer["city"]) <= 12
        assert -40 <= answer["degrees"] <= 50
        assert answer["sky"] in ("clear", "räin", "snow 🌍")
    elif kind == "object":
        assert isinstance(json.loads(text), dict)
    elif kind == "regex":
        assert re.fullmatch(PATTERN, text), text
    elif kind == "choice":
        assert text in json.loads(GRAMMARS["choice"].text)
    elif kind == "lark":
        assert re.fullmatch(r"[a-zü,()]+", text), text


def test_rows_without_a_grammar_are_drawn_as_alone(engine: PolledEngine, compiler: GrammarCompiler) -> None:
    plain = [each for each in requests(compiler) if each.token_mask is None]
    alone, beside = outcomes(engine, *plain), outcomes(engine, *requests(compiler))
    assert {name: beside[name] for name in alone} == alone


def test_an_answer_that_reaches_the_limits_fails_alone(
    engine: PolledEngine, model: LoadedModel, compiler: GrammarCompiler
) -> None:
    """An ambiguous grammar, whose masks grow with the answer: by the library's own limits up to 0.7 s each."""
    compiled = compiler.compile(Grammar("lark", 'start: start start start | "a" | ""'))
    (letter,) = model.tokenizer("a")["input_ids"]
    probe = AnswerMask(compiled)
    reached = next(length for length in range(900) if not probe([letter] * length).any())
    assert reached > 50
    sampling = SamplingParams(0.0, 0, 1.0, seed=1, logit_bias=((letter, 100.0),))
    dead = EngineRequest("dead", (7, 8), (letter,) * (reached - 3), 950, sampling, token_mask=AnswerMask(compiled))
    near = [each for each in requests(compiler) if each.engine_id.startswith("schema")]
    expected = outcomes(engine, *near)
    ended = outcomes(engine, *near, dead)
    assert ended["dead"] == ([letter] * 3, GRAMMAR_DEAD_END)
    assert {name: ended[name] for name in expected} == expected
