"""Grammars compiled beside a worker's other work: who waits for what, and what a failed compilation means."""

from __future__ import annotations

import re
import threading
from dataclasses import replace
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

import pytest
from pydantic import SecretStr

from tests.grammars import save_tiny_model
from tests.structured import MODEL, PLAIN, Weather, compiling, tiny_worker, was_refused
from tests.waiting import wait_until
from tokenrelay.producer import Producer
from tokenrelay.shared.redis.batches import Pipeline
from tokenrelay.shared.settings import WorkerSettings
from tokenrelay.shared.wire import keys
from tokenrelay.shared.wire.entries import State
from tokenrelay.worker.core.figures import Figures
from tokenrelay.worker.core.messages import Claims, JobsQueued, Leave, Poll, PollDone
from tokenrelay.worker.intake.intake import Intake
from tokenrelay.worker.intake.poller import Poller
from tokenrelay.worker.sampling.grammar.grammar import GrammarError
from tokenrelay.worker.sampling.grammar.matcher import AnswerMask
from tokenrelay.worker.sampling.grammar.trial import Trial
from tokenrelay.worker.serving.model import serve

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from redis import Redis

    from tests.redis_servers import RedisServer
    from tokenrelay.worker.core.messages import Message
    from tokenrelay.worker.engine.contract import Engine, EngineRequest
    from tokenrelay.worker.sampling.grammar.grammar import Grammar
    from tokenrelay.worker.serving.model import Served


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model") / MODEL
    save_tiny_model(folder)
    return folder


def handed_back(producer: Producer, url: str, folder: Path) -> Any:
    """A request that a worker began and gave back."""
    with tiny_worker(url, folder, drain_timeout_s=0.0) as first:
        form: Any = {"type": "regex", "value": "[a-z]{500}"}
        generation = producer.submit("Hi", response_format=form, **{**PLAIN, "max_new_tokens": 700})
        wait_until(lambda: generation.status().tokens > 3)
        first.stop()
        first.stop()
    return generation


class OtherTrial(Trial):
    """Does `before` before it compiles."""

    def __init__(self, before: Callable[[Grammar], None]) -> None:
        super().__init__()
        self._before = before

    def compile(self, grammar: Grammar) -> str:
        self._before(grammar)
        return super().compile(grammar)


def test_a_worker_that_takes_too_long_to_compile_gives_the_request_back(
    redis_server: RedisServer, redis: Redis, folder: Path
) -> None:
    """Its grammar was compiled by the worker that began it: it fits, and its answer isn't cut off."""

    def too_long(_: Grammar) -> None:
        raise GrammarError("compiling it takes more than 1 s")

    with Producer(url=redis_server.url) as producer:
        generation = handed_back(producer, redis_server.url, folder)
        with tiny_worker(redis_server.url, folder, compiling(trial=lambda: OtherTrial(too_long))):
            wait_until(lambda: was_refused(redis, keys.rq_job(generation.request_id)))
            assert generation.status().state is State.IN_PROGRESS
            generation.cancel()


def test_a_worker_that_cannot_compile_gives_the_request_back(
    redis_server: RedisServer, redis: Redis, folder: Path
) -> None:
    """Of a host without memory for the process that compiles, say: it's no fault of the request."""
    with Producer(url=redis_server.url) as producer:
        with tiny_worker(redis_server.url, folder, compiling(trial=lambda: Trial(("false",)))):
            generation = producer.submit("Hi", response_format=Weather, **PLAIN)
            wait_until(lambda: was_refused(redis, keys.rq_job(generation.request_id)))
            assert generation.status().state is State.QUEUED
        with tiny_worker(redis_server.url, folder):
            assert isinstance(generation.parsed(), Weather)


def test_others_pass_a_request_whose_grammar_is_compiled(redis_server: RedisServer, folder: Path) -> None:
    """With other grammars, or none: a hostile one's second isn't theirs."""
    let_go = threading.Event()

    def wait(grammar: Grammar) -> None:
        if grammar.text == "slow":
            let_go.wait()

    forms: list[Any] = [{"type": "regex", "value": each} for each in ("slow", "fast")]
    with (
        Producer(url=redis_server.url) as producer,
        tiny_worker(redis_server.url, folder, compiling(trial=lambda: OtherTrial(wait))),
    ):
        try:
            slow, fast = (producer.submit("Hi", response_format=form, **PLAIN) for form in forms)
            plain = producer.submit("Hi", **PLAIN)
            assert fast.result().text == "fast"
            assert plain.result().tokens
            assert slow.status().state is State.QUEUED
        finally:
            let_go.set()
        assert slow.result().text == "slow"


def test_a_request_whose_grammar_takes_long_goes_back_to_its_queue(
    redis_server: RedisServer, redis: Redis, folder: Path
) -> None:
    """For a moment, in which another worker may take it; this one has it compiled by then."""
    let_go = threading.Event()

    def wait(_: Grammar) -> None:
        let_go.wait()

    compiling_it = compiling(trial=lambda: OtherTrial(wait))
    with Producer(url=redis_server.url) as producer, tiny_worker(redis_server.url, folder, compiling_it):
        try:
            generation = producer.submit("Hi", response_format=Weather, **PLAIN)
            wait_until(lambda: was_refused(redis, keys.rq_job(generation.request_id)))
            assert generation.status().state is State.QUEUED
        finally:
            let_go.set()
        assert isinstance(generation.parsed(), Weather)
        assert generation.result().attempts == 1


def test_intake_is_notified_once_it_can_go_on_with_a_grammar(
    redis_server: RedisServer, redis: Redis, folder: Path
) -> None:
    """Nobody polls here by the clock: after the trial, and once it is compiled. Until the first it only waits."""
    let_go = threading.Event()

    def wait(_: Grammar) -> None:
        let_go.wait()

    settings = WorkerSettings(
        redis_url=SecretStr(redis_server.url), device="cpu", model_path=str(folder), served_model=MODEL
    )
    served = compiling(trial=lambda: OtherTrial(wait))(serve(settings))
    posted: SimpleQueue[Message] = SimpleQueue()
    intake = Intake(Pipeline(redis), served.reader, settings, "w", keys.queues(MODEL), Figures())
    poller = Poller(intake, posted.put)
    thread = threading.Thread(target=poller.run)
    thread.start()
    try:
        with Producer(url=redis_server.url) as producer:
            generation = producer.submit("Hi", response_format=Weather, **PLAIN)
        for waits in (b"1", b"0"):
            notified = answers(poller, posted)
            assert redis.hget(execution_key(redis, generation.request_id), "waits") == waits
            let_go.set()
            assert [type(each) for each in notified or [posted.get(timeout=30)]] == [JobsQueued]
        assert [type(each) for each in answers(poller, posted)] == [Claims]
    finally:
        let_go.set()
        intake.leaving.set()
        poller.inbox.put(Leave())
        thread.join()
        served.reader.close()
        served.engine.stop()


def answers(poller: Poller, posted: SimpleQueue[Message]) -> list[Message]:
    """What one poll posts, but its end."""
    poller.inbox.put(Poll(free=8, idle=True))
    return list(iter(lambda: None if isinstance(message := posted.get(timeout=30), PollDone) else message, None))


def execution_key(redis: Redis, request_id: str) -> str:
    (key,) = redis.scan_iter(f"{keys.rq_execution(request_id, '')}*")
    return str(key.decode())


class WatchedEngine:
    """An engine, and how far the mask of each request was when the engine got it."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.replayed: list[tuple[int, int]] = []
        """The tokens that the mask had consumed, and those that earlier attempts had emitted."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def add(self, request: EngineRequest) -> None:
        if isinstance(request.token_mask, AnswerMask):
            self.replayed.append((len(request.token_mask.consumed), len(request.emitted_ids)))
        self._engine.add(request)


def test_a_continued_answer_is_replayed_before_the_engine_has_it(redis_server: RedisServer, folder: Path) -> None:
    """Within a step all neighbours would wait for it."""
    engines: list[WatchedEngine] = []

    def watched(served: Served) -> Served:
        engines.append(WatchedEngine(served.engine))
        return replace(served, engine=engines[-1])

    with Producer(url=redis_server.url) as producer:
        generation = handed_back(producer, redis_server.url, folder)
        with tiny_worker(redis_server.url, folder, watched):
            assert re.fullmatch("[a-z]{500}", generation.result().text)
    ((replayed, emitted),) = engines[0].replayed
    assert replayed == emitted > 3


def test_what_is_compiled_for_a_claim_is_compiled_once(redis_server: RedisServer, folder: Path) -> None:
    """Also where more come together than are kept: leases run while a claimed one would be compiled again."""
    compiled: list[str] = []
    noting = compiling(kept=1, trial=lambda: OtherTrial(lambda grammar: compiled.append(grammar.text)))
    with Producer(url=redis_server.url) as producer:
        forms: list[Any] = [{"type": "regex", "value": f"[a-z]{{{size}}}"} for size in range(5, 9)]
        asked = [producer.submit("Hi", response_format=form, **PLAIN) for form in forms]
        with tiny_worker(redis_server.url, folder, noting):
            assert [len(generation.result().text) for generation in asked] == [5, 6, 7, 8]
    assert sorted(compiled) == sorted(set(compiled))
