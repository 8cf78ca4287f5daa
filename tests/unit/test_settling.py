"""A worker that ends confirms the ends that it has written: what it waits for, and what it repeats."""

from __future__ import annotations

import math
import threading
from queue import SimpleQueue
from typing import TYPE_CHECKING

import pytest
from redis.exceptions import ConnectionError

from tests.engines import CountingEngine
from tests.waiting import wait_until
from tokenrelay.shared.redis.batches import Pipeline
from tokenrelay.shared.redis.connections import connect
from tokenrelay.shared.settings import WorkerSettings
from tokenrelay.shared.store.jobs import Execution, Outcome
from tokenrelay.shared.wire.entries import State
from tokenrelay.worker.core.attempts import Attempt, Ending
from tokenrelay.worker.core.closings import Closing, Closings
from tokenrelay.worker.core.figures import Figures
from tokenrelay.worker.core.holdings import Holdings
from tokenrelay.worker.core.loop import GenerationLoop
from tokenrelay.worker.core.messages import CloseJob, JobClosed, Leave
from tokenrelay.worker.core.polling import Polling
from tokenrelay.worker.core.publisher import Publisher
from tokenrelay.worker.core.status import Progress, Status, Watchdog
from tokenrelay.worker.core.stopping import settle

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tokenrelay.shared.redis.commands import Batch, Reply
    from tokenrelay.worker.core.messages import JobMessage, Message


class Scripted(Pipeline):
    """Gives the calls of each batch the next of these replies; raises it where it's an error."""

    def __init__(self, *replies: Reply) -> None:
        super().__init__(connect("redis://127.0.0.1:1/0"))
        self._script = list(replies)

    def run(self, batch: Batch, *, atomic: bool = False) -> list[Reply]:
        reply = self._script.pop(0)
        if isinstance(reply, Exception):
            raise reply
        return [reply for _ in batch]


class Waiting(GenerationLoop):
    """Notes whether it waited for a message."""

    waited = False

    def receive(self, wait_s: float) -> Iterator[Message]:
        self.waited = True
        return super().receive(wait_s)


def loop_over(pipeline: Pipeline, jobs: SimpleQueue[JobMessage]) -> Waiting:
    figures, status = Figures(), Status(4, 6.0)
    publisher = Publisher(pipeline, 6000, Closings(jobs), figures)
    holdings = Holdings(CountingEngine(), publisher, jobs, status, figures)
    watchdog = Watchdog(60.0, lambda: Progress(0, 0))
    return Waiting(holdings, Polling(SimpleQueue()), watchdog, WorkerSettings())


def unconfirmed(loop: GenerationLoop) -> None:
    """Have the end of a request that was written, and whose job was closed, confirmed."""
    execution, ending = Execution("request", "queue", "worker", "1"), Ending(State.COMPLETED, "stop")
    attempt = Attempt(execution, "1:1", 1, 60, tokens=[("x", 1)], acknowledged=1, ending=ending)
    closings = loop.publisher.closings
    closings.close(Closing(attempt, Outcome("finished", 60), written=True))
    closings.acknowledge("1", accepted=True)


def test_it_waits_for_nothing_where_the_end_is_no_longer_its_own() -> None:
    loop = loop_over(Scripted([b"FENCED"]), SimpleQueue())
    unconfirmed(loop)
    settle(loop)
    assert not loop.publisher.closings.unconfirmed
    assert not loop.waited


def test_an_end_that_redis_did_not_confirm_is_sent_again() -> None:
    """The failover that lost the end also cut the connection."""
    jobs: SimpleQueue[JobMessage] = SimpleQueue()
    loop = loop_over(Scripted(ConnectionError("cut"), [b"OK"]), jobs)

    def keep_jobs() -> None:
        while isinstance(message := jobs.get(), CloseJob):
            loop.post(JobClosed(message.execution.execution_id))

    unconfirmed(loop)
    keeper = threading.Thread(target=keep_jobs)
    keeper.start()
    settle(loop)
    jobs.put(Leave())
    keeper.join()
    assert not loop.publisher.closings.unconfirmed
    assert not loop.publisher.behind


def test_nothing_is_due_once_what_was_unsent_is_handed_back() -> None:
    """The loop would turn without a pause while it waits for RQ's jobs."""
    loop = loop_over(Scripted(ConnectionError("cut")), SimpleQueue())
    attempt = Attempt(Execution("request", "queue", "worker", "1"), "1:1", 1, 60, tokens=[("x", 1)])
    loop.holdings.attempts[attempt.fence] = attempt
    loop.holdings.publish()
    assert loop.publisher.due_in_s < math.inf
    loop.holdings.give_up()
    wait_until(lambda: not loop.publisher.backing_off)
    loop.holdings.publish()
    assert loop.publisher.due_in_s == pytest.approx(math.inf)
