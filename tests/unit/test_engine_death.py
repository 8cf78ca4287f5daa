"""How the default engine dies: a step that raises, a thread that ends, and a stop, which is no death."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.polled_engine import PolledEngine
from tests.unit.test_engine_batching import loaded, request
from tests.waiting import wait_until
from tokenrelay.shared.errors import EngineError
from tokenrelay.worker.engine.transformers.kv_cache import EngineSettings

if TYPE_CHECKING:
    from tokenrelay.worker.engine.contract import EngineOutput


def collect_for_ever(engine: PolledEngine, given: list[EngineOutput]) -> None:
    while True:
        given += engine.outputs(1.0)


def test_engine_death_is_an_engine_error_after_the_last_tokens() -> None:
    model = loaded()
    engine = PolledEngine(model, EngineSettings(slots=2))
    calls = 0

    def fail_later(*_: object) -> None:
        nonlocal calls
        calls += 1
        if calls > 4:
            raise RuntimeError("device-side assert")

    model.model.register_forward_pre_hook(fail_later)
    engine.begin()
    try:
        engine.add(request("doomed"))
        given: list[EngineOutput] = []
        with pytest.raises(EngineError, match="device-side assert"):
            collect_for_ever(engine, given)
        assert sum(len(output.token_ids) for output in given) == 4
        assert all(output.finish_reason is None for output in given)
        with pytest.raises(EngineError, match="device-side assert"):
            engine.add(request("late"))
        with pytest.raises(EngineError, match="device-side assert"):
            engine.outputs(0.0)
    finally:
        engine.stop()


def test_engine_whose_thread_ended_is_dead() -> None:
    engine = PolledEngine(loaded(), EngineSettings(slots=2))
    engine.begin()
    engine.stop()
    with pytest.raises(EngineError, match="stopped"):
        engine.add(request("late"))
    assert engine.outputs(0.0) == [], "a stop is no death"


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_engine_whose_thread_ends_without_an_error_is_delivered_as_dead() -> None:
    """The manager catches every Exception of its thread and fails its requests; of anything else it says nothing."""
    model = loaded()

    def end(*_: object) -> None:
        raise SystemExit

    model.model.register_forward_pre_hook(end)
    engine = PolledEngine(model, EngineSettings(slots=2))
    engine.begin()
    try:
        engine.add(request("doomed"))
        with pytest.raises(EngineError, match="its thread ended"):
            collect_for_ever(engine, [])
    finally:
        engine.stop()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_an_engine_that_died_before_its_start_is_delivered_as_dead() -> None:
    """A worker may wait for Redis between the two: it must claim nothing for a dead engine."""
    model = loaded()

    def end(*_: object) -> None:
        raise SystemExit

    model.model.register_forward_pre_hook(end)
    engine = PolledEngine(model, EngineSettings(slots=2))
    engine.allocate()
    try:
        engine.add(request("doomed"))
        wait_until(lambda: engine._death is not None)
        engine.begin()
        with pytest.raises(EngineError, match="its thread ended"):
            engine.outputs(0.0)
    finally:
        engine.stop()
