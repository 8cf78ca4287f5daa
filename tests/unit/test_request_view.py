"""One rulebook: what every reader, gateway, command and worker makes of a request's hash at one moment."""

from __future__ import annotations

import pytest

from tests.streams import REQUEST_ID
from tokenrelay.shared.errors import ProtocolError, StreamChanged, StreamExpired
from tokenrelay.shared.store import request_view, requests
from tokenrelay.shared.store.record import RequestRecord
from tokenrelay.shared.store.request_view import RequestView
from tokenrelay.shared.wire.entries import EntryId, State

NOW_US = 1_000_000_000
S = 1_000_000


def view(state: str = "in_progress", *, left_s: float = 0.0, tokens: int = 3, fence: str = "1:x") -> RequestView:
    reply = (state.encode(), str(NOW_US + int(left_s * S)).encode(), str(tokens + 1).encode(), fence.encode())
    return RequestView.of(REQUEST_ID, RequestRecord(request_view.FIELDS, reply), NOW_US)


@pytest.mark.parametrize(
    ("fence", "may_expire", "grace_s"),
    [
        ("1:x", True, request_view.OWNER_GRACE_S),
        ("", True, 0.0),
        ("1:x", False, request_view.READER_GRACE_S),
        ("", False, 2.0),
    ],
)
def test_a_request_is_overdue_a_grace_past_its_deadline(fence: str, may_expire: bool, grace_s: float) -> None:
    """The owner gets time to end it with the text it held back; who can't write waits for who can."""
    assert view(left_s=5, fence=fence).overdue_in_s(may_expire=may_expire) == pytest.approx(5 + grace_s)
    assert view(left_s=-5, fence=fence).overdue_in_s(may_expire=may_expire) == pytest.approx(grace_s - 5)


@pytest.mark.parametrize(
    ("state", "left_s", "tokens", "shown"),
    [
        ("in_progress", -1.9, 3, State.IN_PROGRESS),
        ("in_progress", -2.1, 3, State.INCOMPLETE),
        ("queued", -2.1, 0, State.EXPIRED),
        ("completed", -9, 3, State.COMPLETED),
    ],
)
def test_an_overdue_request_is_shown_as_its_deadline_ends_it(
    state: str, left_s: float, tokens: int, shown: State
) -> None:
    assert view(state, left_s=left_s, tokens=tokens).shown_state is shown


def test_a_request_that_ended_before_what_was_read_has_lost_writes() -> None:
    view("completed", tokens=3).check_read(EntryId(3, 0))
    view("in_progress", tokens=3).check_read(EntryId(4, 0))  # its worker writes token 4 again
    with pytest.raises(StreamChanged, match="ended before 4-0"):
        view("completed", tokens=3).check_read(EntryId(4, 0))


@pytest.mark.parametrize(
    "reply", [(b"paused", b"1", b"1", b""), (b"queued", b"soon", b"1", b""), (b"queued", b"1", b"", b"")]
)
def test_a_value_that_cant_be_read_is_one_typed_error(reply: tuple[bytes, ...]) -> None:
    with pytest.raises(ProtocolError, match="can't be read") as caught:
        RequestView.of(REQUEST_ID, RequestRecord(request_view.FIELDS, reply), NOW_US)
    assert caught.value.request_id == REQUEST_ID


def test_a_stream_that_is_gone_is_said_so() -> None:
    request_view.check_stream(REQUEST_ID, exists=True)
    with pytest.raises(StreamExpired, match="retention is over, or it was deleted"):
        request_view.check_stream(REQUEST_ID, exists=False)


@pytest.mark.parametrize(
    ("state", "owned", "lease_s", "left_s"),
    [
        (State.IN_PROGRESS, True, 3, 3.0),
        (State.IN_PROGRESS, True, -1, 0.0),
        (State.IN_PROGRESS, False, 3, 0.0),
        (State.COMPLETED, True, 3, 0.0),
    ],
)
def test_a_lease_holds_for_an_owner_until_its_end(state: State, owned: bool, lease_s: int, left_s: float) -> None:
    assert request_view.lease_left_s(state, NOW_US + lease_s * S, NOW_US, owned=owned) == left_s


def test_an_announcement_of_readers_holds_until_its_time() -> None:
    assert requests.has_readers({b"gateway": b"%d" % (NOW_US + 1)}, NOW_US)
    assert not requests.has_readers({b"gateway": b"%d" % NOW_US, b"other": b"soon", b"third": b"9" * 20}, NOW_US)
