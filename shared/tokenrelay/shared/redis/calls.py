"""A script's call together with how its reply is read: every builder gives one, and the reply is one of its types."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Generic, NoReturn, TypeGuard, TypeVar, get_type_hints

from redis.exceptions import ResponseError

from tokenrelay.shared.errors import ProtocolError
from tokenrelay.shared.redis.commands import Call
from tokenrelay.shared.redis.connections import is_for_now
from tokenrelay.shared.wire.entries import State, parse_state, text

if TYPE_CHECKING:
    from collections.abc import Callable

    from tokenrelay.shared.redis.commands import Reply

T = TypeVar("T")
_OF_THE_KEYS: Final = ("WRONGTYPE", "user_script")
"""In the errors of commands that met another type, and of all that a script ran into."""


def _unread(reply: Reply) -> NoReturn:
    raise TypeError(f"a call without a reader got {reply!a:.80}")


@dataclass(frozen=True, slots=True)
class Unusable:
    """The keys aren't what a script makes of them (another type, say), so that no script can work with them."""

    error: ResponseError


@dataclass(slots=True)
class ScriptCall(Call, Generic[T]):
    """A call whose replies are T, where the keys are usable. `read`: what makes a T of one."""

    read: Callable[[Any], T] = field(default=_unread, compare=False, repr=False)

    def parse(self, reply: Reply) -> T | Unusable:
        """The reply. Raises the error that stands in its place, and ProtocolError for one that can't be read, such as
        a newer version's script may give."""
        if isinstance(reply, Exception):
            if is_unusable(reply):
                return Unusable(reply)
            raise reply
        try:
            return self.read(reply)
        except ProtocolError:
            raise
        except Exception as error:
            raise ProtocolError(f"script {self.script.name} gave {reply!a:.80}, which can't be read") from error

    def value(self, reply: Reply) -> T:
        """The reply. Raises as `parse`, and the error of unusable keys."""
        found = self.parse(reply)
        if isinstance(found, Unusable):
            raise found.error
        return found


def by_word(**makers: Callable[..., T]) -> Callable[[Any], T]:
    """A reply's reader, by its first word: a type whose fields follow the word in their order, or a function of the
    whole reply."""
    made: dict[str | bytes, Callable[[Any], T]] = {}
    for word, make in makers.items():
        read = _by_fields(make) if isinstance(make, type) else make
        made[word] = made[word.encode()] = read  # as bytes from clients that don't decode: the worker's
    return lambda reply: made[reply[0]](reply)


def _by_fields(kind: Callable[..., T]) -> Callable[[Any], T]:
    """A reader of replies whose elements behind the word are the fields of a type. Further elements are ignored."""
    readers = [_READERS[hint] for hint in get_type_hints(kind).values()]
    return lambda reply: kind(*(read(value) for read, value in zip(readers, reply[1:], strict=False)))


def whole_number(value: Reply) -> int:
    """The number in a reply. Raises ProtocolError where there is none."""
    if not isinstance(value, int):
        raise ProtocolError(f"{value!a:.80} is no number")
    return value


_READERS: Final[dict[object, Callable[[Any], object]]] = {
    int: whole_number,
    str: text,
    bool: bool,
    State: parse_state,
}


def is_unusable(reply: Reply) -> TypeGuard[ResponseError]:
    """Whether a command or script was refused for what the keys are (another type, say): nothing else ends a request.

    The server's state, and errors of a proxy in front of it, are transient.
    """
    if not isinstance(reply, ResponseError) or is_for_now(reply):
        return False
    return any(word in str(reply) for word in _OF_THE_KEYS)
