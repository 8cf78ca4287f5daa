"""When the loop polls, and what it notifies intake of."""

from __future__ import annotations

from queue import SimpleQueue
from typing import TYPE_CHECKING

from tokenrelay.worker.core.messages import JobsQueued, Poll, PollDone
from tokenrelay.worker.core.polling import Polling

if TYPE_CHECKING:
    from tokenrelay.worker.core.messages import IntakeMessage


def test_an_intake_that_hangs_is_notified_once() -> None:
    """What it hasn't read doesn't pile up; a job that is enqueued later is polled for as soon as it is back."""
    intake: SimpleQueue[IntakeMessage] = SimpleQueue()
    polling = Polling(intake)
    polling.poll(4, idle=True)
    assert intake.get() == Poll(4, idle=True)
    for _ in range(1000):
        polling.jobs_queued()
    assert [intake.get(), intake.qsize()] == [JobsQueued(), 0]
    polling.done(PollDone(unclaimed=False, exhausted=True), found=False)
    polling.poll(4, idle=True)
    assert intake.get_nowait() == Poll(4, idle=True)
