"""A worker that answers by script: takes, claims, writes and ends requests as a real one does, with no model."""

from __future__ import annotations

import threading
from collections import deque
from typing import TYPE_CHECKING, Final
from uuid import uuid4

from tokenrelay.shared.redis.batches import Pipeline
from tokenrelay.shared.store.jobs import Take, take_call
from tokenrelay.shared.store.registrations import WorkerField
from tokenrelay.shared.store.replies import Appended, Granted, Renewed
from tokenrelay.shared.wire import keys
from tokenrelay.testing.attempt import Attempt
from tokenrelay.testing.script import Script, answers

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Self

    from redis import Redis
    from redis.client import PubSub

    from tokenrelay.shared.options import Submission

HEARTBEAT_S: Final = 0.05
_RQ_LEASE_S: Final = 60
_SWEEP_S: Final = 0.5
DEFAULT: Final = answers("It is sunny and warm.")


class ScriptedWorker:
    """Serves all queues of `model`, any number of requests at a time, while its `with` block lasts.

    What a request gets: the script of its prompt (`on`), else the next one of `then`, else `default`. A script is cut
    by the request's own `stop` and `max_new_tokens`. Leaving the block hands back what hasn't ended, and raises what
    went wrong in the worker. Raises ValueError for a client that decodes replies; a producer's own may.

        >>> from tokenrelay.producer import Producer
        >>> from tokenrelay.testing import ScriptedWorker, answers, fake_redis
        >>> redis = fake_redis()
        >>> with ScriptedWorker(redis, default=answers("It rains.")), Producer(connection=redis) as producer:
        ...     producer.submit("What is the weather today?").result().text
        'It rains.'
    """

    def __init__(
        self, redis: Redis, *, model: str = "weather", name: str = "scripted", default: Script = DEFAULT
    ) -> None:
        if redis.connection_pool.connection_kwargs.get("decode_responses"):
            raise ValueError("decode_responses: a worker reads RQ's jobs, which are bytes; give it another client")
        self.model = model
        self.name = name
        self.default = default
        self.requests: list[Submission] = []
        """What it was asked, in the order of taking; a request that was handed over is here once."""
        self._redis = redis
        self._queues = keys.queues(model)
        self._by_prompt: dict[str, Script] = {}
        self._next: deque[Script] = deque()
        self._begun: dict[str, Script] = {}
        self._stopped = threading.Event()
        self._threads: list[threading.Thread] = []
        self._errors: list[Exception] = []

    def on(self, prompt: str, script: Script) -> Self:
        """Every request with exactly this prompt gets `script`."""
        self._by_prompt[prompt] = script
        return self

    def then(self, *scripts: Script) -> Self:
        """The next requests that `on` has nothing for get these, one each."""
        self._next.extend(scripts)
        return self

    def answer_queued(self) -> int:
        """Work on all that is queued now, in this thread, one after the other; how many requests it were.

        For tests that decide when the worker works: no `with` block then. A script that stalls is left as it stands.
        """
        taken: set[str] = set()
        while attempt := self._take():
            taken.add(attempt.execution.job_id)
            self._play(attempt, self._script_of(attempt), stalling=False)
        return len(taken)

    def __enter__(self) -> Self:
        self._appear()
        pubsub = self._redis.pubsub(ignore_subscribe_messages=True)  # type: ignore[no-untyped-call]
        pubsub.subscribe(keys.QUEUED)  # before it is served: no job may come unheard
        self._start(self._serve, pubsub)
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._redis.publish(keys.QUEUED, "")
        for thread in self._threads:  # the first one adds none once it has ended
            thread.join()
        self._threads.clear()
        self._stopped.clear()
        self._disappear()
        if self._errors:
            raise self._errors[0]

    def _appear(self) -> None:
        """Be a live worker: readers warn of requests that nobody serves."""
        worker = keys.rq_worker(self.name)
        self._redis.hset(worker, WorkerField.STATE, "idle")
        self._redis.expire(worker, 3600)
        for queue in self._queues:
            self._redis.sadd(keys.rq_workers(queue), worker)

    def _disappear(self) -> None:
        worker = keys.rq_worker(self.name)
        self._redis.delete(worker)
        for queue in self._queues:
            self._redis.srem(keys.rq_workers(queue), worker)

    def _start(self, work: Callable[..., None], *arguments: object) -> None:
        def guarded() -> None:
            try:
                work(*arguments)
            except Exception as error:  # noqa: BLE001  raised again at the end of the block
                self._errors.append(error)

        thread = threading.Thread(target=guarded, name=self.name, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _serve(self, pubsub: PubSub) -> None:
        try:
            while not self._stopped.is_set():
                attempt = self._take()
                if attempt is None:
                    pubsub.get_message(timeout=_SWEEP_S)
                    continue
                self._start(self._play, attempt, self._script_of(attempt))
        finally:
            pubsub.close()

    def _take(self) -> Attempt | None:
        take = Take(self.name, self._queues, (uuid4().hex,), _RQ_LEASE_S)
        taken = Pipeline(self._redis).ask(take_call(take))
        return Attempt(self._redis, taken[0].execution, self.model, self.name) if taken else None

    def _script_of(self, attempt: Attempt) -> Script:
        request_id = attempt.execution.job_id
        if request_id not in self._begun:
            self.requests.append(attempt.request)
            script = self._by_prompt.get(attempt.request["prompt"] or "")
            script = script or (self._next.popleft() if self._next else self.default)
            self._begun[request_id] = script.within(attempt.request)
        return self._begun[request_id]

    def _play(self, attempt: Attempt, script: Script, *, stalling: bool = True) -> None:
        """Do what the script says, from where the stream stands, up to its end or the next hand-over."""
        if self._stopped.wait(script.wait_s if not attempt.number else 0):
            attempt.hand_over()
            return
        if not isinstance(claim := attempt.claim(), Granted):
            attempt.give_up(claim)
            return
        hand_overs = script.hand_overs[attempt.number - 1 :]
        for token in script.tokens[attempt.written :]:
            if hand_overs and attempt.written >= hand_overs[0].after:
                break
            if not self._rest(attempt, script.pause_s):
                return
            if not isinstance(appended := attempt.append(token), Appended):
                attempt.give_up(appended)
                return
        if hand_overs:
            attempt.hand_over(crashed=hand_overs[0].crashed)
        elif script.end:
            attempt.finish(script.end)
        elif stalling:
            self._rest(attempt, float("inf"))

    def _rest(self, attempt: Attempt, seconds: float) -> bool:
        """Let time pass, keeping the lease as a heartbeat does. False where the request is no longer ours."""
        while seconds > 0:
            if self._stopped.wait(min(seconds, HEARTBEAT_S)):
                attempt.hand_over()
                return False
            seconds -= HEARTBEAT_S
            if seconds > 0 and not isinstance(renewed := attempt.beat(), Renewed):
                attempt.give_up(renewed)
                return False
        return True
