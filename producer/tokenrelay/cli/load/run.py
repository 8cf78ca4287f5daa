"""An open-loop load run over one AsyncProducer, and the outcome of each request.

Arrivals never wait for answers, and latency is measured from the scheduled arrival, not from the actual submit, so a
stalled system is charged for all requests scheduled meanwhile (no coordinated omission). The client's own submit delay
is reported separately: if it's large, the client was the bottleneck.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from tokenrelay.shared.errors import TokenRelayError
from tokenrelay.shared.wire.entries import Ended, Migrated, Queued, Started, Token

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tokenrelay.cli.load.workload import Arrival
    from tokenrelay.producer import AsyncGeneration, AsyncProducer
    from tokenrelay.shared.wire.entries import Entry

_CANCEL_S: Final = 5.0
"""Time limit for cancelling open requests."""
MAX_ERRORS: Final = 5
"""Number of distinct messages that are kept."""


@dataclass(slots=True)
class Outcome:
    """One request. Times are seconds from the run's start on this process's clock; gaps and waits on Redis's clock."""

    intended_s: float
    submitted_s: float | None = None
    """When it was actually submitted."""
    first_token_s: float | None = None
    ended_s: float | None = None
    state: str = "open"
    """The request's state; `refused` if submit failed, `lost` if its stream couldn't be read to the end."""
    prompt_tokens: int = 0
    tokens_s: list[float] = field(default_factory=list)
    """When each token was received."""
    queue_wait_ms: float | None = None
    gaps_ms: list[float] = field(default_factory=list)
    migrations: int = 0
    _queued_us: int = 0
    _token_us: int = 0

    def receive(self, entry: Entry, now_s: float) -> None:
        """Record the next entry of its stream, received at `now_s`."""
        match entry:
            case Queued():
                self._queued_us = entry.at_us
            case Started():
                self.queue_wait_ms = (entry.at_us - self._queued_us) / 1000
                self.prompt_tokens = entry.prompt_tokens
            case Migrated():
                self.migrations += 1
            case Token():
                if self.first_token_s is None:
                    self.first_token_s = now_s
                else:
                    self.gaps_ms.append((entry.at_us - self._token_us) / 1000)
                self._token_us = entry.at_us
                self.tokens_s.append(now_s)
            case Ended():
                self.ended_s, self.state = now_s, str(entry.state)


class LoadRun:
    """One run. `stop` ends it early; `outcomes` can be read at any time."""

    def __init__(self, producer: AsyncProducer, arrivals: Sequence[Arrival], options: dict[str, Any]) -> None:
        self.outcomes: list[Outcome] = []
        self.errors: Counter[str] = Counter()
        self.stopped = False
        self.stopped_s: float | None = None
        self.over = False
        self.tokens = 0
        self.open = 0
        self._producer = producer
        self._arrivals = arrivals
        self._options = options
        self._began = 0.0
        self._stop = asyncio.Event()
        self._following: dict[asyncio.Task[None], AsyncGeneration | None] = {}

    @property
    def elapsed_s(self) -> float:
        return time.monotonic() - self._began if self._began else 0.0

    def stop(self) -> None:
        """Stop submitting, and cancel open requests."""
        self.stopped, self.stopped_s = True, self.elapsed_s
        self._stop.set()

    async def run(self) -> None:
        """Submit all requests on schedule and follow them until they end or `stop` is called."""
        try:
            await self._submit_all()
            while self._following and not self.stopped:
                stop = asyncio.create_task(self._stop.wait())
                await asyncio.wait([*self._following, stop], return_when=asyncio.FIRST_COMPLETED)
                stop.cancel()
            await self._cancel_open()
        finally:
            self.over = True

    async def _submit_all(self) -> None:
        self._began = time.monotonic()
        for arrival in self._arrivals:
            if await self._stopped_within(arrival.at_s - self.elapsed_s):
                break
            outcome = Outcome(arrival.at_s, self.elapsed_s)
            self.outcomes.append(outcome)
            self._following[asyncio.create_task(self._ask(arrival, outcome))] = None
            await asyncio.sleep(0)  # let the first requests of a burst start before the last are created

    async def _stopped_within(self, timeout_s: float) -> bool:
        if timeout_s > 0 and not self.stopped:
            try:
                await asyncio.wait_for(self._stop.wait(), timeout_s)
            except TimeoutError:
                pass
        return self.stopped

    async def _ask(self, arrival: Arrival, outcome: Outcome) -> None:
        task = asyncio.current_task()
        assert task is not None
        self.open += 1
        failed = "refused"
        try:
            generation = await self._producer.submit(
                arrival.prompt, max_new_tokens=arrival.max_new_tokens, seed=arrival.seed, **self._options
            )
            self._following[task], failed = generation, "lost"
            async for entry in generation.entries():
                outcome.receive(entry, self.elapsed_s)
                self.tokens += isinstance(entry, Token)
                if isinstance(entry, Ended) and entry.code:
                    self._note(f"{entry.code}: {entry.message}")
        except TokenRelayError as error:
            outcome.state = failed
            self._note(error.message if failed == "refused" else f"{type(error).__name__}: {error.message}")
        finally:
            self.open -= 1
            self._following.pop(task, None)

    def _note(self, message: str) -> None:
        if message in self.errors or len(self.errors) < MAX_ERRORS:
            self.errors[message] += 1
        else:
            self.errors["others"] += 1

    async def _cancel_open(self) -> None:
        """Cancel submitted requests and wait for their end; also waits for submits in progress."""
        end = time.monotonic() + _CANCEL_S
        asked: set[asyncio.Task[None]] = set()
        while self._following and time.monotonic() < end:
            fresh = {task: one for task, one in self._following.items() if one is not None and task not in asked}
            asked |= set(fresh)
            await asyncio.gather(*(one.cancel() for one in fresh.values()), return_exceptions=True)
            if self._following:
                await asyncio.wait(list(self._following), timeout=0.1, return_when=asyncio.FIRST_COMPLETED)
        for task in list(self._following):
            task.cancel()
