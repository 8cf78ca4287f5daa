"""Schemas of OpenAI's request bodies, and their translation to our request options.

Unsupported fields are ignored and reported if they don't change the answer, and refused otherwise (unsupported.py).
A few extension fields are ours; OpenAI's clients send them with `extra_body`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Final, Literal, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    PlainValidator,
    ValidationInfo,
    WithJsonSchema,
    model_validator,
)
from pydantic_core import PydanticCustomError

from tokenrelay.gateway.http.problems import refuse
from tokenrelay.gateway.openai.bodies.coercion import NO_LIMIT, Flag, Prediction, Real, Whole, false_is_none, queue
from tokenrelay.gateway.openai.bodies.contents import (
    PROMPTS_SCHEMA,
    Conversation,
    Prompts,
    prompt_option,
    read_input,
    read_messages,
    read_prompts,
)
from tokenrelay.gateway.openai.bodies.draw_fields import DrawFields, ResponseLogprobs, TemplateFields, changes
from tokenrelay.gateway.openai.bodies.no_op_values import is_empty
from tokenrelay.gateway.openai.bodies.structured_output import FormatFields, NamedFormat, read_text
from tokenrelay.gateway.openai.bodies.unsupported import (
    ALTERNATIVES,
    HINTS,
    NOTES,
    PROMPT_UNSUPPORTED,
    UNSUPPORTED,
    is_default,
)
from tokenrelay.gateway.openai.tools.offered import ToolFields
from tokenrelay.shared.request_fields import Text

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from tokenrelay.gateway.views.chat import UsageChunks
    from tokenrelay.shared.errors import RequestError

LIMITS: Final = (
    "max_completion_tokens",
    "max_output_tokens",
    "max_tokens",
    "max_new_tokens",
    "max_tokens_to_sample",
    "n_predict",
    "num_predict",
)
"""Aliases of the token limit: OpenAI's three, ours, and other servers'. Every endpoint accepts all of them."""
STOPS: Final = ("stop", "stop_sequences", "stop_strings")
"""Aliases of the stop strings."""
ANY_SEED: Final = -1
"""Draw a random seed. Other negative values are seeds, as in OpenAI's API."""
_INT64: Final = -(2**63)
_LEAVE_OUT: Final = "isn't supported here; leave it out"
_MESSAGES_SCHEMA: Final = {"type": "array", "minItems": 1, "items": {"type": "object", "required": ["role"]}}


def to_our_range(options: dict[str, Any]) -> dict[str, Any]:
    """Map values that other servers accept and our bounds exclude to equivalent ones."""
    if options.get("top_k") == -1:
        options["top_k"] = 0
    top_p, seed = options.get("top_p"), options.get("seed")
    if top_p == 0 and not isinstance(top_p, bool):  # greedy
        del options["top_p"]
        options["top_k"] = 1
    if seed == ANY_SEED:
        del options["seed"]
    elif isinstance(seed, int) and _INT64 <= seed < 0:
        options["seed"] = seed - _INT64
    if options.get("max_new_tokens") == NO_LIMIT:
        del options["max_new_tokens"]
    if isinstance(options.get("stop"), str):
        options["stop"] = [options["stop"]]
    if isinstance(options.get("stop"), list):
        options["stop"] = [text for text in options["stop"] if text != ""]
    return options


def _stop(value: Any, field: ValidationInfo) -> Any:
    if isinstance(value, list):
        for number_, text in enumerate(value):
            if not isinstance(text, str):
                refuse(f"{field.field_name}.{number_}", "must be text")
    elif value is not None and not isinstance(value, str):
        refuse(str(field.field_name), "must be text or a list of texts")
    return value


def _differing(name: str, other: str) -> PydanticCustomError:
    return PydanticCustomError("differing", "differs from {other}; give one of them", {"field": name, "other": other})


def callers_index(stop: Sequence[str], index: int) -> int:
    """The index in the caller's list of the stop string that has `index` once empty ones are removed."""
    return [place for place, text in enumerate(stop) if text != ""][index]


def with_field(error: RequestError, path: str) -> RequestError:
    """The error with the caller's path as its field."""
    ours, _, _ = (error.field or "").partition(".")
    reason = error.message.removeprefix(error.field or "").removeprefix(ours)
    return type(error)(f"{path}{reason}", field=path, limit=error.limit, code=error.code, request_id=error.request_id)


Stop = Annotated[Any, PlainValidator(_stop, str | list[str] | None)]


class StreamOptions(BaseModel):
    """Options of a streamed answer."""

    model_config = ConfigDict(extra="allow", strict=True, use_attribute_docstrings=True)

    include_usage: Flag | None = None
    """Send the usage in a final chunk."""
    include_obfuscation: Flag | None = None
    """No-op: chunks aren't padded."""
    continuous_usage_stats: Flag | None = None
    """vLLM's: with include_usage, send the usage so far in every chunk."""


def _listed(value: Any) -> Any:
    """Stop strings as a list without empty ones; other values unchanged."""
    texts = [value] if isinstance(value, str) else value
    return [each for each in texts if each != ""] if isinstance(texts, list) else texts


class Common(DrawFields, FormatFields, BaseModel):
    """Fields that all endpoints share. Submit checks their bounds, with the same messages for every client."""

    model_config = ConfigDict(extra="allow", strict=True, arbitrary_types_allowed=True, use_attribute_docstrings=True)
    asks: ClassVar[tuple[str, ...]] = (
        "model",
        "temperature",
        "top_p",
        "top_k",
        "seed",
        "ignore_eos",
        "priority",
        "deadline_s",
        *DrawFields.model_fields,
    )
    unsupported: ClassVar = UNSUPPORTED
    alternatives: ClassVar = ALTERNATIVES

    model: str
    """A model listed by GET /v1/models."""
    temperature: Real | None = None
    """Sampling temperature; 0 is greedy."""
    top_p: Real | None = None
    """Nucleus sampling: sample from the most likely tokens with this total probability; 1: all."""
    stop: Stop = None
    """The answer ends before the first of these strings."""
    stop_sequences: Stop = None
    """Alias of stop (Anthropic, TGI)."""
    stop_strings: Stop = None
    """Alias of stop (Hugging Face)."""
    stream: Flag | None = None
    """Stream the answer as server-sent events."""
    stream_options: StreamOptions | None = None
    """Options of a streamed answer."""
    store: Flag | None = None
    """Echoed in the response. Every request is stored for the retention time."""
    metadata: dict[str, Any] | None = None
    """Stored with the request and returned with its status."""
    seed: Whole | None = None
    """Seed of the position-keyed sampling; random if absent or -1."""
    max_completion_tokens: Whole | None = None
    """Maximum number of answer tokens; -1: no limit."""
    max_output_tokens: Whole | None = None
    """Alias of max_completion_tokens."""
    max_tokens: Whole | None = None
    """Alias of max_completion_tokens."""
    max_new_tokens: Whole | None = None
    """Alias of max_completion_tokens."""
    max_tokens_to_sample: Whole | None = None
    """Alias of max_completion_tokens (Anthropic)."""
    n_predict: Prediction | None = None
    """Alias of max_completion_tokens (llama.cpp)."""
    num_predict: Prediction | None = None
    """Alias of max_completion_tokens (Ollama)."""
    do_sample: Flag | None = None
    """Hugging Face's: false means temperature 0."""
    top_k: Whole | None = None
    """Extension: sample from the k most likely tokens; 0 or -1: all."""
    ignore_eos: Flag | None = None
    """Extension: continue past the end-of-sequence token."""
    priority: Annotated[Literal["high", "default", "low"] | None, BeforeValidator(queue)] = None
    """Extension: the queue's priority."""
    deadline_s: Real | None = None
    """Extension: seconds from submit until the request expires."""

    @model_validator(mode="before")
    @classmethod
    def _drop_no_ops(cls, given: Any) -> Any:
        """Drop no-op fields. Raises Problem 400 for unsupported ones."""
        if not isinstance(given, dict):
            return given
        given = {name.encode(errors="replace").decode(): value for name, value in given.items()}  # lone surrogates
        others = {name: value for name, value in given.items() if name not in cls.model_fields}
        for name, value in others.items():
            if name in cls.unsupported and not cls.unsupported[name](value):
                refuse(name, cls.alternatives.get(name, _LEAVE_OUT), "unsupported_parameter")
        dropped = {
            name
            for name, value in others.items()
            if value is None or name in cls.unsupported or name in NOTES or (name in HINTS and is_default(name, value))
        }
        return {name: value for name, value in given.items() if name not in dropped}

    @model_validator(mode="after")
    def _check_aliases(self) -> Self:
        for names in (LIMITS, STOPS):
            first, *others = self._given(names).items() or [("", None)]
            for name, value in others:
                if value != first[1]:
                    raise _differing(name, first[0])
        if self.do_sample is False and self.temperature not in (None, 0, 1):
            raise _differing("do_sample", "temperature")
        return self

    def _given(self, names: Iterable[str]) -> dict[str, Any]:
        """The fields that aren't empty; stop strings as lists."""
        found = {name: _listed(getattr(self, name)) for name in names}
        return {name: value for name, value in found.items() if not is_empty(value) and value != NO_LIMIT}

    @property
    def unknown(self) -> list[str]:
        """Fields that no known server defines."""
        return [name for name in self.model_extra or {} if name not in HINTS]

    @property
    def ignored(self) -> list[str]:
        """Paths of the ignored fields."""
        nested = self.stream_options.model_extra if self.stream_options else None
        inner = [f"stream_options.{name}" for name, value in (nested or {}).items() if value]
        return [*(self.model_extra or {}), *inner]

    def options(self) -> dict[str, Any]:
        """The request options that were given."""
        given = {name: value for name in self.asks if changes(name, value := getattr(self, name))}
        given["max_new_tokens"] = next(iter(self._given(LIMITS).values()), None)
        given["stop"] = next(iter(self._given(STOPS).values()), None)
        if self.do_sample is False:
            given["temperature"] = 0.0
        _, given["response_format"] = self.answer_format
        options = to_our_range({name: value for name, value in given.items() if value is not None})
        return {**options, "metadata": self.metadata or {}}

    def submissions(self) -> list[dict[str, Any]]:
        """The request options of each of the call's prompts."""
        return [self.options()]

    def with_callers_field(self, error: RequestError) -> RequestError:
        """The error with the field's name as the caller sent it."""
        ours, _, rest = (error.field or "").partition(".")
        limit, stop = next(iter(self._given(LIMITS)), "max_new_tokens"), next(iter(self._given(STOPS)), "stop")
        names = {"max_new_tokens": limit, "stop": stop, "response_format": self.answer_format[0], **self._names()}
        path = names.get(ours, ours)
        if path in ("messages", "tools") and rest:  # the body's own, one for one
            path = f"{path}.{rest}"
        if ours == "stop" and rest and isinstance(texts := getattr(self, stop), list):
            path = f"{path}.{callers_index(texts, int(rest))}"
        return with_field(error, path)

    def _names(self) -> dict[str, str]:
        return {}


class Streamed(Common):
    """Fields that chat completions and completions share."""

    n: Whole | None = None
    """Number of choices, 1 to 16."""
    best_of: Whole | None = None
    """Only as many as n: no choice is generated that isn't returned."""

    @model_validator(mode="after")
    def _check_best_of(self) -> Self:
        if self.best_of not in (None, self.choices_each):
            refuse("best_of", "must equal n: there's no choosing among more", "unsupported_parameter")
        return self

    @property
    def choices_each(self) -> int:
        """Number of choices of each prompt."""
        return 1 if self.n is None else self.n

    @property
    def usage_chunks(self) -> UsageChunks:
        """Which chunks of a stream have the usage."""
        if not (self.stream_options and self.stream_options.include_usage):
            return "none"
        return "every" if self.stream_options.continuous_usage_stats else "last"


class ChatBody(Streamed, TemplateFields, ToolFields):
    """POST /v1/chat/completions."""

    messages: Annotated[Conversation, PlainValidator(read_messages), WithJsonSchema(_MESSAGES_SCHEMA)]
    """The conversation. The worker applies the model's chat template."""
    logprobs: Flag | None = None
    """Return the log-probability of each token."""
    top_logprobs: Whole | None = None
    """With logprobs: return those of so many likeliest tokens at each place, too, 0 to 20."""

    @property
    def ignored(self) -> list[str]:
        return [*super().ignored, *self.messages.ignored]

    def options(self) -> dict[str, Any]:
        asked = {"logprobs": self.logprobs, "top_logprobs": self.top_logprobs}
        given = {name: value for name, value in asked.items() if value} | self.template_options | self.tool_options
        return {**super().options(), **given, "messages": list(self.messages.messages)}


class CompletionBody(Streamed):
    """POST /v1/completions."""

    unsupported: ClassVar = PROMPT_UNSUPPORTED

    prompt: Annotated[Prompts, PlainValidator(read_prompts), WithJsonSchema(PROMPTS_SCHEMA)]
    """The text to continue, or its token IDs."""
    echo: Flag | None = None
    """Return the prompt before the answer; with logprobs, those of its tokens, too."""
    logprobs: Annotated[Whole | None, BeforeValidator(false_is_none)] = None
    """Return the log-probability of each token, and of so many likeliest tokens, 0 to 20."""

    @property
    def prompt_only(self) -> bool:
        """Whether the echoed prompt is all that's asked for: `max_tokens` is 0."""
        return bool(self.echo) and next(iter(self._given(LIMITS).values()), None) == 0

    def options(self) -> dict[str, Any]:
        given: dict[str, Any] = {"logprobs": True, "top_logprobs": self.logprobs} if self.logprobs is not None else {}
        if self.echo:
            given["echo"] = True
            given["prompt_logprobs"] = self.logprobs
        if self.prompt_only:
            given["max_new_tokens"] = 1  # the least that a request may ask for
        return {**super().options(), **given}

    def submissions(self) -> list[dict[str, Any]]:
        options = self.options()
        return [{**options, **prompt_option(prompt)} for prompt in self.prompt]

    def _names(self) -> dict[str, str]:
        return {"top_logprobs": "logprobs", "prompt_logprobs": "logprobs", "prompt_token_ids": "prompt"}


class ResponseBody(ResponseLogprobs, Common):
    """POST /v1/responses."""

    alternatives: ClassVar = {
        **ALTERNATIVES,
        "logprobs": 'isn\'t a field here; give include: ["message.output_text.logprobs"]',
        "prompt": "is a field of /v1/completions, or a template, which isn't supported",
    }

    input: Annotated[
        Conversation, PlainValidator(read_input), WithJsonSchema({"anyOf": [{"type": "string"}, _MESSAGES_SCHEMA]})
    ]
    """The user's message, or the conversation."""
    instructions: Text | None = None
    """A system message before the input."""
    previous_response_id: Annotated[str | None, BeforeValidator(lambda value: value or None)] = None
    """The response whose conversation this one continues."""
    formats: ClassVar = {**FormatFields.formats, "text": "text.format"}
    text: Annotated[NamedFormat | None, PlainValidator(read_text), WithJsonSchema({"type": "object"})] = None
    """What the answer must match: `{"format": {"type": "json_schema", "name": …, "schema": …}}`."""
    background: Flag | None = None
    """Return at once; generation continues after the client disconnects."""

    @property
    def stored(self) -> bool:
        return self.store is not False

    @property
    def ignored(self) -> list[str]:
        return [*super().ignored, *self.input.ignored]

    def options(self) -> dict[str, Any]:
        messages = [{"role": "system", "content": self.instructions}] if self.instructions else []
        return {**super().options(), **self.logprob_options(), "messages": [*messages, *self.input.messages]}

    def _names(self) -> dict[str, str]:
        return {"messages": "input"}
