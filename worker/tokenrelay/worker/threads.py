"""The threads that generate: intake, the generation loop over the engine, and the keeper of RQ's jobs; and periodic
tasks beside them, each in a thread of its own, so that none delays another."""

from __future__ import annotations

import logging
import threading
import time
from contextlib import contextmanager
from queue import SimpleQueue
from typing import TYPE_CHECKING, Final

from redis.exceptions import RedisError

from tokenrelay.shared.wire import keys
from tokenrelay.worker.core.closings import Closings
from tokenrelay.worker.core.figures import Figures
from tokenrelay.worker.core.holdings import Holdings
from tokenrelay.worker.core.loop import GenerationLoop
from tokenrelay.worker.core.messages import Leave, ThreadDied
from tokenrelay.worker.core.polling import Polling
from tokenrelay.worker.core.publisher import Publisher
from tokenrelay.worker.core.status import Progress, Status, Watchdog
from tokenrelay.worker.core.stopping import finish, settle
from tokenrelay.worker.intake.intake import Intake
from tokenrelay.worker.intake.poller import Poller
from tokenrelay.worker.maintenance.recovery import release
from tokenrelay.worker.rq_mirror.job_keeper import JobKeeper

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from tokenrelay.shared.redis.batches import Pipeline
    from tokenrelay.shared.settings import WorkerSettings
    from tokenrelay.shared.store.jobs import Execution
    from tokenrelay.worker.core.messages import IntakeMessage, JobMessage, Message
    from tokenrelay.worker.core.stopping import Limits
    from tokenrelay.worker.serving.model import Served

log = logging.getLogger(__name__)

UNWATCHED_S: Final = 5.0
"""How long beyond the stall timeout the loop itself gives up a hung engine. A supervisor kills it at the timeout; this
is for a worker that has none, such as RQ's `rq worker`."""
POLL_ENDS_S: Final = 0.5
"""How long a poll under way has to end, before what is in flight is handed back: shorter than the shortest lease."""
MIN_PAUSE_S: Final = 0.02
"""Between two runs of a periodic task."""


class GenerationThreads:
    """Generates for the requests of one model, as the worker named `worker`. Starts the threads, and ends them."""

    def __init__(self, pipeline: Pipeline, served: Served, settings: WorkerSettings, worker: str) -> None:
        self.settings = settings
        self.engine = engine = served.engine
        self.figures = Figures()
        self.status = Status(min(settings.slots, engine.capabilities.slots), settings.lease_ms / 1000)
        self._pipeline = pipeline
        self._close_reader = served.reader.close
        queues = keys.queues(served.reader.served_model)
        jobs: SimpleQueue[JobMessage] = SimpleQueue()
        polls: SimpleQueue[IntakeMessage] = SimpleQueue()
        publisher = Publisher(pipeline, settings.lease_ms, Closings(jobs), self.figures)
        holdings = Holdings(engine, publisher, jobs, self.status, self.figures)
        watchdog = Watchdog(settings.stall_timeout_s + UNWATCHED_S, self.progress)
        self.intake = Intake(pipeline, served.reader, settings, worker, queues, self.figures)
        self.loop = GenerationLoop(holdings, Polling(polls, self.intake.leaving), watchdog, settings)
        self.poller = Poller(self.intake, self.loop.post, polls)
        self.jobs = JobKeeper(pipeline, self.status, self.loop.post, self.figures, jobs)

    def post(self, message: Message) -> None:
        """Post a message to the loop, from any thread or signal handler."""
        self.loop.post(message)

    def progress(self) -> Progress:
        """For the supervisor: of the engine, and of a prompt that is being encoded. An encoding that never ends is a
        hang too, without a request in flight."""
        engine, encoding = self.status.progress, self.intake.encoding
        return Progress(engine.in_flight + encoding.running, engine.progress + encoding.begun)

    def run(self, limits: Limits) -> None:
        """Generate until it's stopped, or the limits are reached.

        Raises EngineError when the engine died, and whatever else ended the loop: every request was handed over, which
        counts as a crash of each, and the process is to exit.
        """
        intake, jobs = self._thread("intake", self.poller.run), self._thread("jobs", self.jobs.run)
        errors: list[BaseException] = []
        self.status.turned_at = time.monotonic()
        try:
            self.engine.start(self.loop.post)
            intake.start()
            jobs.start()
            self.loop.run(limits)
        except BaseException as error:  # noqa: BLE001  raised again below
            errors.append(error)
        self._shut_down(intake, jobs, errors)
        if errors:
            raise errors[0]

    def _shut_down(self, intake: threading.Thread, jobs: threading.Thread, errors: list[BaseException]) -> None:
        """Hand everything back and end all threads: each step is taken, whatever the ones before it raised."""
        steps: tuple[Callable[[], object], ...] = (
            self.loop.polling.leave,
            lambda: finish(self.loop),
            lambda: intake.join(POLL_ENDS_S),  # a take under way would take again what is handed back
            lambda: finish(self.loop),
            lambda: self._hand_back((), crashed=bool(errors)),  # nobody renews leases while intake is waited for
            intake.join,
            lambda: finish(self.loop),
            lambda: self._hand_back(self.intake.taken, crashed=bool(errors)),
            lambda: settle(self.loop),
            lambda: self.jobs.inbox.put(Leave()),
            jobs.join,
            self.engine.stop,
            self._close_reader,
        )
        for step in steps:
            try:
                step()
            except BaseException as error:  # the first one is raised in the end
                log.exception("stopping: a step failed")
                errors.append(error)

    def _hand_back(self, taken: Sequence[Execution], *, crashed: bool) -> None:
        """Give what is in flight to other workers, mid-stream: each is resumed at its next token. What was `taken` and
        not yet claimed goes back to its queue."""
        held = [*self.loop.holdings.give_up(), *taken]
        try:
            continued = release(self._pipeline, held, crashed=crashed, retention_s=self.settings.retention_s)
        except RedisError as error:
            self.figures.redis_errors.add("release")
            log.warning("requests couldn't be handed back: %s; their leases run out instead", error)
        else:
            self.figures.handed_back.add(amount=continued)

    @contextmanager
    def periodic(self, name: str, task: Callable[[], object], pause_s: Callable[[], float]) -> Iterator[None]:
        """Run `task` again and again while the block lasts, `pause_s()` apart, while the generation loop is alive.

        A worker whose loop hangs must lose its registration and the maintenance of its queues. A redis error is counted
        and the task is retried; anything else ends the loop.
        """
        stopped = threading.Event()

        def attempt() -> None:
            try:
                task()
            except RedisError as error:
                self.figures.redis_errors.add(name)
                log.warning("%s: %s; retrying", name, error)

        def repeat() -> None:
            due_in_s = 0.0
            while not stopped.wait(max(due_in_s, MIN_PAUSE_S)):
                if self.status.alive:
                    attempt()
                    due_in_s = pause_s()

        thread = self._thread(name, repeat)
        thread.start()
        try:
            yield
        finally:
            stopped.set()
            thread.join()

    def _thread(self, name: str, run: Callable[[], None]) -> threading.Thread:
        """A thread whose end by an error ends the loop."""

        def guarded() -> None:
            try:
                run()
            except BaseException as error:
                log.exception("the thread %s died", name)
                self.loop.post(ThreadDied(error))

        return threading.Thread(target=guarded, name=name)
