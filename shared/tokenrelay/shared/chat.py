"""The messages of a chat and the tools that it offers: their types, and the rules that bind several of them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, NotRequired, cast

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, ValidationInfo
from pydantic_core import PydanticCustomError
from typing_extensions import TypedDict

from tokenrelay.shared.errors import RequestError
from tokenrelay.shared.request_fields import Text
from tokenrelay.shared.response_format import STORED, check_schema, schema_text

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

MAX_TOOLS: Final = 128
"""Of a request, and of the calls of one message."""
MAX_TOOLS_BYTES: Final = 262_144
WORDS: Final = ("auto", "none", "required")
"""Choices of tools that name none."""
PROMPTS: Final = ("prompt", "messages", "prompt_token_ids")
"""The fields that a prompt may be given as."""
_VERSION_1: Final = {"role", "content"}
_TEXTS: Final = ("content", "name", "reasoning", "refusal", "tool_call_id")
ShortText = Annotated[Text, Field(min_length=1, max_length=256)]


class Call(TypedDict):
    """A call of a tool, in a message of the assistant's."""

    __pydantic_config__ = ConfigDict(extra="forbid", strict=True)  # type: ignore[misc]

    id: ShortText
    name: ShortText
    arguments: Text
    """JSON; other text is shown to the model as it is."""


class Message(TypedDict):
    """One message of a chat."""

    __pydantic_config__ = ConfigDict(extra="forbid", strict=True)  # type: ignore[misc]

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Text | None
    name: NotRequired[ShortText]
    tool_calls: NotRequired[Annotated[list[Call], Field(min_length=1, max_length=MAX_TOOLS)]]
    tool_call_id: NotRequired[ShortText]
    refusal: NotRequired[Text]
    reasoning: NotRequired[Text]


def _flat(value: Any) -> Any:
    """A tool in any of OpenAI's shapes as ours: `{"type": "function", "function": {…}}`, or the same without the inner
    object. Raises PydanticCustomError."""
    if not isinstance(value, dict):
        return value
    kind, function = value.get("type", "function"), value.get("function")
    if kind != "function":
        raise PydanticCustomError("kind", "is of type {kind}; only functions are supported", {"kind": ascii(kind)[:60]})
    flat = dict(function) if isinstance(function, dict) else {key: each for key, each in value.items() if key != "type"}
    if isinstance(flat.get("parameters"), dict):
        flat["parameters"] = schema_text(flat["parameters"])
    return {key: each for key, each in flat.items() if each is not None}


def _parameters(value: str, info: ValidationInfo) -> str:
    if info.context is not STORED:
        check_schema(value)
        schema = json.loads(value)
        if isinstance(schema, dict) and schema.get("type", "object") != "object":
            raise PydanticCustomError("object", "must be the schema of an object: a call's arguments are one")
    return value


def _distinct(value: list[Any]) -> list[Any]:
    """Raises PydanticCustomError for a name that two tools have, and for too much text."""
    names = [tool["name"] for tool in value]
    if twice := next((name for number, name in enumerate(names) if name in names[:number]), None):
        raise PydanticCustomError("twice", "has the name {name} twice", {"name": twice})
    size = sum(len(text.encode()) for tool in value for text in tool.values() if isinstance(text, str))
    if size > MAX_TOOLS_BYTES:
        raise PydanticCustomError(
            "too_large", "has {size} bytes; at most {le} are allowed", {"size": size, "le": MAX_TOOLS_BYTES}
        )
    return value


def _named(value: Any) -> Any:
    """OpenAI's `{"type": "function", "function": {"name"}}` as our `{"name"}`. Raises PydanticCustomError."""
    if isinstance(value, dict):
        function = value.get("function")
        value = dict(function) if isinstance(function, dict) else {"name": value.get("name")}
    if value in WORDS or (isinstance(value, dict) and isinstance(value.get("name"), str)):
        return value
    raise PydanticCustomError(
        "choice", "must be {words}, or an object with the name of a tool", {"words": ", ".join(WORDS)}
    )


class Tool(TypedDict):
    """A function that the model may call."""

    __pydantic_config__ = ConfigDict(extra="forbid", strict=True)  # type: ignore[misc]

    name: Annotated[str, Field(pattern="^[A-Za-z0-9_-]{1,64}$")]
    description: NotRequired[Text]
    parameters: NotRequired[Annotated[Text, AfterValidator(_parameters)]]
    """The JSON schema of its arguments, as JSON text; it may be given as an object."""
    strict: NotRequired[bool]
    """Whether its arguments always fit the schema."""


class Choice(TypedDict):
    """The one function that the answer calls."""

    __pydantic_config__ = ConfigDict(extra="forbid", strict=True)  # type: ignore[misc]

    name: Text


if TYPE_CHECKING:
    Tools = Sequence[Tool | dict[str, Any]]
    ToolChoice = Literal["auto", "none", "required"] | Choice | dict[str, Any]
else:
    Tools = Annotated[
        list[Annotated[Tool, BeforeValidator(_flat)]], Field(max_length=MAX_TOOLS), AfterValidator(_distinct)
    ]
    ToolChoice = Annotated[Literal["auto", "none", "required"] | Choice, BeforeValidator(_named)]


def of_version_1(messages: Iterable[Mapping[str, Any]] | None) -> bool:
    """Whether a worker of wire version 1 can read them."""
    return all(
        message.keys() == _VERSION_1 and message["role"] != "tool" and message["content"] is not None
        for message in messages or ()
    )


def check_prompt(request: Mapping[str, Any], max_chars: int) -> None:
    """Raises RequestError where there isn't exactly one prompt, or where it is blank or too long."""
    given = [name for name in PROMPTS if request.get(name) is not None]
    if not given:
        raise RequestError("prompt, messages: neither given; give one of them, or prompt_token_ids", field="prompt")
    if given[1:]:
        several = "all" if given[2:] else "both"
        raise RequestError(f"{', '.join(given)}: {several} given; give exactly one of them", field="prompt")
    messages, token_ids = request.get("messages") or [], request.get("prompt_token_ids")
    _check_messages(messages)
    size = len(token_ids) if token_ids else _chars(messages) or len(request.get("prompt") or "")
    if size > max_chars:
        # In the code and words of a prompt beyond the model's context, by which clients tell that they must shorten it.
        unit = "token IDs" if token_ids else "characters"
        raise RequestError(
            f"{given[0]}: the prompt is too long: {size} {unit}, at most {max_chars} are allowed; this model's maximum "
            f"context length is {max_chars} {unit} here (TOKENRELAY_MAX_PROMPT_CHARS)",
            field=given[0],
            limit=max_chars,
            code="prompt_too_long",
        )


def check_template_options(request: Mapping[str, Any]) -> None:
    """Raises RequestError for options of a chat template without a chat, and for a final message that can't be
    continued."""
    messages = request.get("messages")
    for name, default in (("continue_final_message", False), ("chat_template_kwargs", "{}")):
        if messages is None and request.get(name, default) != default:
            raise RequestError(f"{name}: needs messages, which the chat template renders", field=name)
    if request.get("continue_final_message") and messages:
        last = messages[-1]
        if last["role"] != "assistant" or not (last["content"] or "").strip():
            message = "the last message must be the assistant's, with the text that the answer continues"
            raise RequestError(f"continue_final_message: {message}", field="continue_final_message")


def check_tools(request: Mapping[str, Any]) -> None:
    """Raises RequestError for tools that can't be offered here, and for a choice of none of them."""
    tools, choice = request.get("tools") or [], request.get("tool_choice", "auto")
    if tools and request.get("messages") is None:
        raise RequestError("tools: needs messages, which the chat template renders", field="tools")
    if not tools and choice not in ("auto", "none"):
        raise RequestError("tool_choice: needs tools to choose from", field="tool_choice")
    if isinstance(choice, dict) and choice["name"] not in [tool["name"] for tool in tools]:
        raise RequestError(f"tool_choice: no tool has the name {choice['name']!a:.80}", field="tool_choice")
    if not tools or choice == "none":
        return
    for name in ("response_format", "continue_final_message"):
        if request.get(name):
            message = f"{name}: not beside tools that the answer may call; give tool_choice none, or leave one out"
            raise RequestError(message, field=name)
    if request.get("ignore_eos"):
        raise RequestError("ignore_eos: not beside tools, whose calls end the answer", field="ignore_eos")


def _check_messages(messages: Sequence[Message]) -> None:
    """Raises RequestError naming the message that has no place where it stands."""
    calls: set[str] = set()
    for number, message in enumerate(messages):
        _check_fields(f"messages.{number}", message)
        calls |= {call["id"] for call in message.get("tool_calls", ())}
        answered = message.get("tool_call_id")
        if answered is not None and answered not in calls:
            _refuse(f"messages.{number}.tool_call_id", f"no earlier message has the call {answered!a:.80}")
    # One blank message among others is fine: chat clients send an empty system message, for one.
    if messages and not any(message["content"] and message["content"].strip() for message in messages) and not calls:
        _refuse("messages", "every content is empty or blank; give some text")


def _check_fields(path: str, message: Message) -> None:
    role = message["role"]
    if message["content"] is None and not ("tool_calls" in message or "refusal" in message):
        _refuse(f"{path}.content", "is null; give some text")
    for name in ("tool_calls", "refusal", "reasoning"):
        if name in message and role != "assistant":
            _refuse(f"{path}.{name}", "is a field of messages with role assistant")
    if role == "tool" and "tool_call_id" not in message:
        _refuse(f"{path}.tool_call_id", "is missing: give the ID of the call that this message answers")
    if role != "tool" and "tool_call_id" in message:
        _refuse(f"{path}.tool_call_id", "is a field of messages with role tool")


def _chars(messages: Iterable[Message]) -> int:
    """How much text they hold."""
    total = 0
    for message in messages:
        total += sum(len(cast("Mapping[str, str | None]", message).get(name) or "") for name in _TEXTS)
        total += sum(
            len(text) for call in message.get("tool_calls", ()) for text in cast("Mapping[str, str]", call).values()
        )
    return total


def _refuse(path: str, why: str) -> None:
    raise RequestError(f"{path}: {why}", field=path)
