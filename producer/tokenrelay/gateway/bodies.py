"""The bodies of OpenAI's endpoints, as far as we do them, and how each becomes a request of ours.

A field that we don't do is refused by its name, unless it says what is the case anyhow: `n: 1` asks for nothing. Beside
OpenAI's fields stand a few of ours, which its clients send with `extra_body`.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, JsonValue, model_validator
from pydantic_core import PydanticCustomError

_EMPTY: Final[tuple[Any, ...]] = (None, [], {})
_OFF: Final = (None, False)
_ZERO: Final = (None, 0, 0.0)
UNDONE: Final[dict[str, tuple[Any, ...]]] = {
    "audio": _EMPTY,
    "best_of": (None, 1),
    "context_management": _EMPTY,
    "conversation": _EMPTY,
    "echo": _OFF,
    "frequency_penalty": _ZERO,
    "function_call": (None, "none"),
    "functions": _EMPTY,
    "include": _EMPTY,
    "logit_bias": _EMPTY,
    "logprobs": _OFF,
    "max_tool_calls": (None,),
    "modalities": (None, ["text"]),
    "moderation": _EMPTY,
    "n": (None, 1),
    "parallel_tool_calls": (None, True, False),
    "prediction": _EMPTY,
    "presence_penalty": _ZERO,
    "previous_response_id": (None,),
    "prompt": _EMPTY,
    "prompt_cache_options": _EMPTY,
    "prompt_cache_retention": _EMPTY,
    "reasoning": _EMPTY,
    "reasoning_effort": (None, "none"),
    "response_format": (None, {"type": "text"}),
    "service_tier": (None, "auto", "default"),
    "suffix": (None, ""),
    "text": (None, {}, {"format": {"type": "text"}}),
    "tool_choice": (None, "none", "auto"),
    "tools": _EMPTY,
    "top_logprobs": _ZERO,
    "truncation": (None, "disabled"),
    "verbosity": (None, "medium"),
    "web_search_options": (None,),
}
"""What we don't do → the values that ask for nothing."""
_IGNORED: Final = ("user", "safety_identifier", "prompt_cache_key")
"""They say something of the caller and change no answer."""


class TextPart(BaseModel):
    """A piece of a message."""

    model_config = ConfigDict(extra="forbid", strict=True)

    type: Literal["text", "input_text", "output_text"]
    text: str


class ChatMessage(BaseModel):
    """One message of a conversation."""

    model_config = ConfigDict(extra="forbid", strict=True)

    role: Literal["system", "developer", "user", "assistant"]
    content: str | Annotated[list[TextPart], Field(min_length=1)]

    def plain(self) -> dict[str, str]:
        """As our own schema has it."""
        content = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        return {"role": self.role, "content": content}


class InputMessage(ChatMessage):
    """The Responses API's."""

    type: Literal["message"] = "message"


class Common(BaseModel):
    """What the endpoints share. Bounds are ours to check at submit, in the same words for everybody."""

    model_config = ConfigDict(extra="forbid", strict=True)
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

    model: str
    temperature: float | None = None
    top_p: float | None = None
    stream: bool | None = None
    store: bool | None = None
    metadata: dict[str, JsonValue] | None = None
    seed: int | None = None
    top_k: int | None = Field(default=None, description="Ours: sample among the k likeliest tokens.")
    ignore_eos: bool | None = Field(default=None, description="Ours: go on past the end-of-sequence token.")
    priority: Literal["high", "default", "low"] | None = Field(default=None, description="Ours: which queue.")
    deadline_s: float | None = Field(default=None, description="Ours: seconds after which the request ends.")

    @model_validator(mode="before")
    @classmethod
    def _refuse_undone(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        kept = {name: value for name, value in given.items() if name not in _IGNORED}
        for name, neutral in UNDONE.items():
            if name in kept and name not in cls.model_fields:
                if not any(kept[name] == value and type(kept[name]) is type(value) for value in neutral):
                    raise PydanticCustomError(
                        "unsupported",
                        "isn't supported here; leave it out",
                        {"field": name, "code": "unsupported_parameter"},
                    )
                del kept[name]
        return kept

    def options(self) -> dict[str, Any]:
        """Those of our options that were given."""
        given = {name: getattr(self, name) for name in self.asks}
        return {**{name: value for name, value in given.items() if value is not None}, "metadata": self.metadata or {}}


class StreamOptions(BaseModel):
    """How an answer is streamed."""

    model_config = ConfigDict(extra="forbid", strict=True)

    include_usage: bool | None = None
    include_obfuscation: Literal[False] | None = None


class Streamed(Common):
    """What chat and plain completions share."""

    stop: str | list[str] | None = None
    max_tokens: int | None = None
    stream_options: StreamOptions | None = None

    @property
    def include_usage(self) -> bool:
        return bool(self.stream_options and self.stream_options.include_usage)

    def options(self) -> dict[str, Any]:
        options = super().options()
        if self.stop is not None:
            options["stop"] = [self.stop] if isinstance(self.stop, str) else self.stop
        if self.max_tokens is not None:
            options["max_new_tokens"] = self.max_tokens
        return options


class ChatBody(Streamed):
    """POST /v1/chat/completions."""

    messages: Annotated[list[ChatMessage], Field(min_length=1)]
    max_completion_tokens: int | None = None

    @model_validator(mode="after")
    def _one_limit(self) -> Self:
        if self.max_tokens is not None and self.max_completion_tokens not in (None, self.max_tokens):
            raise PydanticCustomError(
                "two_limits", "differs from max_completion_tokens; give one of them", {"field": "max_tokens"}
            )
        return self

    def options(self) -> dict[str, Any]:
        options = super().options()
        if self.max_completion_tokens is not None:
            options["max_new_tokens"] = self.max_completion_tokens
        return {**options, "messages": [message.plain() for message in self.messages]}


class CompletionBody(Streamed):
    """POST /v1/completions."""

    prompt: str | Annotated[list[str], Field(min_length=1, max_length=1)]

    def options(self) -> dict[str, Any]:
        return {**super().options(), "prompt": self.prompt if isinstance(self.prompt, str) else self.prompt[0]}


class ResponsesStreamOptions(BaseModel):
    """How a response is streamed."""

    model_config = ConfigDict(extra="forbid", strict=True)

    include_obfuscation: Literal[False] | None = None


class ResponseBody(Common):
    """POST /v1/responses."""

    input: str | Annotated[list[InputMessage], Field(min_length=1)]
    instructions: str | None = None
    max_output_tokens: int | None = None
    background: bool | None = None
    stop: str | list[str] | None = Field(default=None, description="Ours: as in chat completions.")
    stream_options: ResponsesStreamOptions | None = None

    @property
    def stored(self) -> bool:
        return self.store is not False

    def options(self) -> dict[str, Any]:
        options = super().options()
        if self.stop is not None:
            options["stop"] = [self.stop] if isinstance(self.stop, str) else self.stop
        if self.max_output_tokens is not None:
            options["max_new_tokens"] = self.max_output_tokens
        messages = [{"role": "system", "content": self.instructions}] if self.instructions else []
        if isinstance(self.input, str):
            messages.append({"role": "user", "content": self.input})
        else:
            messages += [message.plain() for message in self.input]
        return {**options, "messages": messages}
