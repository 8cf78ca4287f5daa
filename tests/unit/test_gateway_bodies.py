"""Request bodies: no-op values are accepted, unsupported fields that would change the answer are refused by name."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, get_type_hints

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from openai.types import completion_create_params
from openai.types.chat import completion_create_params as chat_create_params
from openai.types.responses import response_create_params
from pydantic import ValidationError

from tokenrelay.gateway.http.problems import Problem, validation_problem
from tokenrelay.gateway.openai.bodies.request_bodies import ChatBody, CompletionBody, ResponseBody
from tokenrelay.gateway.openai.bodies.submissions import read_submission
from tokenrelay.gateway.openai.bodies.unsupported import HINTS, NOTES

if TYPE_CHECKING:
    from tokenrelay.gateway.openai.bodies.request_bodies import Common

ASKED: Final = [{"role": "user", "content": "hi"}]
LEAST: Final[dict[type[Common], dict[str, Any]]] = {
    ChatBody: {"model": "weather", "messages": ASKED},
    CompletionBody: {"model": "weather", "prompt": "hi"},
    ResponseBody: {"model": "weather", "input": "hi"},
}


def read(kind: type[Common], **fields: Any) -> Common:
    return kind.model_validate({**LEAST[kind], **fields})


def refused(kind: type[Common], **fields: Any) -> Problem:
    """The gateway's error for the body."""
    body = {**LEAST[kind], **fields}
    try:
        kind.model_validate(body)
    except Problem as problem:
        return problem
    except ValidationError as error:
        errors = [{**each, "loc": ("body", *each["loc"])} for each in error.errors()]
        return validation_problem(errors, body)
    raise AssertionError(f"{fields} was taken")


@pytest.mark.parametrize(
    ("kind", "params"),
    [
        (ChatBody, chat_create_params.CompletionCreateParamsBase),
        (CompletionBody, completion_create_params.CompletionCreateParamsBase),
        (ResponseBody, response_create_params.ResponseCreateParamsBase),
    ],
)
def test_every_field_of_the_openai_package_is_known(kind: type[Common], params: type) -> None:
    """A new field in a release of the package must be classified: does it change the answer?"""
    known = {*kind.model_fields, *kind.unsupported, *HINTS, *NOTES}
    assert set(get_type_hints(params)) - known == set()


EVERYWHERE: Final[list[tuple[str, Any]]] = [
    *((name, None) for name in sorted({*ChatBody.unsupported, *HINTS, *NOTES} - {"input", "prompt", "messages"})),
    ("best_of", 1),
    ("frequency_penalty", 0),
    ("presence_penalty", 0.0),
    ("presence_penalty", "0"),
    ("function_call", "none"),
    ("functions", []),
    ("logit_bias", {}),
    ("logit_bias", {"50256": 0, "11": "0"}),
    ("modalities", ["text"]),
    ("n", 1),
    ("n", 1.0),
    ("n", "1"),
    ("parallel_tool_calls", True),
    ("parallel_tool_calls", False),
    ("response_format", {"type": "text"}),
    ("service_tier", "auto"),
    ("service_tier", "flex"),
    ("seed", None),
    ("stop", []),
    ("stream_options", {}),
    ("stream_options", {"include_usage": None, "include_obfuscation": True, "continuous_usage_stats": False}),
    ("suffix", ""),
    ("temperature", None),
    ("text", {"format": {"type": "text"}, "verbosity": "low"}),
    ("tool_choice", "auto"),
    ("tool_choice", "none"),
    ("tools", []),
    ("top_logprobs", 0),
    ("truncation", "auto"),
    ("truncation", "disabled"),
    ("verbosity", "high"),
    ("web_search_options", None),
    ("include", ["reasoning.encrypted_content", "file_search_call.results", "something.new"]),
    ("max_tool_calls", 3),
    ("reasoning", {"effort": None, "summary": None}),
    ("reasoning", {"effort": "high", "summary": "auto"}),
    ("reasoning_effort", "low"),
    ("prompt_cache_options", {"mode": "explicit"}),
    ("prompt_cache_retention", "24h"),
    ("user", "somebody"),
    ("client_metadata", {"originator": "codex"}),
    ("add_generation_prompt", True),
    ("continue_final_message", False),
    ("chat_template_kwargs", {}),
    ("detokenize", True),
    ("guided_decoding_backend", "xgrammar"),
    ("include_stop_str_in_output", False),
    ("length_penalty", 1.0),
    ("min_p", 0),
    ("min_tokens", 0),
    ("priority", 0),
    ("repetition_penalty", 1),
    ("request_id", "mine"),
    ("skip_special_tokens", True),
    ("spaces_between_special_tokens", False),
    ("stop_token_ids", []),
    ("top_k", -1),
    ("use_beam_search", False),
]


@pytest.mark.parametrize("kind", LEAST)
@pytest.mark.parametrize(("name", "value"), EVERYWHERE)
def test_what_changes_nothing_is_taken(kind: type[Common], name: str, value: Any) -> None:
    plain: dict[str, Any] = {
        "top_k": {"top_k": 0},
        "priority": {"priority": "default"},
        "min_p": {"min_p": 0},
        "repetition_penalty": {"repetition_penalty": 1},
    }
    same = plain.get(name, {}) if value is not None else {}
    assert read(kind, **{name: value}).options() == {**read(kind).options(), **same}


@pytest.mark.parametrize(
    ("kind", "name", "value"),
    [
        (ChatBody, "logprobs", False),
        (ChatBody, "add_special_tokens", False),
        (CompletionBody, "add_special_tokens", True),
        (CompletionBody, "echo", False),
    ],
)
def test_what_changes_nothing_at_one_endpoint(kind: type[Common], name: str, value: Any) -> None:
    assert read(kind, **{name: value}).options() == read(kind).options()


@pytest.mark.parametrize("kind", LEAST)
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("functions", [{"name": "f"}]),
        ("modalities", ["text", "audio"]),
        ("audio", {"voice": "ash", "format": "wav"}),
        ("web_search_options", {}),
        ("moderation", {"model": "omni"}),
        ("conversation", "conv_1"),
        ("context_management", [{"type": "compaction"}]),
        ("suffix", "end"),
        ("chat_template", "{{ messages }}"),
        ("use_beam_search", True),
        ("skip_special_tokens", False),
        ("truncate_prompt_tokens", 5),
        ("return_token_ids", True),
        ("prompt_logprobs", 0),
    ],
)
def test_what_would_change_the_answer_is_refused_by_name(kind: type[Common], name: str, value: Any) -> None:
    problem = refused(kind, **{name: value})
    assert (problem.status, problem.param, problem.code) == (400, name, "unsupported_parameter")
    assert problem.message == f"{name}: isn't supported here; leave it out"


@pytest.mark.parametrize("kind", LEAST)
@pytest.mark.parametrize(
    ("name", "value", "instead"),
    [
        ("guided_json", {"type": "object"}, "structured_outputs with json"),
        ("guided_regex", "a+", "structured_outputs with regex"),
        ("guided_choice", ["a"], "structured_outputs with choice"),
        ("guided_grammar", "start: A", "structured_outputs with grammar"),
        ("guided_json_object", True, "structured_outputs with json_object"),
        ("ebnf", "root ::= a", "structured_outputs with grammar, in Lark"),
        ("format", "json", "response_format, or structured_outputs with json"),
    ],
)
def test_other_names_of_a_format_are_refused_with_ours(kind: type[Common], name: str, value: Any, instead: str) -> None:
    problem = refused(kind, **{name: value})
    assert (problem.status, problem.param, problem.code) == (400, name, "unsupported_parameter")
    assert problem.message == f"{name}: isn't supported here; give {instead}"


@pytest.mark.parametrize("name", ["n", "best_of"])
@pytest.mark.parametrize("value", [2, "2", True])
def test_responses_have_one_choice(name: str, value: Any) -> None:
    problem = refused(ResponseBody, **{name: value})
    assert (problem.status, problem.param, problem.code) == (400, name, "unsupported_parameter")


@pytest.mark.parametrize("kind", [ChatBody, CompletionBody])
def test_best_of_is_no_more_than_n(kind: type[Common]) -> None:
    """OpenAI's best_of generates more choices than it returns."""
    for n, asked in ((1, {}), (1, {"n": 1}), (3, {"n": "3"})):
        assert read(kind, **asked, best_of=n).choices_each == n  # type: ignore[attr-defined]
        problem = refused(kind, **asked, best_of=n + 1)
        assert (problem.status, problem.param, problem.code) == (400, "best_of", "unsupported_parameter")
        assert problem.message == "best_of: must equal n: there's no choosing among more"
    assert refused(kind, n=2, best_of=1).param == "best_of"


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        (ChatBody, "input"),
        (ChatBody, "prompt"),
        (ChatBody, "instructions"),
        (CompletionBody, "messages"),
        (ChatBody, "text"),
        (CompletionBody, "text"),
        (ChatBody, "include"),
        (CompletionBody, "include"),
    ],
)
def test_another_endpoints_question_is_refused_by_name(kind: type[Common], name: str) -> None:
    assert refused(kind, **{name: "something else"}).param == name


@pytest.mark.parametrize("kind", [ChatBody, CompletionBody])
def test_a_conversation_is_continued_by_responses_alone(kind: type[Common]) -> None:
    assert "use that endpoint" in refused(kind, previous_response_id="resp_1").message


@pytest.mark.parametrize("kind", LEAST)
def test_a_name_that_is_not_unicode_is_ignored_as_others_are(kind: type[Common]) -> None:
    assert read(kind, **{"a\ud800": 1}).unknown == ["a?"]


COERCED: Final[list[tuple[str, Any, Any]]] = [
    ("temperature", "0.7", 0.7),
    ("temperature", "1e-1", 0.1),
    ("temperature", 1, 1.0),
    ("top_p", "1", 1.0),
    ("deadline_s", "5", 5.0),
    ("seed", 6.0, 6),
    ("seed", "6", 6),
    ("seed", "6.0", 6),
    ("seed", 2**62, 2**62),
    ("top_k", "4", 4),
    ("max_tokens", 6.0, 6),
    ("max_tokens", 1e3, 1000),
    ("max_completion_tokens", "6", 6),
    ("max_output_tokens", " 6 ", 6),
    ("max_new_tokens", 6.0, 6),
    ("ignore_eos", 1, True),
    ("ignore_eos", 0.0, False),
    ("ignore_eos", "True", True),
    ("ignore_eos", "false", False),
]
LOSSY: Final[list[tuple[str, Any]]] = [
    ("temperature", "hot"),
    ("temperature", ""),
    ("temperature", True),
    ("temperature", [0.7]),
    ("seed", 6.5),
    ("seed", "6.5"),
    ("seed", "0x6"),
    ("seed", "1_000"),
    ("seed", True),
    ("seed", 1e300),
    ("seed", float("nan")),
    ("top_k", "many"),
    ("max_tokens", 6.5),
    ("max_tokens", float("inf")),
    ("stream", "yes"),
    ("stream", 2),
    ("stream", 0.5),
    ("store", []),
    ("ignore_eos", "on"),
]


@pytest.mark.parametrize("kind", LEAST)
@pytest.mark.parametrize(("name", "given", "taken"), COERCED)
def test_scalars_are_taken_where_nothing_is_lost(kind: type[Common], name: str, given: Any, taken: Any) -> None:
    ours = "max_new_tokens" if name.startswith("max_") else name
    option = read(kind, **{name: given}).options()[ours]
    assert (option, type(option)) == (taken, type(taken))


@pytest.mark.parametrize("kind", LEAST)
@pytest.mark.parametrize(("name", "given"), LOSSY)
def test_scalars_that_would_lose_something_are_refused_by_name(kind: type[Common], name: str, given: Any) -> None:
    problem = refused(kind, **{name: given})
    assert problem.param == name
    assert problem.message.startswith(f"{name}: ")


@pytest.mark.parametrize(("given", "taken"), [(1, True), (0, False), ("true", True), (1.0, True), (None, None)])
def test_flags_of_how_to_answer_are_coerced_too(given: Any, taken: bool | None) -> None:
    options = {"include_usage": given}
    body = ChatBody.model_validate({**LEAST[ChatBody], "stream": given, "store": given, "stream_options": options})
    assert (body.stream, body.store, body.usage_chunks) == (taken, taken, "last" if taken else "none")
    assert ResponseBody.model_validate({**LEAST[ResponseBody], "background": given}).background is taken


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"include_usage": True, "continuous_usage_stats": True}, "every"),
        ({"include_usage": False, "continuous_usage_stats": True}, "none"),
        ({"continuous_usage_stats": 1}, "none"),
        ({"include_usage": True, "continuous_usage_stats": None}, "last"),
    ],
)
def test_which_chunks_say_the_usage(options: dict[str, Any], told: str) -> None:
    assert ChatBody.model_validate({**LEAST[ChatBody], "stream_options": options}).usage_chunks == told


@settings(deadline=None)
@given(st.integers(-(2**70), 2**70))
def test_no_integer_is_changed_by_being_a_string(number: int) -> None:
    assert read(ChatBody, seed=str(number)).seed == number


@pytest.mark.parametrize("kind", LEAST)
def test_any_name_of_the_limit_is_taken_and_two_that_differ_are_not(kind: type[Common]) -> None:
    assert read(kind, max_tokens=5, max_output_tokens=5.0).options()["max_new_tokens"] == 5
    problem = refused(kind, max_tokens=5, max_completion_tokens=6)
    assert (problem.param, problem.message) == (
        "max_tokens",
        "max_tokens: differs from max_completion_tokens; give one of them",
    )


@pytest.mark.parametrize(
    ("kind", "fields", "param", "why"),
    [
        (CompletionBody, {"prompt": {"a": 1}}, "prompt", "must be text, a list of token IDs"),
        (CompletionBody, {"prompt": []}, "prompt", "must be text, a list of token IDs"),
        (CompletionBody, {"prompt": ["a", 5]}, "prompt", "must be text, a list of token IDs"),
        (CompletionBody, {"prompt": None}, "prompt", "must be text, a list of token IDs"),
        (CompletionBody, {"add_generation_prompt": False}, "add_generation_prompt", "isn't supported here"),
        (
            ChatBody,
            {"add_generation_prompt": False},
            "add_generation_prompt",
            "isn't supported as false without continue_final_message: true",
        ),
        (ChatBody, {"echo": True}, "echo", "isn't supported here"),
        (ResponseBody, {"echo": True}, "echo", "isn't supported here"),
        (CompletionBody, {"continue_final_message": True}, "continue_final_message", "isn't supported here"),
        (ResponseBody, {"chat_template_kwargs": {"a": 1}}, "chat_template_kwargs", "isn't supported here"),
        (
            ChatBody,
            {"continue_final_message": True, "add_generation_prompt": True},
            "add_generation_prompt",
            "must be false or absent with continue_final_message: true",
        ),
        (ChatBody, {"stop": 5}, "stop", "must be text or a list of texts"),
        (ChatBody, {"stop": ["a", 5]}, "stop.1", "must be text"),
        (ChatBody, {"stream_options": 5}, "stream_options", "must be a JSON object"),
        (ChatBody, {"stream_options": {"include_usage": "maybe"}}, "stream_options.include_usage", "valid boolean"),
        (ChatBody, {"metadata": 5}, "metadata", "must be a JSON object"),
        (ChatBody, {"model": None}, "model", "valid string"),
        (ChatBody, {"messages": "hi"}, "messages", "must be a list of messages"),
        (ChatBody, {"messages": [5]}, "messages.0", "must be an object"),
        (ResponseBody, {"instructions": "\ud800"}, "instructions", "lone surrogate"),
    ],
)
def test_other_fields_that_cannot_be_taken_are_named(
    kind: type[Common], fields: dict[str, Any], param: str, why: str
) -> None:
    problem = refused(kind, **fields)
    assert (problem.param, problem.message.partition(": ")[0]) == (param, param)
    assert why in problem.message


@pytest.mark.parametrize("kind", LEAST)
def test_no_share_of_the_probability_leaves_the_likeliest_token(kind: type[Common]) -> None:
    assert read(kind, top_p=0).options() == read(kind, top_k=1).options()


def test_a_submission_of_ours_drops_nulls_and_keeps_unknown_names() -> None:
    given = {"prompt": "x", "seed": None, "temperature": "0.5", "max_new_tokens": 6.0, "ignore_eos": 1, "top_kk": 1}
    assert read_submission(given)[0] == {
        "prompt": "x",
        "temperature": 0.5,
        "max_new_tokens": 6,
        "ignore_eos": True,
        "top_kk": 1,
    }
