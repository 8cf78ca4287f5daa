"""Fields of other servers' APIs: those that change the answer map to our options, or are refused by name."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import pytest

from tests.unit.test_gateway_bodies import LEAST, read, refused
from tokenrelay.gateway.openai.bodies import other_servers
from tokenrelay.gateway.openai.bodies.request_bodies import (
    ChatBody,
    CompletionBody,
    ResponseBody,
)
from tokenrelay.gateway.openai.bodies.submissions import read_submission, with_callers_field
from tokenrelay.shared.errors import RequestError
from tokenrelay.shared.options import Limits, validate

if TYPE_CHECKING:
    from tokenrelay.gateway.openai.bodies.request_bodies import Common

NO_OPS: Final[list[tuple[str, Any]]] = [
    *((name, None) for name in (*other_servers.UNSUPPORTED, *other_servers.HINTS, *other_servers.CONTAINERS)),
    ("repeat_penalty", 1),
    ("repeat_penalty", "1.0"),
    ("repeat_last_n", 64),
    ("penalize_newline", True),
    ("mirostat", 0),
    ("mirostat_tau", 5.0),
    ("mirostat_eta", 0.1),
    ("dry_multiplier", 0.0),
    ("dry_base", 1.75),
    ("dry_sequence_breakers", ["\n"]),
    ("xtc_probability", 0),
    ("xtc_threshold", 0.1),
    ("dynatemp_range", 0),
    ("dynatemp_exponent", 1.5),
    ("tfs_z", 1),
    ("top_n_sigma", -1),
    ("top_n_sigma", 0),
    ("typical_p", 1),
    ("typical_p", 1.0),
    ("min_keep", 0),
    ("samplers", []),
    ("n_probs", 0),
    ("n_keep", -1),
    ("n_predict", -1),
    ("num_predict", -2),
    ("num_ctx", 4096),
    ("cache_prompt", True),
    ("id_slot", -1),
    ("keep_alive", "5m"),
    ("format", ""),
    ("images", []),
    ("think", False),
    ("t_max_predict_ms", 0),
    ("do_sample", True),
    ("do_sample", None),
    ("watermark", False),
    ("details", False),
    ("decoder_input_details", False),
    ("return_full_text", False),
    ("top_n_tokens", 0),
    ("truncate", None),
    ("num_beams", 1),
    ("num_return_sequences", 1),
    ("no_repeat_ngram_size", 0),
    ("encoder_repetition_penalty", 1.0),
    ("guidance_scale", 1),
    ("min_new_tokens", 0),
    ("length_penalty", 1.2),
    ("early_stopping", True),
    ("use_cache", True),
    ("bad_words_ids", []),
    ("logprob_token_ids", []),
    ("regex", ""),
    ("options", {}),
    ("options", {"num_ctx": 4096, "repeat_penalty": 1, "wait_for_model": True}),
    ("parameters", {"return_full_text": False, "top_k": None}),
    ("extra_body", {"repetition_penalty": 1.0}),
]
CHANGES: Final[list[tuple[str, Any]]] = [
    ("repeat_penalty", 1.1),
    ("repeat_penalty", "1.1"),
    ("mirostat", 2),
    ("mirostat", "2"),
    ("mirostat_mode", 2),
    ("dry_multiplier", 0.8),
    ("xtc_probability", 0.5),
    ("dynatemp_range", 0.5),
    ("dynamic_temperature", True),
    ("tfs_z", 0.95),
    ("tfs", 0.95),
    ("top_a", 0.2),
    ("top_n_sigma", 1.5),
    ("typical_p", 0.95),
    ("typical_p", True),
    ("smoothing_factor", 0.2),
    ("samplers", ["top_k"]),
    ("n_probs", 5),
    ("n_indent", 4),
    ("t_max_predict_ms", 1000),
    ("grammar", "root ::= 'a'"),
    ("format", "json"),
    ("format", {"type": "object"}),
    ("images", ["aGk="]),
    ("system", "Be brief."),
    ("template", "{{ .Prompt }}"),
    ("context", [1, 2]),
    ("watermark", True),
    ("details", True),
    ("decoder_input_details", 1),
    ("return_full_text", True),
    ("top_n_tokens", 3),
    ("truncate", 100),
    ("adapter_id", "mine/lora"),
    ("num_beams", 4),
    ("num_return_sequences", 2),
    ("no_repeat_ngram_size", 3),
    ("encoder_repetition_penalty", 1.2),
    ("penalty_alpha", 0.6),
    ("guidance_scale", 1.5),
    ("min_new_tokens", 5),
    ("min_length", 5),
    ("max_length", 100),
    ("max_time", 2.5),
    ("bad_words_ids", [[5]]),
    ("suppress_tokens", [5]),
    ("eos_token_id", 2),
    ("stop_regex", "a+"),
    ("ebnf", "root ::= 'a'"),
    ("input_ids", [1, 2]),
    ("lora", [{"id": 0, "scale": 1}]),
    ("logprob_token_ids", [5]),
    ("return_hidden_states", True),
    ("options", {"num_predict": 5}),
    ("options", {"mirostat": 2}),
    ("parameters", {"temperature": 0.5}),
    ("generation_config", {"max_new_tokens": 5}),
    ("extra_body", {"top_k": 5}),
    ("extra_body", "top_k"),
]


@pytest.mark.parametrize("kind", LEAST)
@pytest.mark.parametrize(("name", "value"), NO_OPS)
def test_what_changes_nothing_is_taken(kind: type[Common], name: str, value: Any) -> None:
    assert read(kind, **{name: value}).options() == read(kind).options()


@pytest.mark.parametrize("kind", LEAST)
@pytest.mark.parametrize(("name", "value"), CHANGES)
def test_what_would_change_the_answer_is_refused_by_name(kind: type[Common], name: str, value: Any) -> None:
    problem = refused(kind, **{name: value})
    assert (problem.status, problem.param, problem.code) == (400, name, "unsupported_parameter")
    assert problem.message.startswith(f"{name}: is")


def test_objects_within_objects_are_refused_however_deep() -> None:
    nested: Any = {"mirostat": 0}
    for _ in range(5000):
        nested = {"options": nested}
    assert refused(ChatBody, **nested).param == "options"


@pytest.mark.parametrize("name", other_servers.UNSUPPORTED)
def test_no_field_of_the_table_takes_everything(name: str) -> None:
    """Otherwise it would be a hint."""
    assert not all(map(other_servers.UNSUPPORTED[name], (7, True, "x", ["x"])))


def test_the_error_says_where_the_option_belongs() -> None:
    assert "top level" in refused(ChatBody, options={"num_predict": 5}).message
    assert "message with role system" in refused(ChatBody, system="Be brief.").message


@pytest.mark.parametrize(
    ("kind", "name", "where"),
    [
        (ChatBody, "prompt", "/v1/completions"),
        (ChatBody, "input", "/v1/responses"),
        (ChatBody, "instructions", "/v1/responses"),
        (CompletionBody, "messages", "/v1/chat/completions"),
        (CompletionBody, "input", "/v1/responses"),
        (ResponseBody, "messages", "/v1/chat/completions"),
        (ResponseBody, "prompt", "/v1/completions"),
    ],
)
def test_another_endpoints_question_is_told_where_to_go(kind: type[Common], name: str, where: str) -> None:
    """Whether its own question is there as well or not."""
    own = {**LEAST[kind], name: "x"}
    alone = {"model": "weather", name: "x"}
    for body in (own, alone):
        problem = refused_body(kind, body)
        assert (problem.status, problem.param) == (400, name)
        assert problem.message.startswith(f"{name}: is a field of {where}")


def refused_body(kind: type[Common], body: dict[str, Any]) -> Any:
    missing = {name: None for name in LEAST[kind] if name not in body}
    return refused(kind, **missing, **{name: value for name, value in body.items() if name not in LEAST[kind]})


@pytest.mark.parametrize("kind", LEAST)
class TestOurNameForIt:
    """Fields with an equivalent option of ours are supported."""

    @pytest.mark.parametrize("name", ["n_predict", "num_predict", "max_tokens_to_sample", "max_new_tokens"])
    def test_the_limit(self, kind: type[Common], name: str) -> None:
        assert read(kind, **{name: "6"}).options() == read(kind, max_tokens=6).options()
        assert read(kind, **{name: 6}, max_tokens=6).options()["max_new_tokens"] == 6
        assert refused(kind, **{name: 7}, max_tokens=6).message == f"{name}: differs from max_tokens; give one of them"
        error = read(kind, **{name: 0}).with_callers_field(RequestError("max_new_tokens: low", field="max_new_tokens"))
        assert (error.field, error.message) == (name, f"{name}: low")

    @pytest.mark.parametrize("name", ["stop_sequences", "stop_strings"])
    def test_the_stop_texts(self, kind: type[Common], name: str) -> None:
        assert read(kind, **{name: ["a", "b"]}).options() == read(kind, stop=["a", "b"]).options()
        assert read(kind, **{name: "a"}, stop=["a"]).options() == read(kind, stop="a").options()
        assert read(kind, **{name: ["a"]}, stop=[]).options() == read(kind, stop="a").options()
        assert refused(kind, **{name: ["a"]}, stop=["b"]).param == name
        assert refused(kind, **{name: ["a", 5]}).param == f"{name}.1"

    def test_no_sampling(self, kind: type[Common]) -> None:
        assert read(kind, do_sample=False).options() == read(kind, temperature=0).options()
        assert read(kind, do_sample="false", temperature=0).options() == read(kind, temperature=0).options()
        problem = refused(kind, do_sample=False, temperature=0.7)
        assert (problem.param, problem.message) == (
            "do_sample",
            "do_sample: differs from temperature; give one of them",
        )

    @pytest.mark.parametrize(
        "given",
        [
            {"n_predict": -1, "max_tokens": 100},
            {"max_new_tokens": 100, "num_predict": -2},
            {"stop": [""], "stop_sequences": ["a"]},
            {"stop": ["a", ""], "stop_strings": "a"},
            {"do_sample": False, "temperature": 1.0},
        ],
        ids=str,
    )
    def test_what_asks_for_nothing_differs_from_nothing(self, kind: type[Common], given: dict[str, Any]) -> None:
        options = read(kind, **given).options()
        assert options.get("max_new_tokens", 100) == 100
        assert options.get("stop", ["a"]) == ["a"]
        assert options.get("temperature", 0.0) == 0.0

    @pytest.mark.parametrize("stop", [["", "x" * 257], ["a", "", "\ud800"], ["", "", "x" * 257, ""]])
    def test_the_wrong_stop_text_has_the_callers_index(self, kind: type[Common], stop: list[str]) -> None:
        wrong = next(place for place, text in enumerate(stop) if len(text) > 1 or text > "\ud7ff")
        for name in ("stop", "stop_sequences"):
            body = read(kind, **{name: stop})
            with pytest.raises(RequestError) as caught:
                validate({**body.options()}, Limits(1000, 1000))
            error = body.with_callers_field(caught.value)
            assert (error.field, error.message.partition(": ")[0]) == (f"{name}.{wrong}", f"{name}.{wrong}")


def test_the_wrong_stop_text_of_a_submission_has_the_callers_index() -> None:
    body = {"prompt": "x", "stop": ["", "a", "", "x" * 257]}
    with pytest.raises(RequestError) as caught:
        validate(read_submission(body)[0], Limits(1000, 1000))
    assert with_callers_field(caught.value, body).field == "stop.3"
    other = RequestError("seed: low", field="seed")
    assert with_callers_field(other, body) is other
