"""How the end of a request is written whose keys hold what no worker can continue from."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from tokenrelay.shared.redis.calls import Unusable
from tokenrelay.shared.store import requests
from tokenrelay.shared.store.replies import Lost, Unreadable

if TYPE_CHECKING:
    from tokenrelay.shared.redis.calls import ScriptCall
    from tokenrelay.shared.store.replies import FailReply

CODE: Final = "unreadable_request"


def fail(request_id: str, detail: str) -> ScriptCall[FailReply]:
    """End the request as failed, as far as its keys allow."""
    return requests.fail(request_id, CODE, detail)


def describe(reply: Unreadable | Lost | Unusable) -> str:
    """What is wrong, for the log and the terminal event."""
    match reply:
        case Unusable():
            return "its keys in Redis are unusable"
        case Unreadable(field):
            return f"its hash in Redis holds no number in {field!r}"
        case Lost():
            return "its stream in Redis doesn't hold the tokens that its hash counts"
