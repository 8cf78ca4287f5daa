"""The request schema: every bad input is refused by name, every good one survives Redis unchanged."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenrelay.shared import options as schema
from tokenrelay.shared.errors import RequestError
from tokenrelay.shared.glance import glance
from tokenrelay.shared.options import (
    DEFAULTS,
    VERSION_1,
    Limits,
    Submission,
    budget,
    dump,
    load,
    validate,
)
from tokenrelay.shared.request_fields import MAX_METADATA_BYTES, MAX_METADATA_DEPTH, MAX_SEED

if TYPE_CHECKING:
    from collections.abc import Mapping

LIMITS = Limits(max_prompt_chars=200, max_new_tokens=512)
NAN, INFINITY = float("nan"), float("inf")


def nested(depth: int) -> dict[str, Any]:
    value: dict[str, Any] = {}
    for _ in range(depth):
        value = {"a": value}
    return value


def user(content: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": content}]


def short_id(value: object) -> str:
    return value if isinstance(value, str) and value.isascii() else type(value).__name__


# (what is asked, field named, limit carried, words of the message)
BAD: list[tuple[dict[str, Any], str, object, str]] = [
    ({"prompt": ""}, "prompt", None, "empty or blank"),
    ({"prompt": " \n\t"}, "prompt", None, "empty or blank"),
    ({"prompt": "x" * 201}, "prompt", 200, "201 characters, at most 200"),
    ({"prompt": None, "messages": user("x" * 201)}, "messages", 200, "201 characters, at most 200"),
    ({"prompt": None, "messages": user(" ")}, "messages", None, "empty or blank"),
    ({"prompt": None, "messages": []}, "messages", 1, "at least 1"),
    ({"prompt": None, "messages": "hello"}, "messages", None, "valid list"),
    ({"prompt": None, "messages": [{"role": "narrator", "content": "x"}]}, "messages.0.role", None, "'user'"),
    ({"prompt": None, "messages": [{"role": "user"}]}, "messages.0.content", None, "required"),
    ({"prompt": None}, "prompt", None, "neither given"),
    ({"messages": user("x")}, "prompt", None, "both given"),
    ({"prompt": "\ud800"}, "prompt", None, "lone surrogate at character 0"),
    ({"prompt": 5}, "prompt", None, "valid string"),
    ({"max_new_tokens": 0}, "max_new_tokens", 1, "greater than or equal to 1"),
    ({"temperature": -0.1}, "temperature", 0, "greater than or equal to 0"),
    ({"temperature": 100.5}, "temperature", 100, "less than or equal to 100"),
    ({"temperature": NAN}, "temperature", 100, "finite"),
    ({"temperature": INFINITY}, "temperature", 100, "finite"),
    ({"top_p": 0}, "top_p", 0, "greater than 0"),
    ({"top_p": 1.01}, "top_p", 1, "less than or equal to 1"),
    ({"top_p": NAN}, "top_p", 1, "finite"),
    ({"top_k": -1}, "top_k", 0, "greater than or equal to 0"),
    ({"top_k": 2**31}, "top_k", 2**31 - 1, "less than or equal to"),
    ({"seed": -1}, "seed", 0, "greater than or equal to 0"),
    ({"seed": MAX_SEED + 1}, "seed", MAX_SEED, "less than or equal to"),
    ({"seed": 10**5000}, "seed", MAX_SEED, "less than or equal to"),
    ({"stop": ["x"] * 17}, "stop", 16, "at most 16"),
    ({"stop": [""]}, "stop.0", 1, "at least 1"),
    ({"stop": ["a", "x" * 257]}, "stop.1", 256, "at most 256"),
    ({"stop": ["\udfff"]}, "stop.0", None, "lone surrogate"),
    ({"deadline_s": 0}, "deadline_s", 0, "greater than 0"),
    ({"deadline_s": -5}, "deadline_s", 0, "greater than 0"),
    ({"deadline_s": NAN}, "deadline_s", 604_800, "finite"),
    ({"deadline_s": 604_801}, "deadline_s", 604_800, "less than or equal to 604800"),
    ({"priority": "urgent"}, "priority", None, "'high', 'default' or 'low'"),
    ({"model": "../../etc/passwd"}, "model", 128, "at most 128"),
    ({"model": "owner--name"}, "model", 128, "no --"),
    ({"model": "x" * 129}, "model", 128, "at most 128"),
    ({"metadata": {"a": "x" * MAX_METADATA_BYTES}}, "metadata", MAX_METADATA_BYTES, f"at most {MAX_METADATA_BYTES}"),
    ({"metadata": {"a": NAN}}, "metadata", None, "valid JSON"),
    ({"metadata": {"a": "\ud800"}}, "metadata", None, "valid JSON"),
    ({"metadata": {"a": 10**5000}}, "metadata", None, "valid JSON"),
    ({"metadata": nested(3000)}, "metadata", MAX_METADATA_DEPTH, "190 levels"),
    ({"metadata": nested(250)}, "metadata", MAX_METADATA_DEPTH, "190 levels"),
    ({"idempotency_key": ""}, "idempotency_key", 1, "at least 1"),
    ({"idempotency_key": "x" * 257}, "idempotency_key", 256, "at most 256"),
    ({"temprature": 1.0}, "temprature", None, "unknown field; did you mean temperature? known ones are bad_words, "),
    ({"zzz": 1.0}, "zzz", None, "unknown field; known ones are bad_words, "),
    (
        {"prompt": None, "messages": [{"role": "user", "content": "x", "contents": "y"}]},
        "messages.0.contents",
        None,
        "unknown field; did you mean content? known ones are content, name,",
    ),
]


@pytest.mark.parametrize(("asked", "field", "limit", "words"), BAD, ids=short_id)
def test_bad_input_names_field_and_limit(asked: Mapping[str, Any], field: str, limit: object, words: str) -> None:
    with pytest.raises(RequestError) as caught:
        validate({"prompt": "hello", **asked}, LIMITS)
    assert caught.value.field == field
    assert caught.value.message.startswith(field.partition(".")[0])
    assert words in caught.value.message
    assert len(caught.value.message) < 600
    if field != "priority" and "role" not in field:  # their limit is the list of what's allowed
        assert caught.value.limit == limit


@pytest.mark.parametrize(
    "asked",
    [
        {"max_new_tokens": "5"},
        {"max_new_tokens": True},
        {"max_new_tokens": 5.0},
        {"temperature": "1"},
        {"temperature": True},
        {"top_k": 1.5},
        {"seed": "7"},
        {"stop": "END"},
        {"stop": ("END",)},
        {"ignore_eos": 1},
        {"metadata": {1: 2}},
        {"prompt": b"hello"},
    ],
    ids=ascii,
)
def test_types_are_strict(asked: Mapping[str, Any]) -> None:
    with pytest.raises(RequestError) as caught:
        validate({"prompt": "hello", **asked}, LIMITS)
    assert str(caught.value.field).startswith(next(iter(asked)))


def test_defaults_fill_what_is_not_given() -> None:
    request = validate({"prompt": "hello"}, LIMITS)
    assert request == {**VERSION_1, "prompt": "hello"}


@pytest.mark.parametrize(
    ("given", "stored"), [(None, 512), (1, 1), (512, 512), (513, 512), (10**5000, 512)], ids=short_id
)
def test_the_operators_limit_bounds_the_budget_and_refuses_none(given: int | None, stored: int) -> None:
    request = asked(max_new_tokens=given)
    assert budget(request, LIMITS) == stored
    assert body_sha256(request)


def test_defaults_are_not_shared_between_requests() -> None:
    validate({"prompt": "hello"}, LIMITS)["stop"].append("END")
    assert VERSION_1["stop"] == []


def test_prompt_is_not_repeated_in_errors() -> None:
    with pytest.raises(RequestError) as caught:
        validate({"prompt": "a secret \ud800"}, LIMITS)
    assert "secret" not in caught.value.message


TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
VISIBLE = TEXT.filter(lambda text: bool(text.strip()))
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)
OPTIONS = st.fixed_dictionaries(
    {},
    optional={
        "model": st.sampled_from(["weather", "HuggingFaceTB/SmolLM2-135M", "a.b_c-d"]),
        "priority": st.sampled_from(["high", "default", "low"]),
        "max_new_tokens": st.none() | st.integers(1, 600),
        "temperature": st.floats(0, 100) | st.integers(0, 100),
        "top_k": st.integers(0, 2**31 - 1),
        "top_p": st.floats(0, 1, exclude_min=True),
        "seed": st.none() | st.integers(0, MAX_SEED),
        "stop": st.lists(TEXT.filter(bool), max_size=16),
        "ignore_eos": st.booleans(),
        "deadline_s": st.floats(0.001, 7 * 86_400),
        "metadata": st.dictionaries(TEXT, JSON, max_size=3),
        "idempotency_key": st.none() | TEXT.filter(bool),
    },
)
MESSAGES = st.lists(
    st.fixed_dictionaries({"role": st.sampled_from(["system", "developer", "user", "assistant"]), "content": VISIBLE}),
    min_size=1,
    max_size=4,
)
BODY = st.fixed_dictionaries({"prompt": VISIBLE}) | st.fixed_dictionaries({"messages": MESSAGES})


@settings(database=None, derandomize=True)
@given(BODY, OPTIONS)
def test_a_request_survives_redis(body: Mapping[str, Any], options: Mapping[str, Any]) -> None:
    request = validate({**body, **options}, LIMITS)
    stored = dump(request)
    kept = {name: value for name, value in request.items() if name != "idempotency_key"}
    assert load(stored) == kept
    assert load(stored.encode()) == kept
    assert dump(load(stored)) == stored


def asked(**options: Any) -> Submission:
    return validate({"prompt": "hello", **options}, LIMITS)


def body_sha256(request: Submission, limits: Limits = LIMITS) -> str:
    return schema.body_sha256(request, limits)


def test_body_hash_leaves_the_idempotency_key_out() -> None:
    assert body_sha256(asked(idempotency_key="a")) == body_sha256(asked(idempotency_key="b")) == body_sha256(asked())


def test_body_hash_is_of_what_was_asked_not_of_what_was_drawn() -> None:
    request = asked()
    before = body_sha256(request)
    assert request["seed"] is None, "the seed is drawn after the hash: two requests without one must agree"
    request["seed"] = 7
    assert body_sha256(request) != before


@pytest.mark.parametrize(
    "depth", [1, 100, MAX_METADATA_DEPTH - 1, MAX_METADATA_DEPTH, MAX_METADATA_DEPTH + 1, 200, 250]
)
def test_metadata_that_is_taken_can_be_read_by_workers(depth: int) -> None:
    try:
        request = validate({"prompt": "x", "metadata": nested(depth - 1)}, LIMITS)
    except RequestError:
        assert depth > MAX_METADATA_DEPTH
    else:
        assert load(dump({**request, "seed": 1}))["metadata"] == nested(depth - 1)


def test_metadata_that_holds_itself_is_refused() -> None:
    itself: dict[str, Any] = {}
    itself.update(a=itself, b=[itself, itself])
    with pytest.raises(RequestError, match="190 levels"):
        validate({"prompt": "x", "metadata": itself}, LIMITS)


@pytest.mark.parametrize("other", [{"prompt": "hellp"}, {"seed": 1}, {"temperature": 0.5}, {"metadata": {"a": 1}}])
def test_body_hash_tells_bodies_apart(other: Mapping[str, Any]) -> None:
    assert body_sha256(asked(**other)) != body_sha256(asked())


@pytest.mark.parametrize(
    ("given", "limit", "hashed_before"),
    [
        ({}, 8192, "805f9194927c48ec7ef76b6058a980f5e7040c2cbb7736ea847a14fc67077951"),
        ({}, 131_072, "805f9194927c48ec7ef76b6058a980f5e7040c2cbb7736ea847a14fc67077951"),
        ({"max_new_tokens": 5}, 8192, "36bb7100116cad070aebcff8bd82cd9e325d6959761e4f04ef634f009ddf6b73"),
        ({}, 64, "6bac6593da7fd0ac357a9f78b90f7a4eea1b291e8f1d7baacc9fa506721ed71d"),
    ],
)
def test_a_key_attaches_to_what_the_release_before_hashed(
    given: Mapping[str, Any], limit: int, hashed_before: str
) -> None:
    """These are hashes of the release whose default limit was 256 tokens; today's default limit is another one."""
    limits = Limits(200, limit)
    assert body_sha256(validate({"prompt": "x", **given}, limits), limits) == hashed_before


def test_body_hash_is_of_the_given_limit_not_of_the_operators() -> None:
    given = asked(max_new_tokens=600)
    assert body_sha256(given, Limits(200, 512)) == body_sha256(given, Limits(200, 4096))
    assert body_sha256(given) != body_sha256(asked(max_new_tokens=512))


def test_whole_and_fractional_spelling_of_a_number_are_one_body() -> None:
    assert body_sha256(asked(temperature=1)) == body_sha256(asked(temperature=1.0))


@pytest.mark.parametrize("raw", ["", "[]", "null", "{}", '{"prompt": "hello"}', b"\xff", "{" * 5000, '{"sneaky": 1}'])
def test_load_refuses_what_is_not_ours(raw: str | bytes) -> None:
    with pytest.raises(RequestError):
        load(raw)


def test_a_later_versions_request_can_be_shown() -> None:
    """Fields that this version doesn't know, roles and contents too, and absent ones that the first claim decides."""
    messages = [{"role": "assistant", "content": None, "tool_calls": [{"id": "a"}]}]
    later = {"model": "m", "messages": messages, "min_p": 0.1, "logprobs": True, "metadata": {"a": 1}, "stop": None}
    shown = glance(json.dumps(later))
    assert shown == {**DEFAULTS, "model": "m", "messages": messages, "metadata": {"a": 1}}
    known = {"type": "regex", "value": "a+", "strict": True}
    for form, expected in ((known, known), ({"type": "regex", "pattern": "a+"}, None), ("xml", None)):
        assert glance(json.dumps({**later, "response_format": form})) == {**shown, "response_format": expected}
    for raw in ("", "[]", '{"model": 1}', '{"messages": [1]}'):
        with pytest.raises(RequestError):
            glance(raw)


@pytest.mark.parametrize("name", sorted(set(VERSION_1) - {"idempotency_key"}))
def test_load_names_what_is_missing(name: str) -> None:
    body = json.loads(dump(asked()))
    del body[name]
    with pytest.raises(RequestError, match=name):
        load(json.dumps(body))
