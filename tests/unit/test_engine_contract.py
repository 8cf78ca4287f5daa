"""The engine contract, one suite over all engines: the default one and those of the tests."""

from __future__ import annotations

import subprocess
import sys
import threading
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import pytest
import torch

from tests.engines import CountingEngine, ScriptedEngine, counted_token
from tests.unit.test_engine_batching import CONTEXT, VOCABULARY, loaded
from tests.unit.test_engine_sick import SICK, llama, made
from tokenrelay.shared.errors import EngineError
from tokenrelay.worker.engine.admission import Overflow, admit
from tokenrelay.worker.engine.contract import (
    INVALID_LOGITS,
    Engine,
    EngineDied,
    EngineOutput,
    EngineRequest,
)
from tokenrelay.worker.engine.output_queue import OutputQueue
from tokenrelay.worker.engine.transformers.batching import TransformersEngine
from tokenrelay.worker.engine.transformers.kv_cache import EngineSettings
from tokenrelay.worker.sampling.params import SamplingParams

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tokenrelay.worker.engine.contract import EngineMessage

REQUEST = EngineRequest("1:a", (1, 2, 3), (), 12, SamplingParams(1.0, 0, 1.0, seed=4))
CHUNK = 8
"""Tokens of a prompt that are prefilled in one step."""
DIES_AFTER = 4
"""Tokens of a request that runs alone."""
SICK_SEED = 1313


def counting(**chosen: Any) -> Engine:
    settings: dict[str, Any] = {"vocabulary": VOCABULARY - 1, "context_tokens": CONTEXT, "chunk_tokens": CHUNK}
    return CountingEngine(**settings, **chosen, sick_seed=SICK_SEED)


def scripted(**chosen: Any) -> Engine:
    settings: dict[str, Any] = {"vocabulary": VOCABULARY - 1, "context_tokens": CONTEXT, "chunk_tokens": CHUNK}
    script = [(position * 7) % SICK for position in range(CONTEXT)]
    return ScriptedEngine(script, **settings, **chosen, sick_seed=SICK_SEED)


class UncheckedEngine(TransformersEngine):
    """Serves what its self-test would refuse."""

    def prepare(self) -> None:
        self.allocate()


def batched(slots: int = 8, eos_token_id: int | None = None, fail_after: int | None = None) -> Engine:
    model, steps = made(llama, value=torch.nan), 0

    def fail(*_: object) -> None:
        nonlocal steps
        steps += 1
        if fail_after is not None and steps > fail_after:
            raise RuntimeError("device-side assert")

    model.register_forward_pre_hook(fail)
    ends = frozenset() if eos_token_id is None else frozenset({eos_token_id})
    return UncheckedEngine(loaded(ends, model), EngineSettings(slots, max_batch_tokens=CHUNK))


@dataclass(frozen=True, slots=True)
class Kind:
    """An engine under test: how it is made, and which request it gives up."""

    make: Callable[..., Engine]
    sick: EngineRequest


SICK_BY_SEED = replace(REQUEST, engine_id="sick", sampling=replace(REQUEST.sampling, seed=SICK_SEED))
KINDS = {
    "counting": Kind(counting, SICK_BY_SEED),
    "scripted": Kind(scripted, SICK_BY_SEED),
    "transformers": Kind(batched, replace(REQUEST, engine_id="sick", prompt_ids=(1, SICK))),
}


class Running:
    """A started engine, and what it delivers."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.messages: list[EngineMessage] = []
        self.progress_at: list[int] = []
        """The engine's progress at each message."""
        self._queue = OutputQueue()
        engine.prepare()
        engine.start(self._deliver)

    def _deliver(self, message: EngineMessage) -> None:
        self.messages.append(message)
        self.progress_at.append(self.engine.progress)
        self._queue.deliver(message)

    def wait(self) -> list[EngineOutput]:
        """The next outputs."""
        outputs = self._queue.get(60.0)
        assert outputs, "the engine delivers nothing"
        return outputs

    def collect(self, *requests: EngineRequest) -> list[EngineOutput]:
        """Add the requests; all outputs until all of them have left."""
        waiting, outputs = {request.engine_id for request in requests}, list[EngineOutput]()
        for request in requests:
            self.engine.add(request)
        while waiting:
            outputs += (received := self.wait())
            waiting -= {output.engine_id for output in received if output.is_last}
        return outputs


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> Kind:
    return KINDS[request.param]


@pytest.fixture
def start(kind: Kind) -> Iterator[Callable[..., Running]]:
    threads, started = torch.get_num_threads(), list[Running]()
    torch.set_num_threads(1)

    def begin(**settings: int) -> Running:
        started.append(Running(kind.make(**settings)))
        return started[-1]

    yield begin
    for running in started:
        running.engine.stop()
    torch.set_num_threads(threads)


def tokens(outputs: list[EngineOutput], engine_id: str) -> list[int]:
    return [token_id for output in outputs if output.engine_id == engine_id for token_id in output.token_ids]


def many(count: int, prefix: str = "many") -> list[EngineRequest]:
    return [
        replace(REQUEST, engine_id=f"{prefix}-{seed}", sampling=SamplingParams(1.0, 0, 1.0, seed))
        for seed in range(count)
    ]


def test_a_request_gets_its_budget_and_ends_as_length(start: Callable[..., Running]) -> None:
    outputs = start().collect(REQUEST)
    assert len(tokens(outputs, "1:a")) == 12
    assert [output.finish_reason for output in outputs if output.is_last] == ["length"]
    assert outputs[-1].is_last


def test_a_request_is_resumed_with_the_same_tokens_at_any_cut(start: Callable[..., Running]) -> None:
    running = start()
    whole = tokens(running.collect(REQUEST), "1:a")
    cuts = [replace(REQUEST, engine_id=f"cut-{cut}", emitted_ids=tuple(whole[:cut])) for cut in range(13)]
    resumed = running.collect(*cuts)
    for cut, request in enumerate(cuts):
        assert tokens(resumed, request.engine_id) == whole[cut:], cut
        assert [each.finish_reason for each in resumed if each.engine_id == request.engine_id][-1] == "length", cut


def test_a_full_house_gives_each_request_the_tokens_that_it_has_alone(start: Callable[..., Running]) -> None:
    running = start(slots=3)
    together = running.collect(*many(8))
    for request in many(8):
        alone = running.collect(replace(request, engine_id="alone-" + request.engine_id))
        assert tokens(alone, "alone-" + request.engine_id) == tokens(together, request.engine_id)


def test_a_message_holds_at_most_one_output_of_a_request_and_no_more_requests_than_slots(
    start: Callable[..., Running],
) -> None:
    running = start(slots=3)
    running.collect(*many(8))
    assert running.engine.capabilities.slots == 3
    for message in running.messages:
        assert not isinstance(message, EngineDied)
        ids = [output.engine_id for output in message.outputs]
        assert 1 <= len(ids) == len(set(ids)) <= 3


def test_a_cancel_frees_the_slot_and_ends_nothing(start: Callable[..., Running]) -> None:
    running = start(slots=1)
    running.engine.add(replace(REQUEST, engine_id="long", max_new_tokens=CONTEXT - 3))
    running.wait()
    running.engine.cancel("long")
    running.engine.cancel("unknown")
    after = running.collect(replace(REQUEST, engine_id="next"))
    own = [index for index, output in enumerate(after) if output.engine_id == "next"]
    assert len(tokens(after, "next")) == 12
    assert {output.engine_id for output in after[own[0] :]} == {"next"}
    assert not any(output.is_last for output in after if output.engine_id == "long")


def test_a_request_that_the_engine_gives_up_fails_alone(kind: Kind, start: Callable[..., Running]) -> None:
    running = start()
    outputs = running.collect(*many(3), kind.sick, *many(3, "later"))
    failed = [output for output in outputs if output.engine_id == "sick"][-1]
    assert (failed.error, failed.finish_reason, failed.token_ids) == (INVALID_LOGITS, None, ())
    for seed in range(3):
        assert tokens(outputs, f"many-{seed}") == tokens(outputs, f"later-{seed}")
        assert len(tokens(outputs, f"many-{seed}")) == 12
    assert len(tokens(running.collect(replace(REQUEST, engine_id="after")), "after")) == 12


def test_a_death_comes_once_after_the_last_outputs_and_ends_no_request(start: Callable[..., Running]) -> None:
    running = start(fail_after=DIES_AFTER)
    running.engine.add(REQUEST)
    outputs = list[EngineOutput]()
    with pytest.raises(EngineError):  # noqa: PT012
        while True:
            outputs += running.wait()
    assert len(tokens(outputs, "1:a")) == DIES_AFTER
    assert not any(output.is_last for output in outputs)
    with pytest.raises(EngineError):
        running.engine.add(replace(REQUEST, engine_id="1:c"))
    running.engine.stop()
    assert [isinstance(message, EngineDied) for message in running.messages] == [False] * DIES_AFTER + [True]


def test_a_stop_is_no_death(start: Callable[..., Running]) -> None:
    running = start()
    running.engine.add(replace(REQUEST, max_new_tokens=CONTEXT - 3))
    running.wait()
    running.engine.stop()
    with pytest.raises(EngineError, match="stopped"):
        running.engine.add(replace(REQUEST, engine_id="1:b"))
    assert not any(isinstance(message, EngineDied) for message in running.messages)


def test_a_long_prefill_is_progress_before_its_first_token(start: Callable[..., Running]) -> None:
    """40 tokens at 8 a step: an engine that only counted what it delivers would look hung for the first four."""
    running = start()
    before = running.engine.progress
    running.collect(replace(REQUEST, prompt_ids=tuple(range(5 * CHUNK)), max_new_tokens=1))
    assert running.progress_at[0] - before >= 5


def test_an_end_token_ends_a_request_and_is_not_emitted(start: Callable[..., Running]) -> None:
    whole = tokens(start().collect(REQUEST), "1:a")
    running = start(eos_token_id=whole[5])
    outputs = running.collect(REQUEST)
    assert tokens(outputs, "1:a") == whole[: whole.index(whole[5])]
    assert outputs[-1].finish_reason == "stop"
    ignoring = running.collect(replace(REQUEST, engine_id="ignoring", ignore_eos=True))
    assert tokens(ignoring, "ignoring") == whole
    assert ignoring[-1].finish_reason == "length"


@pytest.mark.parametrize("keep", [False, True])
def test_a_stop_token_ends_a_request_and_is_emitted_where_it_is_kept(start: Callable[..., Running], keep: bool) -> None:
    running = start()
    whole = tokens(running.collect(REQUEST), "1:a")
    end = whole.index(whole[5])
    sampling = replace(REQUEST.sampling, stop_token_ids=(whole[5],))
    stopped = replace(
        REQUEST, engine_id="stopped", sampling=sampling, kept_end_ids=frozenset(sampling.stop_token_ids if keep else ())
    )
    outputs = running.collect(stopped)
    assert tokens(outputs, "stopped") == whole[: end + keep]
    assert outputs[-1].finish_reason == "stop"
    emitted = tuple(whole[:end])
    resumed = running.collect(replace(stopped, engine_id="resumed", emitted_ids=emitted))
    assert tokens(resumed, "resumed") == whole[end : end + keep]
    assert resumed[-1].finish_reason == "stop"


def test_a_request_may_fill_the_context(start: Callable[..., Running]) -> None:
    running = start()
    context = running.engine.capabilities.context_tokens
    budget = admit(3, 0, None, context)
    assert budget == context - 3
    outputs = running.collect(replace(REQUEST, max_new_tokens=budget))
    assert (len(tokens(outputs, "1:a")), outputs[-1].finish_reason) == (budget, "length")


def test_an_id_is_refused_twice(start: Callable[..., Running]) -> None:
    running = start()
    running.engine.add(replace(REQUEST, max_new_tokens=CONTEXT - 3))
    with pytest.raises(ValueError, match="already"):
        running.engine.add(REQUEST)


def test_requests_may_come_and_go_from_several_threads(start: Callable[..., Running]) -> None:
    running, kept = start(slots=4), many(16, "kept")

    def come_and_go(number: int) -> None:
        for each in many(20, f"gone-{number}"):
            running.engine.add(each)
            running.engine.cancel(each.engine_id)

    threads = [threading.Thread(target=come_and_go, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    outputs = running.collect(*kept)
    for thread in threads:
        thread.join()
    assert all(len(tokens(outputs, request.engine_id)) == 12 for request in kept)


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
    check = "import sys, tokenrelay.worker.engine.factory, tokenrelay.worker.text; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0


def test_the_counting_engine_counts() -> None:
    running = Running(CountingEngine())
    expected = [counted_token(4, position, 1000) for position in range(1, 13)]
    assert tokens(running.collect(REQUEST), "1:a") == expected
    running.engine.stop()
