"""A request's state at one moment, for its readers: unreadable, overdue, ended before what was read, leased.

Pure: what was read from the token plane and its server's time in, a value or an error out. Readers, gateways, the
command line and maintenance all judge by these.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NoReturn

from tokenrelay.shared.errors import ProtocolError, StreamChanged, StreamExpired, unreadable
from tokenrelay.shared.store.record import Field
from tokenrelay.shared.wire.entries import State

if TYPE_CHECKING:
    from tokenrelay.shared.store.record import RequestRecord
    from tokenrelay.shared.wire.entries import EntryId

READER_GRACE_S: Final = 2.0
"""How long past the deadline a reader that can't write waits for a process that can."""
OWNER_GRACE_S: Final = 1.0
"""How long past the deadline the worker that owns a request may take to end it itself, with the text it held back."""

FIELDS: Final = (Field.STATE, Field.DEADLINE_US, Field.NEXT, Field.FENCE)
"""Of the request's hash: what RequestView is made of."""


@dataclass(frozen=True, slots=True)
class RequestView:
    """A request's hash at one moment. Times are the token plane's, microseconds since 1970."""

    request_id: str
    state: State
    tokens: int
    deadline_us: int
    owned: bool
    now_us: int

    @classmethod
    def of(cls, request_id: str, record: RequestRecord, now_us: int) -> RequestView:
        """`record`: at least FIELDS, of a hash that exists. Raises ProtocolError for a value that can't be read, such
        as a later version's state."""
        try:
            return cls(request_id, record.state, record.tokens, record.deadline_us, record.owned, now_us)
        except ProtocolError as error:
            raise unreadable(request_id, error) from None

    def overdue_in_s(self, *, may_expire: bool) -> float:
        """Seconds until a reader counts the request as overdue. `may_expire`: it can write, and ends it then."""
        grace_s = (OWNER_GRACE_S if self.owned else 0.0) if may_expire else READER_GRACE_S
        return (self.deadline_us - self.now_us) / 1e6 + grace_s

    @property
    def overdue_state(self) -> State:
        """How a deadline ends the request: it cuts an answer short, or finds none."""
        return State.INCOMPLETE if self.tokens else State.EXPIRED

    @property
    def shown_state(self) -> State:
        """The state as a reader that can't write reports it: an overdue request counts as ended."""
        overdue = not self.state.terminal and self.overdue_in_s(may_expire=False) < 0
        return self.overdue_state if overdue else self.state

    def check_read(self, last: EntryId) -> None:
        """Raises StreamChanged where the request has ended with fewer tokens than were read."""
        if self.state.terminal and self.tokens < last.token:
            self.raise_changed(last)

    def raise_changed(self, last: EntryId) -> NoReturn:
        """Raise StreamChanged: the request ended before `last`, which was read."""
        message = f"request {self.request_id} ended before {last}, which was already read: Redis lost writes"
        raise StreamChanged(message, request_id=self.request_id)


def check_stream(request_id: str, *, exists: bool) -> None:
    """Raises StreamExpired where the stream, or its hash, doesn't exist."""
    if not exists:
        message = f"the stream of request {request_id} is gone: its retention is over, or it was deleted"
        raise StreamExpired(message, request_id=request_id)


def lease_left_s(state: State, lease_us: int, now_us: int, *, owned: bool) -> float:
    """How long the owner's lease holds; 0 where the request has no owner, or its lease has run out."""
    return max((lease_us - now_us) / 1e6, 0.0) if owned and not state.terminal else 0.0
