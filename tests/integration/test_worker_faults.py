"""A request whose handling goes wrong in the worker: it fails alone, and an end of the worker counts as a crash."""

from __future__ import annotations

import threading
from contextlib import suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import numpy
import pytest
from transformers import PreTrainedTokenizerFast

from tests.engines import CountingEngine, counted_token
from tests.integration.test_fleet import Blocked
from tests.integration.test_worker import ended, result, state, words
from tests.unit.test_prompt import ENDLESS
from tests.waiting import wait_until
from tests.workers import VOCABULARY, running_worker, submit
from tests.workers import words as word_model
from tokenrelay.shared.errors import EngineError
from tokenrelay.shared.wire import keys
from tokenrelay.shared.wire.entries import State
from tokenrelay.worker.engine.contract import EngineOutput

if TYPE_CHECKING:
    from collections.abc import Callable

    from redis import Redis

    from tests.redis_servers import RedisServer
    from tokenrelay.shared.redis.batches import Pipeline
    from tokenrelay.worker.engine.contract import EngineRequest

NOW = datetime.now(UTC)
SICK = 3
"""The seed of the request that goes wrong."""
AT = 5
"""The token of it that does."""
BAD = counted_token(SICK, AT, VOCABULARY)
HEALTHY = [seed for seed in range(40) if all(counted_token(seed, index, VOCABULARY) != BAD for index in range(1, 60))][
    :7
]


LENGTHS = [(HEALTHY[0], 3), (HEALTHY[1], 20), (HEALTHY[2], 60)]
"""Of requests, by seed: the ends of the first ones come while the last one runs."""


class Panic(BaseException):
    """As pyo3's PanicException, with which a tokenizer in Rust panics: no Exception."""


class Fussy(PreTrainedTokenizerFast):
    """Does `at_decode` where it's to decode the token BAD, and `at_encode` for a prompt that holds its word."""

    at_decode: Callable[[], Any] | None = None
    at_encode: Callable[[], Any] | None = None

    def decode(self, token_ids: Any, *arguments: Any, **named: Any) -> Any:
        if self.at_decode and BAD in list(token_ids):
            return self.at_decode()
        return super().decode(token_ids, *arguments, **named)

    def __call__(self, text: Any = None, *arguments: Any, **named: Any) -> Any:
        if self.at_encode and f"w{BAD}" in str(text).split():
            return self.at_encode()
        return super().__call__(text, *arguments, **named)


def fussy(**chosen: Callable[[], Any]) -> Fussy:
    tokenizer = Fussy(tokenizer_object=word_model(), unk_token="<unk>")  # type: ignore[no-untyped-call]
    for name, do in chosen.items():
        setattr(tokenizer, name, do)
    return tokenizer


def raising(error: BaseException) -> Callable[[], Any]:
    def do() -> Any:
        raise error

    return do


def slow(**chosen: Any) -> CountingEngine:
    return CountingEngine(vocabulary=VOCABULARY, step_delay_s=0.01, **chosen)


def check_fails_alone(redis: Redis, sick: str, healthy: dict[int, str], caplog: pytest.LogCaptureFixture) -> None:
    got = result(redis, sick)
    assert (got.state, got.code) == (State.FAILED, "internal_error")
    assert got.text == words(SICK, AT - 1)[: len(got.text)]
    for seed, request_id in healthy.items():
        assert result(redis, request_id).text == words(seed, 40)
        assert redis.hget(keys.request(request_id), "attempt") == b"1"
    traces = [record for record in caplog.records if record.exc_info and sick in record.getMessage()]
    assert len(traces) == 1, "the traceback is logged, once"


@pytest.mark.slow
def test_a_chat_template_that_never_ends_fails_its_request_alone(
    redis_server: RedisServer, redis: Redis, pipeline: Pipeline
) -> None:
    """It's interrupted: the worker isn't killed as hung, and nothing that it holds is begun again."""
    tokenizer = fussy()
    tokenizer.chat_template = ENDLESS
    with running_worker(redis_server.url, slow(), tokenizer=tokenizer):
        healthy = {seed: submit(pipeline, NOW, seed=seed, max_new_tokens=40) for seed in HEALTHY[:4]}
        sick = submit(pipeline, NOW, **{"prompt": None, "messages": [{"role": "user", "content": "w1"}]})  # type: ignore[arg-type]
        healthy |= {seed: submit(pipeline, NOW, seed=seed, max_new_tokens=40) for seed in HEALTHY[4:]}
        got = result(redis, sick)
        assert (got.state, got.code) == (State.FAILED, "invalid_request")
        assert "chat template took longer" in (got.message or "")
        for seed, request_id in healthy.items():
            assert result(redis, request_id).text == words(seed, 40)
            assert redis.hget(keys.request(request_id), "attempt") == b"1"


@pytest.mark.parametrize(
    "do",
    [
        raising(IndexError("piece id is out of range")),
        raising(ValueError("odd")),
        raising(UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid")),
        raising(MemoryError()),
        raising(SystemExit(3)),
        raising(KeyboardInterrupt()),
        raising(Panic()),
        lambda: None,
        lambda: ["a", "list"],
        lambda: " \ud800",
    ],
    ids=["index", "value", "unicode", "memory", "exit", "interrupt", "panic", "none", "list", "surrogate"],
)
def test_a_token_that_cant_be_decoded_fails_its_request_alone(
    redis_server: RedisServer,
    redis: Redis,
    pipeline: Pipeline,
    caplog: pytest.LogCaptureFixture,
    do: Callable[[], Any],
) -> None:
    with running_worker(redis_server.url, slow(), tokenizer=fussy(at_decode=do)):
        healthy = {seed: submit(pipeline, NOW, seed=seed, max_new_tokens=40) for seed in HEALTHY}
        sick = submit(pipeline, NOW, seed=SICK, max_new_tokens=40)
        check_fails_alone(redis, sick, healthy, caplog)
        assert result(redis, submit(pipeline, NOW, seed=HEALTHY[0])).state is State.INCOMPLETE


@pytest.mark.parametrize(
    "do",
    [
        raising(TypeError("odd")),
        raising(SystemExit(3)),
        raising(Panic()),
        lambda: {"input_ids": [numpy.float32(1)], "special_tokens_mask": [0]},
        lambda: None,
    ],
    ids=["type", "exit", "panic", "numpy", "none"],
)
def test_a_prompt_that_cant_be_encoded_fails_its_request_alone(
    redis_server: RedisServer,
    redis: Redis,
    pipeline: Pipeline,
    caplog: pytest.LogCaptureFixture,
    do: Callable[[], Any],
) -> None:
    with running_worker(redis_server.url, slow(), tokenizer=fussy(at_encode=do)):
        healthy = {seed: submit(pipeline, NOW, seed=seed, max_new_tokens=40) for seed in HEALTHY}
        sick = submit(pipeline, NOW, seed=SICK, prompt=f"w1 w{BAD}")
        check_fails_alone(redis, sick, healthy, caplog)


def test_a_prompt_whose_texts_arent_unicode_is_answered(
    redis_server: RedisServer, redis: Redis, pipeline: Pipeline
) -> None:
    """They are for people to look at."""
    with running_worker(redis_server.url, tokenizer=fussy(at_decode=lambda: "\ud800")):
        assert result(redis, submit(pipeline, NOW, seed=HEALTHY[0], prompt=f"w1 w{BAD}")).state is State.INCOMPLETE


def test_tokens_that_cant_be_replayed_fail_their_request_alone(
    redis_server: RedisServer, redis: Redis, pipeline: Pipeline, caplog: pytest.LogCaptureFixture
) -> None:
    """The first worker's tokenizer could decode them, the second one's can't."""
    with running_worker(redis_server.url, slow(), drain_timeout_s=0.0):
        sick = submit(pipeline, NOW, seed=SICK, max_new_tokens=500)
        wait_until(lambda: redis.xlen(keys.stream(sick)) >= AT + 3)
    with running_worker(redis_server.url, slow(), tokenizer=fussy(at_decode=raising(IndexError()))):
        healthy = {seed: submit(pipeline, NOW, seed=seed, max_new_tokens=40) for seed in HEALTHY}
        got = result(redis, sick)
        assert (got.state, got.code) == (State.FAILED, "internal_error")
        assert got.text.startswith(words(SICK, AT))
        for seed, request_id in healthy.items():
            assert result(redis, request_id).text == words(seed, 40)


class OddEngine(CountingEngine):
    """Does `odd` with the request whose seed is SICK: at its addition, or with its fifth token's output."""

    def __init__(self, *, at_add: BaseException | None = None, odd: tuple[Any, Any] | None = None) -> None:
        super().__init__(vocabulary=VOCABULARY, step_delay_s=0.01)
        self._at_add, self._odd = at_add, odd
        self._sick: dict[str, int] = {}

    def add(self, request: EngineRequest) -> None:
        if request.sampling.seed == SICK:
            if self._at_add is not None:
                raise self._at_add
            self._sick[request.engine_id] = 0
        super().add(request)

    def step(self) -> list[EngineOutput]:
        return [self._made_odd(output) for output in super().step()]

    def _made_odd(self, output: EngineOutput) -> EngineOutput:
        if output.engine_id not in self._sick or self._odd is None:
            return output
        self._sick[output.engine_id] += 1
        return EngineOutput(output.engine_id, *self._odd) if self._sick[output.engine_id] == AT else output


@pytest.mark.parametrize(
    "engine",
    [
        lambda: OddEngine(at_add=ValueError("weren't admitted")),
        lambda: OddEngine(at_add=IndexError("too long")),
        lambda: OddEngine(at_add=Panic()),
        lambda: OddEngine(odd=((10**30,), None)),
        lambda: OddEngine(odd=((-1,), None)),
        lambda: OddEngine(odd=(("w1",), None)),
        lambda: OddEngine(odd=(None, "stop")),
    ],
    ids=["value at add", "index at add", "panic at add", "huge token", "negative token", "no number", "no tokens"],
)
def test_what_the_engine_does_to_one_request_fails_it_alone(
    redis_server: RedisServer,
    redis: Redis,
    pipeline: Pipeline,
    caplog: pytest.LogCaptureFixture,
    engine: Callable[[], OddEngine],
) -> None:
    with running_worker(redis_server.url, engine(), slots=4):
        sick = submit(pipeline, NOW, seed=SICK, max_new_tokens=40)
        healthy = {seed: submit(pipeline, NOW, seed=seed, max_new_tokens=40) for seed in HEALTHY}
        check_fails_alone(redis, sick, healthy, caplog)


class Stranger(CountingEngine):
    """Gives outputs of requests that nobody asked for, and each output of a known one twice at the end."""

    def step(self) -> list[EngineOutput]:
        given = super().step()
        return [EngineOutput("9:stranger", (1,), None), *given, *(each for each in given if each.finish_reason)]


def test_outputs_of_strangers_and_repeated_ends_change_nothing(
    redis_server: RedisServer, redis: Redis, pipeline: Pipeline
) -> None:
    with running_worker(redis_server.url, Stranger(vocabulary=VOCABULARY, step_delay_s=0.01)):
        ids = {seed: submit(pipeline, NOW, seed=seed, max_new_tokens=40) for seed in HEALTHY}
        for seed, request_id in ids.items():
            assert result(redis, request_id).text == words(seed, 40)


class Dying(CountingEngine):
    """Its first step with the sick request raises, as a fault of the engine's or the worker's own code does."""

    def __init__(self, error: BaseException) -> None:
        super().__init__(vocabulary=VOCABULARY, step_delay_s=0.01)
        self._error = error
        self._sick: set[str] = set()

    def add(self, request: EngineRequest) -> None:
        super().add(request)
        if request.sampling.seed == SICK:
            self._sick.add(request.engine_id)

    def step(self) -> list[EngineOutput]:
        given = super().step()
        if self._sick:
            raise self._error
        return given


@pytest.mark.parametrize("error", [RuntimeError("a fault"), EngineError("dead"), Panic(), SystemExit(1)], ids=repr)
def test_whatever_ends_a_worker_is_a_crash_of_what_it_held(
    redis_server: RedisServer, redis: Redis, pipeline: Pipeline, error: BaseException
) -> None:
    """So it can't go on for ever: the request that does it is failed as poison, and the others are answered."""
    healthy: dict[int, str] = {}
    sick = submit(pipeline, NOW, seed=SICK, max_new_tokens=40)
    for crashes in (b"1", b"2", b"3"):
        with pytest.raises(type(error)), running_worker(redis_server.url, Dying(error)):
            wait_until(lambda crashes=crashes: redis.hget(keys.request(sick), "crashes") == crashes)  # type: ignore[misc]
        healthy[HEALTHY[len(healthy)]] = submit(pipeline, NOW, seed=HEALTHY[len(healthy)], max_new_tokens=40)
    with running_worker(redis_server.url):
        assert result(redis, sick).code == "poison_request"
        for seed, request_id in healthy.items():
            assert result(redis, request_id).text == words(seed, 40)


class Unstoppable(CountingEngine):
    """`what` raises once the worker stops."""

    def __init__(self, what: str) -> None:
        super().__init__(vocabulary=VOCABULARY, step_delay_s=0.01)
        self._what = what
        self.stopping = False

    def cancel(self, engine_id: str) -> None:
        self._raise_at("cancel")
        super().cancel(engine_id)

    def stop(self) -> None:
        super().stop()
        self._raise_at("stop")

    def _raise_at(self, what: str) -> None:
        if self.stopping and what == self._what:
            raise RuntimeError(f"{what} failed")


@pytest.mark.parametrize("what", ["cancel", "stop"])
def test_a_worker_ends_whatever_raises_while_it_hands_back(
    redis_server: RedisServer, redis: Redis, pipeline: Pipeline, what: str
) -> None:
    engine = Unstoppable(what)
    with suppress(RuntimeError), running_worker(redis_server.url, engine, drain_timeout_s=0.0):
        request_id = submit(pipeline, NOW, max_new_tokens=5000)
        wait_until(lambda: redis.xlen(keys.stream(request_id)) >= 5)
        engine.stopping = True
    left = [thread for thread in threading.enumerate() if thread.name in ("heartbeat", "intake")]
    assert left == [], "a thread of the worker's keeps the process alive"
    assert state(redis, request_id) == "in_progress"
    assert redis.hget(keys.request(request_id), "fence") == b"", "handed back all the same"
    assert not ended(redis, request_id)


def test_rqs_keys_that_dont_answer_keep_no_token_waiting(
    redis_server: RedisServer, redis: Redis, pipeline: Pipeline
) -> None:
    """Ends were sent to RQ by the thread that sends tokens: one that took a second took it from every stream."""
    blocked = Blocked(redis)
    with running_worker(redis_server.url, slow()) as worker:
        worker.threads.jobs.pipeline = blocked
        ids = {seed: submit(pipeline, NOW, seed=seed, max_new_tokens=length) for seed, length in LENGTHS}
        try:
            for (seed, length), request_id in zip(LENGTHS, ids.values(), strict=True):
                assert result(redis, request_id).text == words(seed, length)
            assert blocked.asked.is_set()
            assert worker.threads.loop.publisher.closings.unacknowledged
        finally:
            blocked.answers.set()
        wait_until(lambda: {redis.hget(keys.rq_job(each), "status") for each in ids.values()} == {b"finished"})
