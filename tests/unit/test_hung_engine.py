"""An engine that hangs as it is given its first request: the supervisor must see that something waits."""

from __future__ import annotations

from queue import SimpleQueue
from typing import TYPE_CHECKING

from tests.engines import CountingEngine
from tests.unit.test_settling import Scripted, loop_over
from tests.workers import LIMITS
from tokenrelay.shared import options
from tokenrelay.shared.store.jobs import Execution
from tokenrelay.worker.core.attempts import Claimed, Work
from tokenrelay.worker.core.messages import Claims, PollDone

if TYPE_CHECKING:
    from tokenrelay.worker.core.status import Progress, Status
    from tokenrelay.worker.engine.contract import EngineRequest


class Noting(CountingEngine):
    """Notes the progress that is reported while it takes a request in."""

    def __init__(self) -> None:
        super().__init__()
        self.noted: list[Progress] = []
        self.status: Status | None = None

    def add(self, request: EngineRequest) -> None:
        assert self.status is not None
        self.noted.append(self.status.progress)


def test_an_engine_that_hangs_in_add_is_seen_to_stand_still() -> None:
    engine = Noting()
    loop = loop_over(Scripted(), SimpleQueue())
    loop.holdings.engine, engine.status = engine, loop.holdings.status
    work = Work(options.filled(options.validate({"prompt": "x", "model": "m", "seed": 1}, LIMITS)), (1,), 4)
    claimed = Claimed(Execution("request", "queue", "worker", "1"), "1:1", 1, 60, work=work)
    for message in (Claims((claimed,)), PollDone(unclaimed=False, exhausted=False)):
        loop.apply(message)  # both within one turn
    assert [progress.in_flight for progress in engine.noted] == [1]
