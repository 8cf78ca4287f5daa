"""Logic that talks to Redis without doing I/O: generators that yield what to do and are sent the replies.

A `Steps[T]` is a generator that ends with a T. `drivers` runs it, on threads or on asyncio. An error that keeps a whole
round trip from being answered is thrown into the generator, which may try again; one that it lets through comes out of
the driver as RedisUnusable, with advice.
"""

from __future__ import annotations

from collections.abc import Generator, Hashable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, TypeVar

from redis.exceptions import AuthenticationError, ConnectionError, RedisError, TimeoutError

from tokenrelay.producer._core.waits import Wait
from tokenrelay.shared.redis.commands import Batch, Reply

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tokenrelay.shared.redis.calls import ScriptCall

Result = TypeVar("Result")

LOST: Final = (ConnectionError, TimeoutError)
"""What redis-py raises for a round trip without a reply: the server may have run it or not."""
_RETRY_AFTER_S: Final = 0.05


@dataclass(frozen=True, slots=True)
class RoundTrip:
    """One idempotent round trip: a driver may send it twice. `atomic` wraps it in MULTI/EXEC."""

    batch: Batch
    atomic: bool = False


@dataclass(frozen=True, slots=True)
class Pause:
    """A pause before a retry."""

    seconds: float


@dataclass(frozen=True, slots=True)
class SingleFlight:
    """Steps that concurrent callers on asyncio share: those that come while steps with the same key run wait for their
    result. On threads each runs its own. The reply is a list with the result alone."""

    key: Hashable
    steps: Steps[Any]


Answered = list[Reply] | RedisError | None
Item = RoundTrip | Wait | Pause | SingleFlight
Steps = Generator[Item, list[Reply], Result]


def ask(batch: Batch) -> Steps[list[Reply]]:
    """The replies to the batch. Raises the first error among them."""
    return raise_on_error((yield RoundTrip(batch)))


def raise_on_error(replies: Sequence[Reply]) -> list[Reply]:
    """The replies. Raises the first error among them."""
    return [check_reply(reply) for reply in replies]


def check_reply(reply: Reply) -> Reply:
    """The reply. Raises it if it is an error."""
    if isinstance(reply, Exception):
        raise reply
    return reply


def is_wrong_type(reply: object) -> bool:
    """Whether it's the error of a key that holds another type."""
    return isinstance(reply, RedisError) and "WRONGTYPE" in str(reply)


def ask_script(call: ScriptCall[Result]) -> Steps[Result]:
    """The reply to the call. Raises the error in its place, ProtocolError."""
    (reply,) = yield RoundTrip([call])
    return call.value(reply)


def repeat(batch: Batch) -> Steps[list[Reply]]:
    """The replies to the batch, errors in place. Retries once after a lost connection."""
    try:
        return (yield RoundTrip(batch))
    except AuthenticationError:
        raise
    except LOST:
        yield Pause(_RETRY_AFTER_S)
        return (yield RoundTrip(batch))


def repeat_script(call: ScriptCall[Result]) -> Steps[Result]:
    """As `ask_script`. Retries once after a lost connection."""
    (reply,) = yield from repeat([call])
    return call.value(reply)
