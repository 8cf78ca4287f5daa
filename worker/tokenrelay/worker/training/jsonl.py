"""A user's conversations, read from a JSONL file and split.

Owns the file's format and its errors. Knows nothing of tokens.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Literal
from zlib import crc32

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tokenrelay.worker.training.conversation import Conversation, Corpus, Turn
from tokenrelay.worker.training.settings import TrainingDataError

if TYPE_CHECKING:
    from pathlib import Path

RIGHT_LINE = (
    'a line is {"prompt": "…", "answer": "…"} or '
    '{"messages": [{"role": "user", "content": "…"}, {"role": "assistant", "content": "…"}]}, '
    "where a system message may come first and then user and assistant take turns"
)
_HELD_OUT_SHARE = 10


class _Message(BaseModel):
    model_config = ConfigDict(extra="forbid")
    role: Literal["system", "user", "assistant"]
    content: str = Field(min_length=1)


class _Chat(BaseModel):
    model_config = ConfigDict(extra="forbid")
    messages: list[_Message]


class _Pair(BaseModel):
    model_config = ConfigDict(extra="forbid")
    prompt: str = Field(min_length=1)
    answer: str = Field(min_length=1)


def read_conversations(path: Path) -> tuple[Conversation, ...]:
    """The conversations of `path`, one a line; empty lines are skipped.

    Raises TrainingDataError with file and line where one can't be read.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise TrainingDataError(f"{path} can't be read as UTF-8 text: {error}") from error
    found = tuple(
        _conversation(line, f"{path}, line {number}") for number, line in enumerate(lines, start=1) if line.strip()
    )
    if not found:
        raise TrainingDataError(f"{path} holds no conversation; {RIGHT_LINE}")
    return found


def split(conversations: tuple[Conversation, ...], where: str) -> Corpus:
    """Hold out about a tenth of the opening questions, at least one, with every conversation that opens with them.

    The same conversations are split the same way each time. Raises TrainingDataError if all open with one question.
    """
    openings = sorted({conversation.questions[0] for conversation in conversations}, key=_order)
    if len(openings) < 2:
        raise TrainingDataError(f"{where} needs conversations with two different questions or more: one is held out")
    held_out = set(openings[: max(1, len(openings) // _HELD_OUT_SHARE)])
    return Corpus(
        train=tuple(c for c in conversations if c.questions[0] not in held_out),
        held_out=tuple(c for c in conversations if c.questions[0] in held_out),
    )


def _order(question: str) -> tuple[int, str]:
    return crc32(question.encode()), question


def _conversation(line: str, source: str) -> Conversation:
    try:
        value = json.loads(line)
    except json.JSONDecodeError as error:
        raise TrainingDataError(f"{source}: not JSON ({error}); {RIGHT_LINE}") from error
    try:
        if isinstance(value, dict) and "messages" in value:
            return _from_messages(_Chat.model_validate(value).messages, source)
        pair = _Pair.model_validate(value)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"]) or "the line"
        raise TrainingDataError(f"{source}: {field}: {first['msg']}; {RIGHT_LINE}") from error
    return Conversation((Turn(pair.prompt, pair.answer),), source=source)


def _from_messages(messages: list[_Message], source: str) -> Conversation:
    system = messages[0].content if messages and messages[0].role == "system" else None
    rest = messages[1:] if system is not None else messages
    roles = [message.role for message in rest]
    if not roles or roles != ["user", "assistant"] * (len(roles) // 2):
        raise TrainingDataError(f"{source}: the roles are {', '.join(roles) or 'missing'}; {RIGHT_LINE}")
    turns = tuple(Turn(user.content, assistant.content) for user, assistant in zip(rest[::2], rest[1::2], strict=True))
    return Conversation(turns, system, source)
