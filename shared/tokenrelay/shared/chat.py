"""The messages of a chat: their types, and the rules that bind several of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, NotRequired, cast

from pydantic import ConfigDict, Field
from typing_extensions import TypedDict

from tokenrelay.shared.errors import RequestError
from tokenrelay.shared.request_fields import Text

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

MAX_TOOLS: Final = 128
"""Of a request, and of the calls of one message."""
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
