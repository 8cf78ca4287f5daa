"""The generation loop: receive messages, apply them, publish. Its thread alone reads and writes the attempts.

Everybody else posts: the engine its outputs, intake its claims, the keeper of RQ's jobs their closings, the listeners
what others ended, signal handlers a stop.
"""

from __future__ import annotations

import time
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Final, assert_never

from tokenrelay.worker.core.messages import (
    Claims,
    JobClosed,
    JobGone,
    JobsQueued,
    PollDone,
    RequestEnded,
    Stop,
    StopJob,
    ThreadDied,
)
from tokenrelay.worker.core.stopping import Drain, is_done
from tokenrelay.worker.engine.contract import EngineDied, EngineOutputs

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tokenrelay.shared.settings import WorkerSettings
    from tokenrelay.worker.core.holdings import Holdings
    from tokenrelay.worker.core.messages import Message
    from tokenrelay.worker.core.polling import Polling
    from tokenrelay.worker.core.status import Watchdog
    from tokenrelay.worker.core.stopping import Limits

LONGEST_WAIT_S: Final = 0.2
"""How long the loop waits for a message: a turn begins at least so often."""


class GenerationLoop:
    """Other threads may `post`; all else is the loop's thread's."""

    def __init__(self, holdings: Holdings, polling: Polling, watchdog: Watchdog, settings: WorkerSettings) -> None:
        self.inbox: SimpleQueue[Message] = SimpleQueue()
        self.holdings = holdings
        self.polling = polling
        self.publisher = holdings.publisher
        self.drain = Drain(settings.drain_timeout_s, holdings.status, polling)
        self._watchdog = watchdog
        self._heartbeat_s = settings.heartbeat_ms / 1000
        self._heartbeat_due = 0.0

    def post(self, message: Message) -> None:
        """Post a message, from any thread or signal handler: the thread that a signal interrupts may hold any lock, and
        a SimpleQueue takes none."""
        self.inbox.put(message)

    def run(self, limits: Limits) -> None:
        """Until it is stopped, or the limits are reached. Raises EngineError where the engine died or hangs, and what
        any other thread of the worker died of."""
        busy_at = time.monotonic()
        while not is_done(limits, self.drain, self.holdings, busy_at):
            self._turn()
            busy_at = time.monotonic() if self.holdings.attempts else busy_at

    def _turn(self) -> None:
        for message in self.receive(min(LONGEST_WAIT_S, self._heartbeat_due - time.monotonic())):
            self.apply(message)
        if time.monotonic() >= self._heartbeat_due:
            self._heartbeat_due = time.monotonic() + self._heartbeat_s
            self.publisher.renew_idle(self.holdings.attempts.values())
        if self.holdings.publish():
            self.polling.expedite()  # a slot is free
        if not self.drain.begun:
            self.polling.poll(self.holdings.free, idle=not self.holdings.attempts)
        self._watchdog.check()

    def receive(self, wait_s: float) -> Iterator[Message]:
        """Wait for a message, or until there is something to send; then give all that have come."""
        try:
            yield self.inbox.get(timeout=max(min(wait_s, self.publisher.due_in_s), 0.0))
            for _ in range(self.inbox.qsize()):
                yield self.inbox.get_nowait()
        except Empty:
            return

    def apply(self, message: Message) -> None:  # noqa: C901  one case a message
        """Take a message's effect on what the worker holds."""
        match message:
            case EngineOutputs(outputs):
                self.holdings.receive(outputs)
            case Claims(claimed):
                self.holdings.hold(claimed)
            case PollDone():
                self.polling.done(message, found=self.holdings.begin())
            case JobsQueued():
                self.polling.jobs_queued()
            case RequestEnded(job_id):
                self.holdings.check(job_id)
            case StopJob(job_id, execution_id):
                self.holdings.stop_job(job_id, execution_id)
            case JobGone(job_id):
                self.holdings.cancel(job_id, "rq")
            case JobClosed(execution_id, accepted):
                self.publisher.closings.acknowledge(execution_id, accepted=accepted)
            case Stop(at):
                self.drain.stop(at)
            case EngineDied(error) | ThreadDied(error):
                raise error
            case _:
                assert_never(message)
