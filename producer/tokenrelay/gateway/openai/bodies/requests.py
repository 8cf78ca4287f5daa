"""The bodies of OpenAI's endpoints, as far as we do them, and how each becomes a request of ours.

A field that we don't do is ignored and named where it changes nothing (fields.py), and refused by its name otherwise.
Beside OpenAI's fields stand a few of ours, which its clients send with `extra_body`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Final, Literal, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainValidator,
    ValidationInfo,
    WithJsonSchema,
    model_validator,
)
from pydantic_core import PydanticCustomError

from tokenrelay.gateway.openai.bodies.coercion import Flag, Real, Whole, flag, number, whole
from tokenrelay.gateway.openai.bodies.contents import Conversation, read_input, read_messages, refuse
from tokenrelay.gateway.openai.bodies.fields import HINTS, INSTEAD, NOTES, PROMPT_UNDONE, UNDONE, is_usual
from tokenrelay.gateway.openai.bodies.harmless import is_nothing
from tokenrelay.shared.options import Text

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from tokenrelay.gateway.views.chat import ToldUsage
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
"""The names of the answer's limit, OpenAI's three, ours and other servers': taken at each endpoint, for all mean the
same."""
STOPS: Final = ("stop", "stop_sequences", "stop_strings")
"""Likewise of the texts that end an answer."""
NO_LIMIT: Final = -1
"""What llama.cpp, LM Studio and their clients call no limit."""
ANY_SEED: Final = -1
"""Likewise a seed that is drawn; other negative ones are seeds, as OpenAI has them."""
_INT64: Final = -(2**63)
_LEAVE_OUT: Final = "isn't supported here; leave it out"
_MESSAGES_SCHEMA: Final = {"type": "array", "minItems": 1, "items": {"type": "object", "required": ["role"]}}


def in_our_range(options: dict[str, Any]) -> dict[str, Any]:
    """The options with what other servers take beyond our bounds said in our words."""
    if options.get("top_k") == -1:
        options["top_k"] = 0
    top_p, seed = options.get("top_p"), options.get("seed")
    if top_p == 0 and not isinstance(top_p, bool):  # nothing but the likeliest token
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


def _prediction(value: Any) -> Any:
    """llama.cpp's and Ollama's numbers: -2 is up to the context's end, where every answer without a limit ends."""
    return NO_LIMIT if number(value) == -2 else whole(value)


def _differing(name: str, other: str) -> PydanticCustomError:
    return PydanticCustomError("differing", "differs from {other}; give one of them", {"field": name, "other": other})


def callers_index(stop: Sequence[str], index: int) -> int:
    """Where the text stood in the caller's list that is at `index` without the empty ones."""
    return [place for place, text in enumerate(stop) if text != ""][index]


def renamed(error: RequestError, path: str) -> RequestError:
    """The error at the caller's path."""
    ours, _, _ = (error.field or "").partition(".")
    told = error.message.removeprefix(error.field or "").removeprefix(ours)
    return type(error)(f"{path}{told}", field=path, limit=error.limit, code=error.code, request_id=error.request_id)


def _queue(value: Any) -> Any:
    """vLLM's numbers: 0 is its default."""
    return "default" if not isinstance(value, bool) and number(value) == 0 else value


def _one_prompt(value: Any) -> Any:
    one = value[0] if isinstance(value, list) and len(value) == 1 else value
    if isinstance(one, int | list):
        tokens = isinstance(one, int) or (bool(one) and all(isinstance(item, int | list) for item in one))
        why = "token IDs aren't supported; give text" if tokens else "give one prompt a request"
        refuse("prompt", why, "unsupported_parameter")
    return one


Stop = Annotated[Any, PlainValidator(_stop, str | list[str] | None)]
Prediction = Annotated[int, BeforeValidator(_prediction)]


class StreamOptions(BaseModel):
    """How an answer is streamed."""

    model_config = ConfigDict(extra="allow", strict=True, use_attribute_docstrings=True)

    include_usage: Flag | None = None
    """A last chunk gives the usage."""
    include_obfuscation: Flag | None = None
    """Changes nothing: answers aren't padded."""
    continuous_usage_stats: Flag | None = None
    """vLLM's: with include_usage, every chunk gives the usage so far."""


def _listed(value: Any) -> Any:
    """Stop texts as a list of those that aren't empty; anything else as it is."""
    texts = [value] if isinstance(value, str) else value
    return [each for each in texts if each != ""] if isinstance(texts, list) else texts


class Common(BaseModel):
    """What the endpoints share. Bounds are ours to check at submit, in the same words for everybody."""

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
    )
    undone: ClassVar = UNDONE
    instead: ClassVar = INSTEAD

    model: str
    """One of GET /v1/models."""
    temperature: Real | None = None
    """0 is greedy; otherwise logits are divided by it before sampling."""
    top_p: Real | None = None
    """Sample among the likeliest tokens that hold this share of the probability; 1: all."""
    stop: Stop = None
    """The answer ends before the first of these strings."""
    stop_sequences: Stop = None
    """Anthropic's and TGI's name of stop."""
    stop_strings: Stop = None
    """Hugging Face's name of stop."""
    stream: Flag | None = None
    """Answer with server-sent events."""
    stream_options: StreamOptions | None = None
    """What a stream says beside its text."""
    store: Flag | None = None
    """The value that a response repeats; every request is kept for the retention time."""
    metadata: dict[str, Any] | None = None
    """Kept with the request, for whoever looks it up."""
    seed: Whole | None = None
    """Decides every draw together with the token's position; drawn where none or -1 is given."""
    max_completion_tokens: Whole | None = None
    """The answer's limit in tokens; none where it is -1."""
    max_output_tokens: Whole | None = None
    """Another name of max_completion_tokens."""
    max_tokens: Whole | None = None
    """Another name of max_completion_tokens."""
    max_new_tokens: Whole | None = None
    """Another name of max_completion_tokens."""
    max_tokens_to_sample: Whole | None = None
    """Another name of max_completion_tokens, Anthropic's."""
    n_predict: Prediction | None = None
    """Another name of max_completion_tokens, llama.cpp's."""
    num_predict: Prediction | None = None
    """Another name of max_completion_tokens, Ollama's."""
    do_sample: Flag | None = None
    """Hugging Face's: false is temperature 0."""
    top_k: Whole | None = None
    """Ours: sample among the k likeliest tokens; 0 or -1: all."""
    ignore_eos: Flag | None = None
    """Ours: continue past the end-of-sequence token."""
    priority: Annotated[Literal["high", "default", "low"] | None, BeforeValidator(_queue)] = None
    """Ours: the queue to wait in."""
    deadline_s: Real | None = None
    """Ours: seconds after which the request ends."""

    @model_validator(mode="before")
    @classmethod
    def _leave_out(cls, given: Any) -> Any:
        """Without what asks for nothing. Raises Problem 400 for what isn't done."""
        if not isinstance(given, dict):
            return given
        given = {name.encode(errors="replace").decode(): value for name, value in given.items()}  # lone surrogates
        others = {name: value for name, value in given.items() if name not in cls.model_fields}
        for name, value in others.items():
            if name in cls.undone and not cls.undone[name](value):
                refuse(name, cls.instead.get(name, _LEAVE_OUT), "unsupported_parameter")
        quiet = {
            name
            for name, value in others.items()
            if value is None or name in cls.undone or name in NOTES or (name in HINTS and is_usual(name, value))
        }
        return {name: value for name, value in given.items() if name not in quiet}

    @model_validator(mode="after")
    def _one_of_each(self) -> Self:
        for names in (LIMITS, STOPS):
            first, *others = self._given(names).items() or [("", None)]
            for name, value in others:
                if value != first[1]:
                    raise _differing(name, first[0])
        if self.do_sample is False and self.temperature not in (None, 0, 1):
            raise _differing("do_sample", "temperature")
        return self

    def _given(self, names: Iterable[str]) -> dict[str, Any]:
        """Those of the fields that ask for something; texts as a list of those that aren't empty."""
        found = {name: _listed(getattr(self, name)) for name in names}
        return {name: value for name, value in found.items() if not is_nothing(value) and value != NO_LIMIT}

    @property
    def unknown(self) -> list[str]:
        """The fields that nobody knows."""
        return [name for name in self.model_extra or {} if name not in HINTS]

    @property
    def ignored(self) -> list[str]:
        """The paths of all that was given and changes nothing."""
        nested = self.stream_options.model_extra if self.stream_options else None
        inner = [f"stream_options.{name}" for name, value in (nested or {}).items() if value]
        return [*(self.model_extra or {}), *inner]

    def options(self) -> dict[str, Any]:
        """Those of our options that were given."""
        given = {name: getattr(self, name) for name in self.asks}
        given["max_new_tokens"] = next(iter(self._given(LIMITS).values()), None)
        given["stop"] = next(iter(self._given(STOPS).values()), None)
        if self.do_sample is False:
            given["temperature"] = 0.0
        options = in_our_range({name: value for name, value in given.items() if value is not None})
        return {**options, "metadata": self.metadata or {}}

    def in_callers_words(self, error: RequestError) -> RequestError:
        """The error with the field as the caller sent it."""
        ours, _, rest = (error.field or "").partition(".")
        limit, stop = next(iter(self._given(LIMITS)), "max_new_tokens"), next(iter(self._given(STOPS)), "stop")
        path = {"max_new_tokens": limit, "stop": stop, **self._names()}.get(ours, ours)
        if ours == "stop" and rest and isinstance(texts := getattr(self, stop), list):
            path = f"{path}.{callers_index(texts, int(rest))}"
        return renamed(error, path)

    def _names(self) -> dict[str, str]:
        return {}


class Streamed(Common):
    """What chat and plain completions share."""

    @property
    def told_usage(self) -> ToldUsage:
        """Which chunks of a stream say the usage."""
        if not (self.stream_options and self.stream_options.include_usage):
            return "none"
        return "every" if self.stream_options.continuous_usage_stats else "last"


class ChatBody(Streamed):
    """POST /v1/chat/completions."""

    messages: Annotated[Conversation, PlainValidator(read_messages), WithJsonSchema(_MESSAGES_SCHEMA)]
    """The conversation so far; the worker applies the model's chat template."""

    @property
    def ignored(self) -> list[str]:
        return [*super().ignored, *self.messages.ignored]

    def options(self) -> dict[str, Any]:
        return {**super().options(), "messages": list(self.messages.messages)}


class CompletionBody(Streamed):
    """POST /v1/completions."""

    undone: ClassVar = PROMPT_UNDONE

    prompt: Annotated[str, BeforeValidator(_one_prompt, str | Annotated[list[str], Field(min_length=1, max_length=1)])]
    """The text to continue."""

    def options(self) -> dict[str, Any]:
        return {**super().options(), "prompt": self.prompt}


class ResponseBody(Common):
    """POST /v1/responses."""

    instead: ClassVar = {**INSTEAD, "prompt": "is a field of /v1/completions, or a template, which isn't supported"}

    input: Annotated[
        Conversation, PlainValidator(read_input), WithJsonSchema({"anyOf": [{"type": "string"}, _MESSAGES_SCHEMA]})
    ]
    """The user's message, or the conversation so far."""
    instructions: Text | None = None
    """A system message that goes before the input."""
    previous_response_id: Annotated[str | None, BeforeValidator(lambda value: value or None)] = None
    """The response whose conversation this one continues."""
    background: Flag | None = None
    """Answer at once, and generate on even if the client leaves."""

    @property
    def stored(self) -> bool:
        return self.store is not False

    @property
    def ignored(self) -> list[str]:
        return [*super().ignored, *self.input.ignored]

    def options(self) -> dict[str, Any]:
        messages = [{"role": "system", "content": self.instructions}] if self.instructions else []
        return {**super().options(), "messages": [*messages, *self.input.messages]}

    def _names(self) -> dict[str, str]:
        return {"messages": "input"}


_SCALARS: Final = {
    "max_new_tokens": whole,
    "top_k": whole,
    "seed": whole,
    "temperature": number,
    "top_p": number,
    "deadline_s": number,
    "ignore_eos": flag,
}


def _as_it_is(value: Any) -> Any:
    return value


def read_submission(body: Mapping[str, Any]) -> tuple[dict[str, Any], tuple[str, ...]]:
    """A body of `POST /requests` as `submit` takes it, and what of its messages was ignored. Raises Problem 400.

    Its fields are our own, so that one we don't know is a misspelt one, and stays for `submit` to refuse.
    """
    given = {name: value for name, value in body.items() if value is not None}
    read = in_our_range({name: _SCALARS.get(name, _as_it_is)(value) for name, value in given.items()})
    if "messages" not in read:
        return read, ()
    conversation = read_messages(read["messages"])
    return {**read, "messages": list(conversation.messages)}, conversation.ignored


def in_callers_words(error: RequestError, body: Mapping[str, Any]) -> RequestError:
    """The error of a submission with the field as its body has it."""
    ours, _, rest = (error.field or "").partition(".")
    if ours == "stop" and rest and isinstance(texts := body["stop"], list):
        return renamed(error, f"stop.{callers_index(texts, int(rest))}")
    return error
