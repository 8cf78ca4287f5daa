"""What the worker holds: its attempts, in the engine and on their way into Redis.

The loop's thread alone. Each method applies one message to the attempts.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tokenrelay.shared.errors import EngineError
from tokenrelay.worker.core.attempts import Attempt, engine_request, of_job
from tokenrelay.worker.core.messages import Forget, Hold
from tokenrelay.worker.core.status import Progress

if TYPE_CHECKING:
    from collections.abc import Iterable
    from queue import SimpleQueue

    from tokenrelay.shared.store.jobs import Execution
    from tokenrelay.worker.core.attempts import Claimed
    from tokenrelay.worker.core.figures import Figures
    from tokenrelay.worker.core.messages import JobMessage
    from tokenrelay.worker.core.publisher import Publisher
    from tokenrelay.worker.core.status import Status
    from tokenrelay.worker.engine.contract import Engine, EngineOutput

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Holdings:
    """The attempts, by fence."""

    engine: Engine
    publisher: Publisher
    jobs: SimpleQueue[JobMessage]
    status: Status
    figures: Figures
    attempts: dict[str, Attempt] = field(default_factory=dict)
    _claimed: list[Claimed] = field(default_factory=list)
    """What the engine is to be given once intake's poll is done."""
    _stepped: set[str] = field(default_factory=set)
    """The fences that got outputs in this turn."""

    @property
    def free(self) -> int:
        return self.status.slots - len(self.attempts)

    def hold(self, claimed: Iterable[Claimed]) -> None:
        """Make attempts of claims."""
        for each in claimed:
            self.attempts[each.fence] = self.attempt(each)
            self._claimed.append(each)
            self.jobs.put(Hold(each.execution))
        self._show()

    def attempt(self, claimed: Claimed) -> Attempt:
        """What becomes of a claim."""
        return Attempt.begin(claimed)

    def begin(self) -> bool:
        """Give the engine what was claimed. Whether there was anything. Raises EngineError where the engine is dead."""
        claimed, self._claimed = self._claimed, []
        for each in claimed:
            attempt = self.attempts.get(each.fence)
            if attempt is None or attempt.ending is not None or each.work is None:
                continue  # it has ended meanwhile, or had before
            try:
                self.engine.add(engine_request(attempt, each.work))
            except EngineError:
                raise
            except BaseException:  # noqa: BLE001  the per-request boundary
                attempt.fail()
        return bool(claimed)

    def receive(self, outputs: Iterable[EngineOutput]) -> None:
        """Take the engine's tokens."""
        for output in outputs:
            self._stepped.add(output.engine_id)
            attempt = self.attempts.get(output.engine_id)
            if attempt is None:
                continue  # it is over
            attempt.receive(output)
            if attempt.ending is not None and not output.is_last:
                self.engine.cancel(attempt.fence)  # a stop string or token, or it failed: no further step for it

    def check(self, job_id: str) -> None:
        """Learn whether a request was ended by somebody else."""
        attempt = of_job(self.attempts.values(), job_id)
        if attempt is not None and attempt.ending is None:
            self.publisher.renew(attempt)

    def cancel(self, job_id: str, cancelled_by: str) -> None:
        """Cancel a request: its job was cancelled or deleted."""
        attempt = of_job(self.attempts.values(), job_id)
        if attempt is not None:
            self.publisher.cancel(attempt, cancelled_by)

    def stop_job(self, job_id: str, execution_id: str) -> None:
        """Cancel a request at RQ's command."""
        attempt = of_job(self.attempts.values(), job_id, execution_id)
        if attempt is None:
            log.warning("not generating for job %s: the command to stop it was ignored", job_id)
            return
        attempt.stopped_by_rq = True
        self.publisher.cancel(attempt, "rq stop command")

    def publish(self) -> bool:
        """Send what the attempts hold, and free the slots of those that are over. Whether there were any."""
        if self._stepped:
            self.figures.batch_requests.observe(len(self._stepped))
            self._stepped.clear()
        # While the loop waits for Redis, a standing engine isn't hung: nobody takes its outputs.
        self.status.progress = Progress(0, self.engine.progress)
        over = self.publisher.publish(self.attempts)
        for attempt in over:
            if not attempt.reopened:
                self.status.finished += 1
                self.engine.cancel(attempt.fence)
        if over:
            self._show()
        left = self.attempts.values() if self.publisher.unsent else ()
        self.status.unpublished = sum(len(each.tokens) - each.acknowledged for each in left)
        self.status.progress = Progress(
            0 if self.publisher.backing_off else len(self.attempts), self.status.progress.progress
        )
        self.status.turned_at = time.monotonic()
        return bool(over)

    def give_up(self) -> list[Execution]:
        """Hold nothing any more. Returns what was held, to be handed back."""
        held = list(self.attempts.values())
        self.attempts.clear()
        self._claimed.clear()
        for attempt in held:
            log.info("request %s is handed back after %s tokens", attempt.request_id, attempt.acknowledged)
            self.jobs.put(Forget(attempt.execution))
        self._show()
        return [attempt.execution for attempt in held]

    def _show(self) -> None:
        self.status.held = frozenset(attempt.request_id for attempt in self.attempts.values())
        self.status.progress = Progress(len(self.attempts), self.status.progress.progress)
