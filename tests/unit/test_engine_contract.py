"""The engine's contract: admission, and that the counting engine of the tests keeps it."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from typing import Any

import pytest

from tests.engines import CountingEngine, counted_token
from tokenrelay.shared.errors import EngineError
from tokenrelay.worker.engine.admission import Overflow, admit
from tokenrelay.worker.engine.contract import Engine, EngineOutput, EngineRequest
from tokenrelay.worker.engine.output_queue import OutputQueue
from tokenrelay.worker.sampling.params import SamplingParams

REQUEST = EngineRequest("1:a", (1, 2, 3), (), 5, SamplingParams(1.0, 0, 1.0, seed=4))


class Started:
    """An engine and what it delivers."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.queue = OutputQueue()
        engine.prepare()
        engine.start(self.queue.deliver)

    def collect(self, *requests: EngineRequest) -> list[EngineOutput]:
        """Add the requests; all outputs until all of them have left."""
        waiting, outputs = {request.engine_id for request in requests}, list[EngineOutput]()
        for request in requests:
            self.engine.add(request)
        while waiting:
            outputs += (received := self.queue.get(10.0))
            assert received, waiting
            waiting -= {output.engine_id for output in received if output.is_last}
        return outputs


def started(**settings: Any) -> Started:
    return Started(CountingEngine(**settings))


def tokens(outputs: list[EngineOutput], engine_id: str) -> list[int]:
    return [token_id for output in outputs if output.engine_id == engine_id for token_id in output.token_ids]


@pytest.mark.parametrize(
    ("prompt", "emitted", "budget", "context", "admitted"),
    [
        (10, 0, 20, 100, 20),
        (10, 0, 200, 100, 90),
        (99, 0, 5, 100, 1),
        (10, 40, 200, 100, 90),
        (50, 60, 200, 100, 60),
        (10, 0, None, 100, 90),
        (50, 60, None, 100, 60),
    ],
)
def test_admit_cuts_the_budget_to_what_fits(
    prompt: int, emitted: int, budget: int | None, context: int, admitted: int
) -> None:
    assert admit(prompt, emitted, budget, context) == admitted


def test_admit_overflows_without_room_for_one_token() -> None:
    assert admit(100, 0, 5, 100) == Overflow(prompt_tokens=100, context_tokens=100)


def test_the_contract_needs_no_torch() -> None:
    check = "import sys, tokenrelay.worker.engine, tokenrelay.worker.text; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0


def test_counting_engine_resumes_at_any_cut() -> None:
    running = started()
    whole = running.collect(REQUEST)
    assert tokens(whole, "1:a") == [counted_token(4, position, 1000) for position in range(1, 6)]
    assert whole[-1].finish_reason == "length"
    for cut in range(6):
        emitted = tuple(tokens(whole, "1:a")[:cut])
        rest = running.collect(replace(REQUEST, engine_id=f"cut{cut}", emitted_ids=emitted))
        assert emitted + tuple(tokens(rest, f"cut{cut}")) == tuple(tokens(whole, "1:a"))
        assert rest[-1].finish_reason == "length"


def test_counting_engine_fills_slots_and_frees_them() -> None:
    running = started(slots=1)
    running.engine.add(replace(REQUEST, max_new_tokens=4000))
    running.engine.add(replace(REQUEST, engine_id="1:b"))
    assert {output.engine_id for output in running.queue.get(10.0)} == {"1:a"}
    running.engine.cancel("1:a")
    assert {output.engine_id for output in running.collect(replace(REQUEST, engine_id="1:c"))} >= {"1:b", "1:c"}


def test_counting_engine_stops_at_eos_unless_told_not_to() -> None:
    end = counted_token(4, 3, 1000)
    running = started(eos_token_id=end)
    outputs = running.collect(REQUEST)
    assert len(tokens(outputs, "1:a")) == 2
    assert outputs[-1] == EngineOutput("1:a", (), "stop")
    assert len(tokens(running.collect(replace(REQUEST, ignore_eos=True)), "1:a")) == 5


def test_counting_engine_dies_after_its_tokens_and_ends_nothing() -> None:
    running = started(fail_after=3)
    running.engine.add(REQUEST)
    outputs = list[EngineOutput]()
    with pytest.raises(EngineError, match="fail_after"):  # noqa: PT012
        while True:
            outputs += running.queue.get(10.0)
    assert sum(len(output.token_ids) for output in outputs) == 3
    assert all(output.finish_reason is None for output in outputs)
    with pytest.raises(EngineError):
        running.engine.add(replace(REQUEST, engine_id="1:c"))
