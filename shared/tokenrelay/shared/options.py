"""What a caller may ask for: the one schema of a request, its bounds and its defaults.

`Options` types the keyword arguments of `submit`, is what validates them, and is what the worker reads from the
request's hash. It doesn't know which model will answer: whether a prompt fits is the worker's to say.
"""

from __future__ import annotations

import hashlib
import json
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Annotated, Any, Final, TypeVar, cast

from pydantic import (
    AfterValidator,
    BeforeValidator,
    ConfigDict,
    Field,
    JsonValue,
    TypeAdapter,
    ValidationError,
)
from typing_extensions import TypedDict

from tokenrelay.shared.chat import (
    Message,
    ToolChoice,
    Tools,
    check_prompt,
    check_template_options,
    check_tools,
    of_version_1,
)
from tokenrelay.shared.errors import RequestError
from tokenrelay.shared.request_errors import request_error
from tokenrelay.shared.request_fields import (
    MAX_BAD_WORDS,
    MAX_CHOICES,
    MAX_DEADLINE_S,
    MAX_SEED,
    MAX_STOP,
    MAX_STOP_TOKEN_IDS,
    BadWord,
    LogitBias,
    MinP,
    Penalty,
    Priority,
    RepetitionPenalty,
    Temperature,
    TemplateKwargs,
    Text,
    TokenId,
    TopK,
    TopLogprobs,
    TopP,
    check_logprobs,
    check_min_tokens,
    check_prompt_logprobs,
    model_name,
    most_with_logprobs,
    not_blank,
    shallow,
    small_metadata,
)
from tokenrelay.shared.response_format import STORED, ResponseFormat

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping


class Options(TypedDict, total=False):
    """How to generate. Each has a default; a value out of bounds is a RequestError that names the field."""

    __pydantic_config__ = ConfigDict(extra="forbid", strict=True, use_attribute_docstrings=True)  # type: ignore[misc]

    messages: Annotated[list[Message] | None, Field(min_length=1, max_length=1024)]
    """A chat instead of a prompt; the worker applies the model's chat template."""
    prompt_token_ids: Annotated[list[TokenId] | None, Field(min_length=1)]
    """The token IDs of a prompt instead of its text; control tokens among them have their power."""
    continue_final_message: bool
    """The last message is the assistant's, and the answer continues it."""
    chat_template_kwargs: TemplateKwargs
    """Arguments for the model's chat template, at most 16,384 bytes as JSON; names that rendering sets are refused."""
    model: Annotated[str, AfterValidator(model_name)]
    """The model to ask, as its workers serve it."""
    priority: Priority
    """Which of the model's queues: high is served first, low last."""
    max_new_tokens: Annotated[int | None, Field(ge=1)]
    """The answer's limit in tokens, cut to the operator's limit and to what the model's context leaves."""
    temperature: Temperature
    """0 is greedy; otherwise logits are divided by it before sampling. 1.0, where the model has no default."""
    top_k: TopK
    """Sample among the k likeliest tokens; 0 is all, and the default of a model that has none of its own."""
    top_p: TopP
    """Sample among the likeliest tokens that hold this share of the probability; 1 is all, and the default likewise."""
    seed: Annotated[int | None, Field(ge=0, le=MAX_SEED)]
    """Decides every draw together with the token's position; None draws one at submit."""
    stop: Annotated[list[Annotated[Text, Field(min_length=1, max_length=256)]], Field(max_length=MAX_STOP)]
    """The answer ends before the first of these strings."""
    ignore_eos: bool
    """Go on past the end-of-sequence token, up to the limit."""
    logit_bias: LogitBias
    """Token ID → what is added to its logit before anything else, -100 to 100; at most 1,024 token IDs."""
    repetition_penalty: RepetitionPenalty
    """Makes the tokens of the prompt and the answer so far less likely (above 1) or likelier (below 1); 1.0, where the
    model has no default."""
    frequency_penalty: Penalty
    """Subtracted from a token's logit for each time that the answer holds it, -2 to 2."""
    presence_penalty: Penalty
    """Subtracted from the logit of each token that the answer holds, -2 to 2."""
    bad_words: Annotated[list[BadWord], Field(max_length=MAX_BAD_WORDS)]
    """Texts whose tokens are never generated in a row, at the start of a word or within; at most 256."""
    min_tokens: Annotated[int, Field(ge=0)]
    """The answer has at least this many tokens: before, no stop string and no end-of-sequence token ends it."""
    min_p: MinP
    """Sample among tokens that have at least this share of the likeliest one's probability; 0 is all, and the default
    of a model that has none of its own."""
    stop_token_ids: Annotated[list[TokenId], Field(max_length=MAX_STOP_TOKEN_IDS)]
    """The answer ends before the first of these tokens; at most 256."""
    logprobs: bool
    """Report the log-probability of each token, before anything else of the draw."""
    top_logprobs: TopLogprobs
    """Report those of so many likeliest tokens at each place, too, 0 to 20; only with `logprobs`."""
    prompt_logprobs: TopLogprobs | None
    """Report the log-probability of each prompt token but the first, and of so many likeliest tokens there, 0 to 20."""
    echo: bool
    """Store the prompt's text for readers to show before the answer; not with messages."""
    include_stop_str_in_output: bool
    """The stop string, or the token of `stop_token_ids`, that ends the answer is a part of it."""
    response_format: ResponseFormat | None
    """What the answer must match: type json_object, or json_schema, regex, choice or lark with a value. In Python also
    a pydantic model."""
    tools: Tools
    """Functions that the answer may call, at most 128: name, description, parameters (a JSON schema), strict."""
    tool_choice: ToolChoice
    """Whether it calls any: auto, none, required, or `{"name": …}` for one of them."""
    parallel_tool_calls: bool
    """Whether it may call several at once."""
    deadline_s: Annotated[float, Field(gt=0, le=MAX_DEADLINE_S, allow_inf_nan=False)]
    """Seconds from submit after which the request ends, finished or not."""
    metadata: Annotated[dict[str, JsonValue], BeforeValidator(shallow), AfterValidator(small_metadata)]
    """Comes back in the stream's first entry and in the answer."""
    idempotency_key: Annotated[Text | None, Field(min_length=1, max_length=256)]
    """The same key and body attach to the generation that is there; another body is refused."""


class Submission(Options, total=False):
    """A whole request: options and the prompt (or `messages`)."""

    prompt: Annotated[Text | None, AfterValidator(lambda value: value if value is None else not_blank(value))]
    """The text to continue, taken as text: control tokens in it have no power."""


class StoredRequest(Submission, total=False):
    """A submission as a request's hash keeps it: with the number of its call's requests, and its own place in them."""

    choices: Annotated[int, Field(ge=1, le=MAX_CHOICES)]
    choice: Annotated[int, Field(ge=0, lt=MAX_CHOICES)]


AnyRequest = TypeVar("AnyRequest", bound=Submission)


VERSION_1: Final[Submission] = {
    "prompt": None,
    "messages": None,
    "model": "weather",
    "priority": "default",
    "max_new_tokens": None,
    "temperature": 1.0,
    "top_k": 0,
    "top_p": 1.0,
    "seed": None,
    "stop": [],
    "ignore_eos": False,
    "deadline_s": 600.0,
    "metadata": {},
    "idempotency_key": None,
}
"""The fields of wire version 1, with their defaults: all of them, and no others, are in such a request's JSON."""

VERSION_2: Final[Submission] = {
    "prompt_token_ids": None,
    "continue_final_message": False,
    "chat_template_kwargs": "{}",  # type: ignore[typeddict-item]
    "logit_bias": {},
    "repetition_penalty": 1.0,
    "frequency_penalty": 0.0,
    "presence_penalty": 0.0,
    "bad_words": [],
    "min_tokens": 0,
    "min_p": 0.0,
    "stop_token_ids": [],
    "include_stop_str_in_output": False,
    "logprobs": False,
    "top_logprobs": 0,
    "prompt_logprobs": None,
    "echo": False,
    "response_format": None,
    "tools": [],
    "tool_choice": "auto",
    "parallel_tool_calls": True,
}
"""What wire version 2 adds, with the defaults: only what was given is in a request's JSON."""

ONLY_CHOICE: Final = {"choices": 1, "choice": 0}
"""The same of what isn't an option: a request that is its call's only one."""

DEFAULTS: Final = cast("Submission", {**VERSION_1, **VERSION_2})

MODELS_OWN: Final = frozenset({"temperature", "top_k", "top_p", "min_p", "repetition_penalty"})
"""Options for which a model may have defaults of its own (its generation_config.json), as vLLM takes them."""

CAPABILITIES: Final = {
    "logprobs": "logprobs",
    "prompt_logprobs": "prompt_logprobs",
    "response_format": "grammar",
    "tools": "tools",
}
"""Options that a worker of wire version 2 may lack, and what it registers where it doesn't."""

WIRE: Final = 2
"""The highest wire version of requests that this release writes and reads: docs/wire.md."""

_ADAPTER: Final = TypeAdapter(Submission)
_STORED: Final = TypeAdapter(StoredRequest)
_NOT_IN_BODY: Final = ("idempotency_key",)
_HASHED_BUDGET: Final = 256
"""Stands in the body hash of a request without a limit: its default when idempotency keys began to be stored."""
_MOST_TOKENS: Final = 2**53
"""Larger limits mean no more than this one, which every JSON reader holds exactly."""


@dataclass(frozen=True, slots=True)
class Limits:
    """The bounds that an operator sets."""

    max_prompt_chars: int
    max_new_tokens: int


@cache
def _options() -> TypeAdapter[Options]:
    return TypeAdapter(Options)


def json_schema() -> dict[str, Any]:
    """Of a submission, every field with its description."""
    schema = _ADAPTER.json_schema()
    # Of a TypedDict pydantic reads the docstrings of its own fields, not of those that it inherits.
    schema["properties"] |= _options().json_schema()["properties"]
    return schema


def validate(submission: Mapping[str, Any], limits: Limits) -> Submission:
    """The whole request: version 1's fields with defaults filled in, and those of version 2 that ask for something or
    that a model may have a default of its own for. Raises RequestError naming the field and the limit."""
    try:
        request = _ADAPTER.validate_python({**VERSION_1, **submission})
    except ValidationError as error:
        raise request_error(error, DEFAULTS) from None
    check_prompt(request, limits.max_prompt_chars)
    check_template_options(request)
    check_tools(request)
    check_prompt_logprobs(request)
    check_min_tokens(request.get("min_tokens", 0), budget(request, limits))
    check_logprobs(request)
    if request["ignore_eos"] and request.get("response_format") is not None:
        message = "ignore_eos: not with response_format, whose answer ends where it is complete; give one of them"
        raise RequestError(message, field="ignore_eos")
    return _only(request, VERSION_1.keys() | MODELS_OWN | asked(request))


def asked(request: Mapping[str, Any]) -> set[str]:
    """Version 2's fields that the request has with a value other than the default."""
    defaults = {**VERSION_2, **ONLY_CHOICE}
    return {name for name, default in defaults.items() if name in request and request[name] != default}


def _of_version_1(request: Mapping[str, Any]) -> bool:
    """Whether it has version 1's fields alone; options of the model's own may be left out."""
    return not asked(request) and of_version_1(request["messages"])


def _only(request: AnyRequest, names: Collection[str]) -> AnyRequest:
    return cast("AnyRequest", {name: value for name, value in request.items() if name in names})


def resolve(request: AnyRequest, not_given: Collection[str], models_own: Mapping[str, Any]) -> AnyRequest:
    """The request as it's stored, from what `validate` gave.

    One that asks for nothing new is version 1's: the model's own defaults stand where the caller gave none. In another
    what wasn't given is left out, for the first claim to decide. `not_given`: those of MODELS_OWN.
    """
    own = {name: value for name, value in models_own.items() if name in not_given and value != DEFAULTS[name]}  # type: ignore[literal-required]
    if not _of_version_1(request) or own.keys() & VERSION_2.keys():
        return _only(request, request.keys() - set(not_given))
    return cast("AnyRequest", {**_only(request, VERSION_1), **own})


def wire_of(request: Submission) -> int:
    """The lowest wire version that a worker must know to serve the request, as it's stored."""
    has_its_fields = request.keys() | set(_NOT_IN_BODY) == VERSION_1.keys()
    return 1 if has_its_fields and of_version_1(request["messages"]) else 2


def filled(request: StoredRequest | Submission) -> StoredRequest:
    """The request with the defaults of the fields that it lacks."""
    return cast("StoredRequest", {**DEFAULTS, **request})


def dump(request: Submission) -> str:
    """The request as the JSON that its hash keeps (and whose seed the worker relies on)."""
    body = {name: value for name, value in request.items() if name not in _NOT_IN_BODY}
    return json.dumps(body, ensure_ascii=False, sort_keys=True, separators=(",", ":"), allow_nan=False)


def load(raw: str | bytes, wire: int = 1) -> StoredRequest:
    """The fields of a stored request of that wire version, as a worker reads them.

    Raises RequestError: what's in Redis needn't be ours. Its code is `unsupported_option` where a version 2 request has
    a field that only a later release knows: the request is for that one's workers.
    """
    try:
        request = _STORED.validate_json(raw, context=STORED)
    except ValidationError as error:
        refusal = request_error(error, DEFAULTS)
        if wire > 1 and all(each["type"] == "extra_forbidden" and len(each["loc"]) == 1 for each in error.errors()):
            refusal.code = "unsupported_option"
        raise refusal from None
    optional = {*_NOT_IN_BODY, *(MODELS_OWN if wire > 1 else ())}
    missing = [name for name in VERSION_1 if name not in request and name not in optional]
    if missing:
        raise RequestError(f"{missing[0]}: missing from the stored request", field=missing[0])
    added = sorted(request.keys() - VERSION_1.keys())
    if wire == 1 and added:
        raise RequestError(f"{added[0]}: unknown field in a request of wire version 1", field=added[0])
    if wire == 1 and not of_version_1(request["messages"]):
        raise RequestError("messages: a field that wire version 1 doesn't have", field="messages")
    return request


def budget(request: Submission, limits: Limits) -> int:
    """The `max_new_tokens` to store: the caller's limit or, where that is larger or not given, the operator's."""
    most = limits.max_new_tokens
    if request.get("logprobs", False):
        most = min(most, most_with_logprobs(request.get("top_logprobs", 0)))
    return min(request["max_new_tokens"] or most, most)


def sampling_defaults(found: Mapping[str, Any]) -> dict[str, Any]:
    """Those of a model's own defaults that are options here and within their bounds."""
    kept: dict[str, Any] = {}
    for name in sorted(MODELS_OWN & found.keys()):
        with suppress(ValidationError):
            kept.update(_options().validate_python({name: found[name]}))
    return kept


def body_sha256(request: Submission, limits: Limits) -> str:
    """What two requests under one idempotency key must share. Taken before seed, budget and deadline are resolved.

    A key outlives an upgrade: what was hashed for a body in one release is hashed for it in the next.
    """
    given = min(request["max_new_tokens"] or min(_HASHED_BUDGET, limits.max_new_tokens), _MOST_TOKENS)
    counted = _only(request, VERSION_1.keys() | asked(request))
    return hashlib.sha256(dump({**counted, "max_new_tokens": given}).encode()).hexdigest()
