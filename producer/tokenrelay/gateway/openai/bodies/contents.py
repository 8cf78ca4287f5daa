"""Parsing of prompts and messages: accepts answers of any OpenAI-compatible server, and reduces content to plain text.

Fields without effect are ignored, and reported if they aren't empty. Unsupported features that would change the answer
are refused, with the caller's path: `messages.1.content.0`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, NoReturn

from tokenrelay.gateway.http.problems import refuse
from tokenrelay.gateway.openai.bodies.coercion import whole
from tokenrelay.gateway.openai.bodies.no_op_values import is_empty
from tokenrelay.gateway.openai.tools.calls import read_call_item, read_text, read_tool_calls
from tokenrelay.shared.request_fields import MAX_CHOICES

if TYPE_CHECKING:
    from collections.abc import Iterable

Prompts = tuple[str | list[Any], ...]
"""Texts, and lists of token IDs, whose bounds submit checks."""
_TOKEN_IDS: Final = {"type": "array", "items": {"type": "integer"}, "minItems": 1}
PROMPTS_SCHEMA: Final[dict[str, Any]] = {
    "anyOf": [
        {"type": "string"},
        _TOKEN_IDS,
        {"type": "array", "items": {"anyOf": [{"type": "string"}, _TOKEN_IDS]}, "minItems": 1},
    ]
}
ROLES: Final = ("system", "developer", "user", "assistant", "tool")
_TEXTS: Final = {"text": "text", "input_text": "text", "output_text": "text", "refusal": "refusal"}
"""Part type → the field that holds its text."""
_THOUGHTS: Final = ("reasoning", "reasoning_text", "thinking", "redacted_thinking", "summary_text")
"""Reasoning of earlier answers: dropped, as chat templates do."""
_KINDS: Final = {
    "image": "images",
    "image_url": "images",
    "image_file": "images",
    "input_image": "images",
    "audio": "audio",
    "audio_url": "audio",
    "input_audio": "audio",
    "output_audio": "audio",
    "video": "videos",
    "video_url": "videos",
    "input_video": "videos",
    "document": "files",
    "file": "files",
    "input_file": "files",
    "custom_tool_call": "tool calls",
    "custom_tool_call_output": "tool calls",
    "tool_call": "tool calls",
    "tool_result": "tool calls",
    "tool_use": "tool calls",
}
_UNSUPPORTED_FIELDS: Final = {
    "function_call": "function_call, which tool_calls replaced,",
    "audio": "audio",
    "images": "images",
    "prefix": "continuing a message",
    "partial": "continuing a message",
}
"""Unsupported message fields → the feature they ask for."""
_REASONING: Final = ("reasoning", "reasoning_content")
"""What servers call the reasoning of an answer."""
_OWN: Final = frozenset({"role", "content", "type", "id", "status", "phase", *_UNSUPPORTED_FIELDS})


@dataclass(frozen=True, slots=True)
class Reference:
    """A reference to an item of an earlier response; `number` is the index of the message that it stands for."""

    number: int
    path: str
    item_id: str


@dataclass(frozen=True, slots=True)
class Conversation:
    """Messages in our schema, the paths of ignored fields, and the references still to be resolved."""

    messages: tuple[dict[str, Any], ...]
    ignored: tuple[str, ...]
    references: tuple[Reference, ...] = ()


def read_messages(given: object, path: str = "messages", *, items: bool = False) -> Conversation:
    """Parse the messages at `path` of a body. `items`: the Responses API's item types are allowed.

    Raises Problem 400.
    """
    if not isinstance(given, list):
        refuse(path, "must be a list of messages")
    if not given:
        refuse(path, "is empty; give at least one message")
    reader = _Reader(items=items)
    for number, message in enumerate(given):
        reader.read(message, f"{path}.{number}")
    return Conversation(tuple(reader.messages), tuple(reader.ignored), tuple(reader.references))


def read_input(given: object) -> Conversation:
    """Parse the Responses API's `input`: text, or a list of items. Raises Problem 400."""
    if isinstance(given, str):
        return Conversation(({"role": "user", "content": read_text(given, "input")},), ())
    if not isinstance(given, list):
        refuse("input", "must be text or a list of messages")
    return read_messages(given, "input", items=True)


def read_prompts(given: Any) -> Prompts:
    """Completions' `prompt`: a text, token IDs, or a list of either. Raises Problem 400."""
    if isinstance(given, list) and given and all(isinstance(each, int | float) for each in given):
        given = [given]
    prompts = given if isinstance(given, list) else [given]
    if not prompts or not all(isinstance(each, str | list) for each in prompts):
        refuse("prompt", "must be text, a list of token IDs, or a list of texts and of lists of token IDs")
    if len(prompts) > MAX_CHOICES:  # here, and not at submit: a body has room for half a million
        refuse("prompt", f"{len(prompts)} prompts; at most {MAX_CHOICES} in all")
    return tuple(each if isinstance(each, str) else [whole(token_id) for token_id in each] for each in prompts)


def prompt_option(prompt: str | list[Any]) -> dict[str, Any]:
    """The request option of one prompt."""
    return {"prompt": prompt} if isinstance(prompt, str) else {"prompt_token_ids": prompt}


@dataclass(slots=True)
class _Reader:
    """Parses messages one by one and collects the paths of ignored fields."""

    items: bool
    messages: list[dict[str, Any]] = field(default_factory=list)
    ignored: list[str] = field(default_factory=list)
    references: list[Reference] = field(default_factory=list)

    def read(self, given: object, path: str) -> None:
        """Parse the next message or item."""
        if not isinstance(given, dict):
            refuse(path, "must be an object with role and content")
        kind = given.get("type") or "message"
        if self.items and kind == "reasoning":
            self.ignored.append(path)
        elif self.items and (kind == "item_reference" or _non_null(given) == {"id"}):
            item_id = read_text(given.get("id"), f"{path}.id")
            self.references.append(Reference(len(self.messages), path, item_id))
            self.messages.append({"role": "assistant", "content": ""})
        elif self.items and kind == "function_call":
            self._calling()["tool_calls"].append(read_call_item(given, path))
        elif self.items and kind == "function_call_output":
            self._output(given, path)
        elif self.items and kind != "message":
            _refuse_kind(path, kind, "items")
        else:
            self.messages.append(self._message(given, path))

    def _calling(self) -> dict[str, Any]:
        """The assistant's message that a call item belongs to: the last one, if it's the assistant's."""
        if not self.messages or self.messages[-1]["role"] != "assistant":
            self.messages.append({"role": "assistant", "content": None})
        self.messages[-1].setdefault("tool_calls", [])
        return self.messages[-1]

    def _output(self, given: dict[str, Any], path: str) -> None:
        output, path_of = given.get("output"), f"{path}.output"
        text = self._joined(output, "tool", path_of) if isinstance(output, list) else read_text(output, path_of)
        call_id = read_text(given.get("call_id"), f"{path}.call_id")
        self.messages.append({"role": "tool", "content": text, "tool_call_id": call_id})

    def _message(self, given: dict[str, Any], path: str) -> dict[str, Any]:
        role = _role(given, path)
        for name, what in _UNSUPPORTED_FIELDS.items():
            if not is_empty(given.get(name)) and given[name] is not False:
                refuse(f"{path}.{name}", f"{what} {_are(what)} supported", "unsupported_parameter")
        content, used = self._content(given, role, path)
        extra, others = _extra(given, role, path)
        self._ignore(given, path, {*_OWN, used, *others})
        if not content and "tool_calls" in extra:
            return {"role": role, "content": None, **extra}
        return {"role": role, "content": content, **extra}

    def _content(self, given: dict[str, Any], role: str, path: str) -> tuple[str, str]:
        """The message's text, and the name of its field."""
        content, refusal = given.get("content"), given.get("refusal")
        if role == "assistant" and is_empty(content):
            return (read_text(refusal, f"{path}.refusal"), "refusal") if isinstance(refusal, str) else ("", "content")
        path += ".content"
        if content is None:
            refuse(path, "is null; give some text" if "content" in given else "is missing")
        if isinstance(content, list):
            return self._joined(content, role, path), "content"
        if not isinstance(content, str):
            refuse(path, "must be text or a list of text parts")
        return read_text(content, path), "content"

    def _joined(self, parts: list[object], role: str, path: str) -> str:
        texts = [self._part(part, role, f"{path}.{number}") for number, part in enumerate(parts)]
        return "\n".join(text for text in texts if text is not None)

    def _part(self, given: object, role: str, path: str) -> str | None:
        """The part's text; None for an ignored part."""
        if isinstance(given, str):
            return read_text(given, path)
        if not isinstance(given, dict):
            refuse(path, "must be a text part: an object with type and text")
        kind = given.get("type") or ("text" if "text" in given else None)
        if role == "assistant" and kind in _THOUGHTS:
            self.ignored.append(path)
            return None
        if not isinstance(kind, str) or kind not in _TEXTS:
            _refuse_kind(path, kind, "parts")
        name = _TEXTS[kind]
        self._ignore(given, path, {"type", name, "logprobs"})
        return read_text(given.get(name), f"{path}.{name}")

    def _ignore(self, given: dict[str, Any], path: str, known: Iterable[str]) -> None:
        self.ignored += [f"{path}.{name}" for name, value in given.items() if name not in known and not is_empty(value)]


def _non_null(given: dict[str, Any]) -> set[str]:
    """Names of the fields that aren't null: the openai package's types write absent fields as null."""
    return {name for name, value in given.items() if value is not None}


def _role(given: dict[str, Any], path: str) -> str:
    role = given.get("role")
    if role == "function":
        refuse(f"{path}.role", "the role tool replaced it: give tool_call_id beside it", "unsupported_parameter")
    if role not in ROLES:
        refuse(f"{path}.role", f"must be one of {', '.join(ROLES)}")
    return str(role)


def _extra(given: dict[str, Any], role: str, path: str) -> tuple[dict[str, Any], tuple[str, ...]]:
    """A message's further fields in our schema, and the names that they have in the body."""
    extra: dict[str, Any] = {}
    used = [name for name in ("name", "tool_call_id") if isinstance(given.get(name), str) and given[name]]
    for name in used:
        extra[name] = read_text(given[name], f"{path}.{name}")
    if role == "assistant" and not is_empty(given.get("tool_calls")):
        extra["tool_calls"] = read_tool_calls(given["tool_calls"], f"{path}.tool_calls")
    elif role != "assistant" and not is_empty(given.get("tool_calls")):
        refuse(f"{path}.tool_calls", "is a field of messages with role assistant")
    reasoning = [name for name in _REASONING if isinstance(given.get(name), str) and given[name]]
    if role == "assistant" and reasoning:
        extra["reasoning"] = read_text(given[reasoning[0]], f"{path}.{reasoning[0]}")
        used += [name for name in reasoning if given[name] == given[reasoning[0]]]
    return extra, (*used, "tool_calls")


def _refuse_kind(path: str, kind: object, what: str) -> NoReturn:
    """Refuse a part or an item, naming the unsupported feature if its type is known."""
    if not isinstance(kind, str):
        refuse(f"{path}.type", "is missing" if kind is None else "must be text")
    name = _KINDS.get(kind, f"{what} of type {ascii(kind)[:60]}")
    refuse(path, f"{name} {_are(name)} supported", "unsupported_parameter")


def _are(what: str) -> str:
    return "isn't" if what in ("audio", "continuing a message") else "aren't"
