"""The generation loop: claim, step, publish, over one engine. Knows nothing of RQ's worker registration or signals.

Three threads share the attempts: intake claims, the caller's publishes what the engine gives, the heartbeat keeps
leases. The engine steps in a thread of its own and waits for none of them.
"""

from __future__ import annotations

import logging
import threading
import time
from queue import SimpleQueue
from typing import TYPE_CHECKING, assert_never

from redis.exceptions import RedisError

from tokenrelay.shared.errors import EngineError
from tokenrelay.shared.wire import keys
from tokenrelay.worker.core.attempts import Attempt, InFlight, engine_request
from tokenrelay.worker.core.figures import Figures
from tokenrelay.worker.core.intake import Intake
from tokenrelay.worker.core.leases import Heartbeat
from tokenrelay.worker.core.messages import JobsQueued, RequestEnded, Stop, StopJob
from tokenrelay.worker.core.progress import Progress, Watchdog
from tokenrelay.worker.core.publisher import Publisher
from tokenrelay.worker.core.recovery import release
from tokenrelay.worker.engine.output_queue import OutputQueue

if TYPE_CHECKING:
    from collections.abc import Callable

    from tokenrelay.shared.redis.batches import Pipeline
    from tokenrelay.shared.settings import WorkerSettings
    from tokenrelay.worker.core.messages import Message
    from tokenrelay.worker.core.taken import Claimed
    from tokenrelay.worker.engine.contract import EngineOutput
    from tokenrelay.worker.serving.model import Served

log = logging.getLogger(__name__)

SWEEP_S = 0.2
"""How long intake waits for a wake-up that may have been lost, and the loop for tokens."""
LEAST_PAUSE_S = 0.02
"""The heartbeat's thread rests so long at least, also with nothing to do or Redis away."""
GATHER_S = 0.05
"""How long intake goes on looking for an idle engine, for as long as there is more: a burst's prompts are prefilled
together, where its first ones would have had a step of their own. Who comes alone waits for one empty look."""
BURST_GAP_S = 0.002
"""How long intake waits for the next of a burst, which are two or more found together."""
BEHIND_S = 0.005
"""How long the loop waits for tokens while Redis or RQ hasn't heard of the last ones."""
UNWATCHED_S = 5.0
"""How long beyond the stall timeout the loop itself gives up a hung engine. A supervisor kills it at the timeout; this
is for a worker that has none, such as RQ's `rq worker`."""


class GenerationLoop:
    """Generates for the requests of one model, as the worker named `worker`."""

    def __init__(self, pipeline: Pipeline, served: Served, settings: WorkerSettings, worker: str) -> None:
        self.wake = threading.Event()
        """Set it when there may be something to claim."""
        self.gather_s = GATHER_S
        self.burst_gap_s = BURST_GAP_S
        self.engine = served.engine
        self._outputs = OutputQueue()
        self.settings = settings
        self.finished = 0
        self._progress = 0
        """The engine's, as the last turn of the loop saw it: it stands still where either of them hangs."""
        self._pipeline = pipeline
        self._stops: SimpleQueue[float] = SimpleQueue()
        self._stopping = False
        self._stop_at = float("inf")
        self._closed = threading.Event()
        self._fatal: BaseException | None = None
        self._looped_at = time.monotonic()
        self._watchdog = Watchdog(settings.stall_timeout_s + UNWATCHED_S)
        self._beat_at = 0.0
        queues = keys.queues(served.reader.served_model)
        self.in_flight = InFlight(min(settings.slots, self.engine.capabilities.slots), self.wake.set)
        self.figures = Figures()
        self.publisher = Publisher(pipeline, self.in_flight, settings.lease_ms, self._over, self.figures)
        self.intake = Intake(pipeline, served.reader, settings, worker, queues, self.figures)
        self.heartbeat = Heartbeat(pipeline, self.in_flight, self.publisher, settings.lease_ms)

    def run(self, *, burst: bool, max_jobs: int | None, max_idle_s: float | None) -> None:
        """Generate until `stop`, until the queues are empty (`burst`), or for so long or so many jobs.

        Raises EngineError when the engine died, and whatever else ended the loop: every request was handed over, which
        counts as a crash of each, and the process is to exit.
        """
        intake = threading.Thread(target=self._repeat, args=(self._take_in, self._wait_for_jobs), name="intake")
        beats = threading.Thread(target=self._repeat, args=(self._beat, self._wait_for_beat), name="heartbeat")
        try:
            self.engine.start(self._outputs.deliver)
            intake.start()
            beats.start()
            self._generate(burst, max_jobs, max_idle_s)
        except BaseException as error:  # noqa: BLE001  raised again below
            self._fatal = error
        self._shut_down(intake, beats)
        if self._fatal is not None:
            raise self._fatal

    def _generate(self, burst: bool, max_jobs: int | None, max_idle_s: float | None) -> None:
        idle_since = time.monotonic()
        while not self._done(burst, max_jobs):
            self._step()
            if self.in_flight:
                idle_since = time.monotonic()
            elif max_idle_s is not None and time.monotonic() - idle_since > max_idle_s:
                return

    def _shut_down(self, intake: threading.Thread, beats: threading.Thread) -> None:
        """Hand everything back and end all threads: each step is taken, whatever the ones before it raised."""
        self._stopping = True
        steps: tuple[Callable[[], object], ...] = (
            self.wake.set,
            intake.join,  # before the hand-back: what it has just claimed is handed back too
            lambda: self.publisher.publish(self.in_flight.all()),
            self._hand_back,
            self.publisher.settle,
            self._closed.set,
            beats.join,
            self.engine.stop,
        )
        raised: list[BaseException] = []
        for step in steps:
            try:
                step()
            except BaseException as error:  # noqa: BLE001  logged and raised below
                raised.append(error)
                self._fatal = self._fatal or error
        for each in raised:
            log.error("stopping: a step failed", exc_info=each)

    def post(self, message: Message) -> None:
        """Tell the loop something, from any thread. A signal handler may post a Stop: the thread that it interrupts may
        hold any lock, an Event's too."""
        match message:
            case Stop(at):
                self._stops.put(at)
            case JobsQueued():
                self.wake.set()
            case RequestEnded(job_id):
                self._look(job_id)
            case StopJob(job_id, execution_id):
                self._stop_job(job_id, execution_id)
            case _:
                assert_never(message)

    def _look(self, job_id: str) -> None:
        attempt = self.in_flight.of_job(job_id)
        if attempt is None or attempt.ending is not None:
            return
        try:
            self.heartbeat.look(attempt)
        except RedisError as error:
            log.warning("request %s: %s; the next heartbeat looks again", attempt.request_id, error)

    def _stop_job(self, job_id: str, execution_id: str) -> None:
        attempt = self.in_flight.of_job(job_id, execution_id)
        if attempt is None:
            log.warning("not generating for job %s: the command to stop it was ignored", job_id)
            return
        attempt.stopped_by_rq = True
        try:
            self.heartbeat.cancel(attempt, "rq stop command")
        except RedisError as error:
            log.warning("job %s couldn't be stopped: %s", job_id, error)

    def stop(self) -> None:
        """First call: claim no more, and finish within the drain timeout. Second: hand everything back at once."""
        self.post(Stop(time.monotonic()))

    def _drain(self, now: float) -> None:
        if not self._stopping:
            log.info("stopping: no new requests; what runs has %s s to finish", self.settings.drain_timeout_s)
        self._stop_at = now if self._stopping else now + self.settings.drain_timeout_s
        self._stopping = True
        self.wake.set()

    def progress(self) -> Progress:
        """For the supervisor. While Redis is away nobody can tell whether the engine moves: that isn't its fault."""
        waiting = 0 if self.publisher.waits_for_redis else len(self.in_flight)
        # A prompt whose encoding never ends is a hang too: intake's, without a request in flight.
        return Progress(waiting + self.intake.reading, self._progress + self.intake.reads)

    def hand_back_now(self) -> None:
        """Stop without a drain: nobody is left to restart what hangs."""
        self.stop()
        self.stop()

    @property
    def stopping(self) -> bool:
        """Whether it was told to stop."""
        return self._stop_at < float("inf") or not self._stops.empty()

    def _step(self) -> None:
        behind = self.publisher.behind or any(attempt.unpublished for attempt in self.in_flight.all())
        outputs = self._outputs.get(BEHIND_S if behind else SWEEP_S)
        if outputs:
            self.figures.batch_requests.observe(len({output.engine_id for output in outputs}))
        for output in outputs:
            attempt = self.in_flight.get(output.engine_id)
            if attempt is not None:
                self._receive(attempt, output)
        for attempt in self.in_flight.all():
            if attempt.overdue and attempt.ending is None:
                attempt.past_deadline()
        self.publisher.publish(self.in_flight.all())
        self._progress = self.engine.progress
        self._looped_at = time.monotonic()
        if self._watchdog.stalled(self.progress(), self._looped_at):
            raise EngineError(f"the engine made no progress for {self._watchdog.limit_s:g} s")

    def _receive(self, attempt: Attempt, output: EngineOutput) -> None:
        try:
            attempt.receive(output)
        except BaseException:  # noqa: BLE001  the per-request boundary
            attempt.fail()
        if attempt.ending is not None and not output.is_last:
            self.engine.cancel(attempt.fence)  # a stop string, or it failed: no further step for it

    def _done(self, burst: bool, max_jobs: int | None) -> bool:
        if self._fatal is not None:
            return True
        while not self._stops.empty():
            self._drain(self._stops.get())
        if max_jobs is not None and self.finished >= max_jobs and not self._stopping:
            self._drain(time.monotonic())
        idle = not self.in_flight and not self.publisher.behind and not self.intake.unclaimed
        if self._stopping:
            return idle or time.monotonic() >= self._stop_at
        # Last: what intake finds from here on, it finds behind a queue that was empty.
        return burst and idle and self.intake.exhausted

    def _take_in(self) -> None:
        self.wake.clear()
        gather_until = 0.0 if self.in_flight else time.monotonic() + self.gather_s
        begun: list[Claimed] = []
        try:
            while self._goes_on(self._claim(begun), begun, gather_until):
                pass
        finally:  # also what was claimed before an error
            for claimed in begun:
                self._give(claimed)

    def _claim(self, begun: list[Claimed]) -> bool:
        """Claim what fits. Whether there was anything."""
        free = self.in_flight.free
        if free <= 0 or self._stopping or not self.turning:
            return False
        found = self.intake.claim(free, idle=not self.in_flight)
        for claimed in found:
            self.in_flight.add(claimed.attempt)
        begun += found
        return bool(found)

    def _goes_on(self, found: bool, begun: list[Claimed], until: float) -> bool:
        """Whether to look again: something was found, or something was enqueued within the gap of a burst."""
        left_s = until - time.monotonic()
        if self._stopping or left_s <= 0 or self.in_flight.free <= 0:
            return False
        if found:
            return True
        if len(begun) < 2 or not self.wake.wait(min(self.burst_gap_s, left_s)):
            return False
        self.wake.clear()
        return True

    def _give(self, claimed: Claimed) -> None:
        if claimed.options is None:
            self.publisher.publish([claimed.attempt])
            return
        if self.in_flight.get(claimed.attempt.fence) is None:
            return  # somebody ended it meanwhile
        try:
            self.engine.add(engine_request(claimed.attempt, claimed.options, claimed.prompt_ids, claimed.budget))
        except EngineError:
            raise
        except BaseException:  # noqa: BLE001  the per-request boundary; the loop publishes how it ended
            claimed.attempt.fail()
        if self.in_flight.get(claimed.attempt.fence) is None:
            self.engine.cancel(claimed.attempt.fence)  # or before the engine knew of it
        self.wake.set()  # there may be more

    def _wait_for_jobs(self) -> bool:
        self.wake.wait(SWEEP_S)
        return self._stopping

    @property
    def turning(self) -> bool:
        """Whether the loop runs. One that hangs claims nothing more and must lose its leases, its registration and the
        maintenance of its queues, however well the other threads run: its requests are for others to continue."""
        return time.monotonic() - self._looped_at < self.settings.lease_ms / 1000

    def held(self) -> set[str]:
        """The requests that this worker generates for."""
        return {attempt.request_id for attempt in self.in_flight.all()}

    def fail(self, error: BaseException) -> None:
        """End the loop with the error of a thread that the worker can't do without."""
        self._fatal = error

    def _beat(self) -> None:
        now = time.monotonic()
        if now >= self._beat_at and self.turning:
            self._beat_at = now + self.settings.heartbeat_ms / 1000
            self.heartbeat.beat()

    def _wait_for_beat(self) -> bool:
        return self._closed.wait(max(self._beat_at - time.monotonic(), LEAST_PAUSE_S))

    def _repeat(self, step: Callable[[], None], pause: Callable[[], bool]) -> None:
        """Run a thread's step until its pause says that it's over."""
        name = threading.current_thread().name
        try:
            while True:
                try:
                    step()
                except RedisError as error:
                    self.figures.redis_errors.add(name)
                    log.warning("%s: %s; trying again", name, error)
                if pause():
                    return
        except BaseException as error:
            log.exception("%s died", name)
            self._fatal = error

    def _over(self, attempt: Attempt) -> None:
        self.finished += 1
        self.engine.cancel(attempt.fence)

    def _hand_back(self) -> None:
        """Give what is in flight to other workers, mid-stream: each goes on at its next token. What was taken and not
        yet claimed goes back to its queue."""
        attempts = self.in_flight.all()
        for attempt in attempts:
            log.info("request %s is handed back after %s tokens", attempt.request_id, attempt.acknowledged)
        held = [*(attempt.execution for attempt in attempts), *self.intake.taken]
        try:
            crashed = self._fatal is not None
            continued = release(self._pipeline, held, crashed=crashed, retention_s=self.settings.retention_s)
        except RedisError as error:
            self.figures.redis_errors.add("release")
            log.warning("requests couldn't be handed back: %s; their leases run out instead", error)
        else:
            self.figures.handed_back.add(amount=continued)
