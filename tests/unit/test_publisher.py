"""The publisher against replies of Redis that no script of ours gives."""

from __future__ import annotations

from queue import SimpleQueue
from typing import TYPE_CHECKING

import pytest
from redis.exceptions import ResponseError

from tokenrelay.shared.redis.batches import Pipeline
from tokenrelay.shared.redis.commands import Call
from tokenrelay.shared.redis.connections import connect
from tokenrelay.shared.store.jobs import Execution
from tokenrelay.worker.core.attempts import Attempt, Ending
from tokenrelay.worker.core.closings import Closings
from tokenrelay.worker.core.figures import Figures
from tokenrelay.worker.core.publisher import Publisher

if TYPE_CHECKING:
    from tokenrelay.shared.redis.commands import Batch, Reply


class Answering(Pipeline):
    """Gives the first request of each batch one reply, and the others what an append says."""

    def __init__(self, first: Reply) -> None:
        super().__init__(connect("redis://127.0.0.1:1/0"))
        self._first = first

    def run(self, batch: Batch, *, atomic: bool = False) -> list[Reply]:
        first = batch[0]
        joined = len(first.keys) // 2 if isinstance(first, Call) else 1
        return [[self._first, *[2] * (joined - 1)] if joined > 1 else self._first, *(2 for _ in batch[1:])]


class Whole(Pipeline):
    """Gives every call this reply."""

    def __init__(self, reply: Reply) -> None:
        super().__init__(connect("redis://127.0.0.1:1/0"))
        self._reply = reply

    def run(self, batch: Batch, *, atomic: bool = False) -> list[Reply]:
        return [self._reply for _ in batch]


def attempt(number: int) -> Attempt:
    return Attempt(Execution(f"request-{number}", "queue"), f"1:{number}", 1, 60, tokens=[("x", 1)])


@pytest.mark.parametrize(
    "reply",
    [None, 2.5, [], b"", b"2", [b"OK", 2], [b"GAP", None], [b"DONE"], [b"GAP", b"x"], {"OK": 1}],
    ids=repr,
)
def test_a_reply_that_cant_be_read_fails_its_request_alone(reply: Reply) -> None:
    """It ends as internal_error with the next pipeline; where that has such a reply too, its lease runs out."""
    sick, healthy = attempt(1), attempt(2)
    attempts = {each.fence: each for each in (sick, healthy)}
    publisher = Publisher(Answering(reply), 6000, Closings(SimpleQueue()), Figures())
    assert publisher.publish(attempts) == []
    assert sick.ending == Ending.internal_error()
    assert (healthy.acknowledged, healthy.ending) == (1, None)
    assert publisher.publish(attempts) == [sick]
    assert list(attempts.values()) == [healthy]


@pytest.mark.parametrize("reply", [None, [2], [2, 2, 2], ResponseError("user_script: a bug")], ids=repr)
def test_a_reply_to_joined_appends_that_cant_be_read_is_each_ones(reply: Reply) -> None:
    attempts = {each.fence: each for each in (attempt(1), attempt(2))}
    publisher = Publisher(Whole(reply), 6000, Closings(SimpleQueue()), Figures())
    publisher.publish(attempts)
    assert len(attempts) == (0 if isinstance(reply, Exception) else 2)  # unusable keys end a request at once
    assert all(each.ending == Ending.internal_error() for each in attempts.values())


def test_the_end_of_an_overdue_request_is_due_at_once() -> None:
    """A renewal's reply says that the deadline has passed. Its end doesn't wait for the loop's next turn."""
    overdue = attempt(1)
    overdue.acknowledged = 1
    publisher = Publisher(Answering([b"PAST"]), 6000, Closings(SimpleQueue()), Figures())
    publisher.renew(overdue)
    assert publisher.publish({overdue.fence: overdue}) == []
    assert overdue.ending is not None
    assert publisher.due_in_s == 0
