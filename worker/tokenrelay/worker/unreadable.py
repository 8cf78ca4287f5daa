"""Requests that nobody can go on with, because of what somebody wrote into their keys: how their end is written."""

from __future__ import annotations

from typing import TYPE_CHECKING

from redis.exceptions import ResponseError

from tokenrelay.shared import keys
from tokenrelay.shared.commands import Call
from tokenrelay.shared.connections import is_for_now

if TYPE_CHECKING:
    from tokenrelay.shared.commands import Reply

CODE = "unreadable_request"


def is_unusable(reply: Reply) -> bool:
    """Whether a script was refused for what the keys are (another type, say), and not for the server's state."""
    return isinstance(reply, ResponseError) and not is_for_now(reply)


def fail_call(request_id: str, message: str) -> Call:
    """End the request as failed (fail.lua), as far as its keys allow."""
    return Call("fail", keys.of_request(request_id), (CODE, message))


def told(reply: Reply) -> str:
    """What is wrong, for the log and the terminal event. `reply`: UNREADABLE with its field, LOST, or an error."""
    if isinstance(reply, Exception):
        return "its keys in Redis are unusable"
    if len(reply) > 1:
        return f"its hash in Redis holds no number in {reply[1].decode()!r}"
    return "its stream in Redis doesn't hold the tokens that its hash counts"
