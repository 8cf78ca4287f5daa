"""Requests that nobody can go on with, because of what somebody wrote into their keys: how their end is written."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from redis.exceptions import ResponseError

from tokenrelay.shared import keys
from tokenrelay.shared.commands import Call
from tokenrelay.shared.connections import is_for_now

if TYPE_CHECKING:
    from tokenrelay.shared.commands import Reply

CODE = "unreadable_request"
_OF_THE_KEYS: Final = ("WRONGTYPE", "user_script")
"""In the errors of commands that met another type, and of all that a script ran into."""


def is_unusable(reply: Reply) -> bool:
    """Whether a command or script was refused for what the keys are (another type, say): nothing else ends a request.

    What the server is in, and what a proxy before it says, passes.
    """
    if not isinstance(reply, ResponseError) or is_for_now(reply):
        return False
    return any(word in str(reply) for word in _OF_THE_KEYS)


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
