"""The options that wire version 2 adds: bounds, what is stored of them, and what is read back."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenrelay.shared import effective, options
from tokenrelay.shared.errors import RequestError
from tokenrelay.shared.options import DEFAULTS, MODELS_OWN, VERSION_1, VERSION_2, Limits, validate
from tokenrelay.shared.request_fields import MAX_BAD_WORDS, MAX_BIASES, MAX_STOP_TOKEN_IDS, MAX_TOKEN_ID

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tokenrelay.shared.options import Submission

LIMITS: Final = Limits(max_prompt_chars=200, max_new_tokens=512)
NAN, INFINITY = float("nan"), float("inf")
MANY: Final = {str(token_id): 1.0 for token_id in range(MAX_BIASES + 1)}

# (what is asked, field named, limit carried, words of the message)
BAD: Final[list[tuple[dict[str, Any], str, object, str]]] = [
    ({"logit_bias": {"5": 100.5}}, "logit_bias.5", 100, "less than or equal to 100"),
    ({"logit_bias": {"5": -100.5}}, "logit_bias.5", -100, "greater than or equal to -100"),
    ({"logit_bias": {"5": NAN}}, "logit_bias.5", 100, "finite number, at most 100"),
    ({"logit_bias": {"5": "1"}}, "logit_bias.5", None, "valid number"),
    ({"logit_bias": {"5": True}}, "logit_bias.5", None, "valid number"),
    ({"logit_bias": {"x": 1}}, "logit_bias", None, "has the key 'x'; keys are token IDs, such as 42"),
    ({"logit_bias": {"-1": 1}}, "logit_bias", None, "has the key '-1'"),
    ({"logit_bias": {"1.0": 1}}, "logit_bias", None, "has the key '1.0'"),
    ({"logit_bias": {"²": 1}}, "logit_bias", None, "keys are token IDs"),
    ({"logit_bias": {"9" * 5000: 1}}, "logit_bias", None, "keys are token IDs"),
    ({"logit_bias": {True: 1}}, "logit_bias", None, "has the key True"),
    ({"logit_bias": {str(2**31): 1}}, "logit_bias", MAX_TOKEN_ID, "token IDs are at most 2147483647"),
    ({"logit_bias": {"7": 1, "07": 1}}, "logit_bias", None, "has the token ID 7 twice"),
    ({"logit_bias": {7: 1, "7": 1}}, "logit_bias", None, "has the token ID 7 twice"),
    ({"logit_bias": MANY}, "logit_bias", MAX_BIASES, "has 1025 entries; at most 1024 are allowed"),
    ({"logit_bias": [1]}, "logit_bias", None, "valid dictionary"),
    ({"logit_bias": None}, "logit_bias", None, "valid dictionary"),
    ({"repetition_penalty": 0}, "repetition_penalty", 0.01, "greater than or equal to 0.01"),
    ({"repetition_penalty": 1e-300}, "repetition_penalty", 0.01, "greater than or equal to 0.01"),
    ({"repetition_penalty": 100.5}, "repetition_penalty", 100, "less than or equal to 100"),
    ({"repetition_penalty": INFINITY}, "repetition_penalty", 100, "finite"),
    ({"frequency_penalty": 2.1}, "frequency_penalty", 2, "less than or equal to 2"),
    ({"frequency_penalty": NAN}, "frequency_penalty", 2, "finite"),
    ({"presence_penalty": -2.1}, "presence_penalty", -2, "greater than or equal to -2"),
    ({"presence_penalty": "1"}, "presence_penalty", None, "valid number"),
    ({"bad_words": ["x"] * (MAX_BAD_WORDS + 1)}, "bad_words", MAX_BAD_WORDS, "at most 256"),
    ({"bad_words": [""]}, "bad_words.0", 1, "at least 1"),
    ({"bad_words": ["a", "x" * 257]}, "bad_words.1", 256, "at most 256"),
    ({"bad_words": ["a", " \n"]}, "bad_words.1", None, "empty or blank"),
    ({"bad_words": ["\udfff"]}, "bad_words.0", None, "lone surrogate"),
    ({"bad_words": "x"}, "bad_words", None, "valid list"),
    ({"min_tokens": -1}, "min_tokens", 0, "greater than or equal to 0"),
    ({"min_tokens": True}, "min_tokens", None, "valid integer"),
    ({"min_tokens": 6, "max_new_tokens": 5}, "min_tokens", 5, "6 is more than max_new_tokens, which is 5 here"),
    ({"min_tokens": 513}, "min_tokens", 512, "513 is more than max_new_tokens, which is 512 here"),
    ({"min_p": -0.1}, "min_p", 0, "greater than or equal to 0"),
    ({"min_p": 1.1}, "min_p", 1, "less than or equal to 1"),
    ({"min_p": NAN}, "min_p", 1, "finite"),
    ({"stop_token_ids": [1] * (MAX_STOP_TOKEN_IDS + 1)}, "stop_token_ids", MAX_STOP_TOKEN_IDS, "at most 256"),
    ({"stop_token_ids": [-1]}, "stop_token_ids.0", 0, "greater than or equal to 0"),
    ({"stop_token_ids": [2**31]}, "stop_token_ids.0", MAX_TOKEN_ID, "less than or equal to"),
    ({"stop_token_ids": [1.0]}, "stop_token_ids.0", None, "valid integer"),
    ({"logprobs": 1}, "logprobs", None, "valid boolean"),
    ({"top_logprobs": 5}, "top_logprobs", None, "needs logprobs: true beside it"),
    ({"logprobs": True, "top_logprobs": 21}, "top_logprobs", 20, "less than or equal to 20"),
    ({"logprobs": True, "max_new_tokens": 2**20 + 1}, "max_new_tokens", 2**20, "at most 1048576 are allowed with logp"),
    ({"include_stop_str_in_output": 1}, "include_stop_str_in_output", None, "valid boolean"),
]


@pytest.mark.parametrize(("asked", "field", "limit", "words"), BAD, ids=range(len(BAD)))
def test_bad_input_names_field_and_limit(asked: Mapping[str, Any], field: str, limit: object, words: str) -> None:
    with pytest.raises(RequestError) as caught:
        validate({"prompt": "hello", **asked}, LIMITS)
    assert (caught.value.field, caught.value.limit) == (field, limit)
    assert caught.value.message.startswith(field)
    assert words in caught.value.message
    assert len(caught.value.message) < 300


USER: Final = {"role": "user", "content": "hi"}
OPEN: Final = [USER, {"role": "assistant", "content": "It is"}]
IDS: Final = [1, 2, 3]
BAD_PROMPTS: Final[list[tuple[dict[str, Any], str, object, str]]] = [
    ({"prompt_token_ids": []}, "prompt_token_ids", 1, "at least 1 item"),
    ({"prompt_token_ids": [-1]}, "prompt_token_ids.0", 0, "greater than or equal to 0"),
    ({"prompt_token_ids": [1, 2**31]}, "prompt_token_ids.1", MAX_TOKEN_ID, "less than or equal to"),
    ({"prompt_token_ids": [True]}, "prompt_token_ids.0", None, "valid integer"),
    ({"prompt_token_ids": [0] * 1001}, "prompt_token_ids", 1000, "1001 token IDs, at most 1000 are allowed"),
    ({"prompt_token_ids": IDS, "prompt": "x"}, "prompt", None, "prompt, prompt_token_ids: both given"),
    ({"prompt_token_ids": IDS, "messages": [USER], "prompt": "x"}, "prompt", None, "all given"),
    ({"prompt_token_ids": IDS, "prompt_logprobs": 21}, "prompt_logprobs", 20, "less than or equal to 20"),
    ({"messages": [USER], "echo": True}, "echo", None, "needs prompt or prompt_token_ids"),
    ({"messages": [USER], "continue_final_message": True}, "continue_final_message", None, "must be the assistant's"),
    (
        {"messages": [USER, {"role": "assistant", "content": " "}], "continue_final_message": True},
        "continue_final_message",
        None,
        "with the text that the answer continues",
    ),
    ({"prompt": "x", "continue_final_message": True}, "continue_final_message", None, "needs messages"),
    ({"prompt": "x", "chat_template_kwargs": {"a": 1}}, "chat_template_kwargs", None, "needs messages"),
    *(
        (
            {"messages": [USER], "chat_template_kwargs": {name: 1}},
            "chat_template_kwargs",
            None,
            f"has the name '{name}'",
        )
        for name in (
            "tools",
            "messages",
            "add_generation_prompt",
            "chat_template",
            "bos_token",
            "image_tokens",
            "a b",
            "",
        )
    ),
    ({"messages": [USER], "chat_template_kwargs": "[1]"}, "chat_template_kwargs", None, "valid dictionary"),
    ({"messages": [USER], "chat_template_kwargs": "{"}, "chat_template_kwargs", None, "isn't JSON"),
    ({"messages": [USER], "chat_template_kwargs": {"a": NAN}}, "chat_template_kwargs", None, "isn't valid JSON"),
    ({"messages": [USER], "chat_template_kwargs": {"a": "\ud800"}}, "chat_template_kwargs", None, "lone surrogates"),
    (
        {"messages": [USER], "chat_template_kwargs": {"a": "x" * 16_400}},
        "chat_template_kwargs",
        16_384,
        "bytes as JSON",
    ),
    ({"messages": [USER], "chat_template_kwargs": "{" + " " * 16_400}, "chat_template_kwargs", 16_384, "bytes as JSON"),
]
"""Prompts, and how they are rendered."""


@pytest.mark.parametrize(("asked", "field", "limit", "words"), BAD_PROMPTS, ids=range(len(BAD_PROMPTS)))
def test_a_bad_prompt_names_field_and_limit(asked: Mapping[str, Any], field: str, limit: object, words: str) -> None:
    with pytest.raises(RequestError) as caught:
        validate(asked, options.Limits(max_prompt_chars=1000, max_new_tokens=100))
    assert (caught.value.field, caught.value.limit) == (field, limit)
    assert words in caught.value.message
    assert len(caught.value.message) < 300


def test_more_logprobs_of_a_prompt_than_are_stored_are_refused_where_its_tokens_are_known() -> None:
    limits = options.Limits(max_prompt_chars=10**6, max_new_tokens=100)
    assert validate({"prompt_token_ids": [5] * 65_536, "prompt_logprobs": 1}, limits)
    with pytest.raises(RequestError, match="a prompt has at most 65536 tokens; this one has 65537") as caught:
        validate({"prompt_token_ids": [5] * 65_537, "prompt_logprobs": 1}, limits)
    assert (caught.value.field, caught.value.limit, caught.value.code) == (
        "prompt_logprobs",
        65_536,
        "prompt_logprobs_too_large",
    )


def test_prompts_and_their_rendering_are_stored_as_they_are_given() -> None:
    arguments = {"z": [1, {"b": None, "a": "ü"}], "enable_thinking": False}
    chat = validate({"messages": OPEN, "continue_final_message": True, "chat_template_kwargs": arguments}, LIMITS)
    assert chat["chat_template_kwargs"] == '{"z":[1,{"b":null,"a":"ü"}],"enable_thinking":false}'  # type: ignore[comparison-overlap]
    ids = validate({"prompt_token_ids": IDS, "echo": True, "prompt_logprobs": 0}, LIMITS)
    for request in (chat, ids):
        assert options.wire_of(request) == 2
        again = options.load(options.dump({**request, "max_new_tokens": 5, "seed": 1}), 2)
        assert {name: again[name] for name in options.VERSION_2 if name in again} == {  # type: ignore[literal-required]
            name: request[name]  # type: ignore[literal-required]
            for name in options.VERSION_2
            if name in request
        }
    plain = validate({"messages": OPEN, "continue_final_message": False, "chat_template_kwargs": {}}, LIMITS)
    assert not options.asked(plain)


NUMBER: Final = {"allow_nan": False, "allow_infinity": False}
WORD: Final = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20).filter(
    lambda text: text.strip()
)
TOKEN_ID: Final = st.integers(0, MAX_TOKEN_ID)
BIASES: Final = st.dictionaries(TOKEN_ID | TOKEN_ID.map(str), st.floats(-100, 100) | st.integers(-100, 100)).filter(
    lambda biases: len({str(token_id) for token_id in biases}) == len(biases)
)
NEW: Final = st.fixed_dictionaries(
    {},
    optional={
        "temperature": st.floats(0, 100),
        "top_k": st.integers(0, 50),
        "logit_bias": BIASES,
        "repetition_penalty": st.floats(0.01, 100) | st.just(1.0),
        "frequency_penalty": st.floats(-2, 2) | st.integers(-2, 2),
        "presence_penalty": st.floats(-2, 2),
        "bad_words": st.lists(WORD, max_size=5),
        "min_tokens": st.integers(0, 512),
        "min_p": st.floats(0, 1),
        "stop_token_ids": st.lists(TOKEN_ID, max_size=5),
        "include_stop_str_in_output": st.booleans(),
        "logprobs": st.just(True),
        "top_logprobs": st.just(0),
    },
)
OWN: Final = st.fixed_dictionaries(
    {}, optional={"temperature": st.floats(0, 9), "min_p": st.floats(0, 1), "repetition_penalty": st.floats(1, 2)}
)


def stored(asked: Mapping[str, Any], models_own: Mapping[str, Any]) -> Submission:
    request = validate({"prompt": "hello", "seed": 7, "max_new_tokens": 512, **asked}, LIMITS)
    return options.resolve(request, MODELS_OWN - asked.keys(), models_own)


@settings(database=None, derandomize=True)
@given(NEW, OWN)
def test_what_is_sent_is_taken_back(asked: Mapping[str, Any], models_own: Mapping[str, Any]) -> None:
    """A worker reads what the caller gave, whatever the model's own defaults, and those where nothing was given."""
    request = stored(asked, models_own)
    wire = options.wire_of(request)
    kept = {name: value for name, value in request.items() if name != "idempotency_key"}
    assert options.load(options.dump(request), wire) == kept
    worker = {**DEFAULTS, **models_own, **kept} if wire == 2 else options.filled(request)
    sent = options.filled(validate({"prompt": "hello", **asked}, LIMITS))
    for name in asked:
        assert worker[name] == sent[name], name  # type: ignore[literal-required]
    for name in models_own.keys() - asked.keys():
        assert worker[name] == models_own[name], name  # type: ignore[literal-required]


@settings(database=None, derandomize=True)
@given(NEW, OWN)
def test_the_version_is_the_lowest_that_serves_the_request(
    asked: Mapping[str, Any], models_own: Mapping[str, Any]
) -> None:
    """The JSON holds version 1's fields; in version 2 without what was left open, and with new ones that were given."""
    request = stored(asked, models_own)
    biases = {token_id: bias for token_id, bias in asked.get("logit_bias", {}).items() if bias != 0}
    new = {name: value for name, value in {**asked, "logit_bias": biases}.items() if name in VERSION_2}
    given = {name for name, value in new.items() if value != VERSION_2[name]}  # type: ignore[literal-required]
    silent = models_own.keys() & VERSION_2.keys() - asked.keys()
    own = {name for name in silent if models_own[name] != VERSION_2[name]}  # type: ignore[literal-required]
    body = json.loads(options.dump(request)).keys()
    fields = VERSION_1.keys() - {"idempotency_key"}
    if given or own:
        assert options.wire_of(request) == 2
        assert body == fields - (MODELS_OWN - asked.keys()) | given | (MODELS_OWN & new.keys())
    else:
        assert options.wire_of(request) == 1
        assert body == fields


@settings(database=None, derandomize=True)
@given(NEW)
def test_only_options_that_ask_for_something_are_in_the_body_hash(asked: Mapping[str, Any]) -> None:
    """A retry attaches in whichever release, and whatever the model's own defaults."""

    def hashed(chosen: Mapping[str, Any]) -> str:
        return options.body_sha256(validate({"prompt": "hello", **chosen}, LIMITS), LIMITS)

    request = options.filled(validate({"prompt": "hello", **asked}, LIMITS))
    neutral = {name for name in asked.keys() & VERSION_2.keys() if request[name] == VERSION_2[name]}  # type: ignore[literal-required]
    assert hashed(asked) == hashed({name: value for name, value in asked.items() if name not in neutral})
    for name in asked.keys() & VERSION_2.keys() - neutral:
        assert hashed(asked) != hashed({other: value for other, value in asked.items() if other != name})


@pytest.mark.parametrize("wire", [1, 2])
def test_a_field_that_is_not_known_is_for_a_later_release_in_version_2_alone(wire: int) -> None:
    body = json.loads(options.dump(stored({"min_tokens": 3} if wire == 2 else {}, {})))
    with pytest.raises(RequestError, match="thinking_budget") as caught:
        options.load(json.dumps({**body, "thinking_budget": 3}), wire)
    assert caught.value.code == ("unsupported_option" if wire == 2 else "invalid_request")
    with pytest.raises(RequestError) as caught:
        options.load(json.dumps({**body, "thinking_budget": 3, "seed": -1}), wire)
    assert caught.value.code == "invalid_request"


def test_a_version_1_request_has_no_new_field() -> None:
    body = json.loads(options.dump(stored({}, {})))
    with pytest.raises(RequestError, match="min_p: unknown field in a request of wire version 1"):
        options.load(json.dumps({**body, "min_p": 0.5}))


@settings(database=None, derandomize=True)
@given(NEW, st.integers(0, 600))
def test_what_is_decided_is_read_back_and_obeyed(asked: Mapping[str, Any], budget: int) -> None:
    chosen = options.filled(stored({"min_tokens": 1, **asked}, {}))
    decided = effective.decide(chosen, budget, draw=3)
    raw = effective.dump(decided)
    assert len(raw) <= 4096
    assert effective.parse(raw) == decided
    other = options.resolve(validate({"prompt": "hello"}, LIMITS), MODELS_OWN, {})
    obeyed = effective.obeying(other, decided)
    assert {name: obeyed[name] for name in MODELS_OWN} == {name: chosen[name] for name in MODELS_OWN}  # type: ignore[literal-required]
    assert (obeyed["max_new_tokens"], obeyed["bad_words"]) == (budget, [])


@pytest.mark.parametrize(
    "changed", [{"temperature": -1}, {"budget": "5"}, {"draw": None}, {"sooner": 1}, {"grammar": {"library": "x"}}]
)
def test_a_decision_that_can_not_be_read_is_an_error(changed: Mapping[str, Any]) -> None:
    raw = effective.dump(effective.decide(options.filled(stored({}, {})), 5, draw=1))
    with pytest.raises(RequestError, match="effective") as caught:
        effective.parse(json.dumps({**json.loads(raw), **changed}))
    assert caught.value.code == "unreadable_request"
    for damaged in ("", "{", "[]", b"\xff"):
        with pytest.raises(RequestError, match="effective"):
            effective.parse(damaged)
