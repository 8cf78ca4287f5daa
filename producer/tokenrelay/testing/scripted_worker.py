"""A worker without a model: takes, claims, writes and ends requests as a real one, following scripts."""

from __future__ import annotations

import threading
from collections import deque
from typing import TYPE_CHECKING, Final
from uuid import uuid4

from tokenrelay.shared.redis.batches import Pipeline
from tokenrelay.shared.store.jobs import Take, take_call
from tokenrelay.shared.store.registrar import set_state
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
    from tokenrelay.shared.redis.commands import Batch

HEARTBEAT_S: Final = 0.05
_RQ_LEASE_S: Final = 60
_SWEEP_S: Final = 0.5
DEFAULT: Final = answers("It is sunny and warm.")


class ScriptedWorker:
    """Serves all queues of `model`, with any number of concurrent requests, inside its `with` block.

    A request's script is the one for its prompt (`on`), else the next one of `then`, else `default`, limited by the
    request's `stop` and `max_new_tokens`. Leaving the block hands back open requests, and raises the worker's first
    exception, if any. Raises ValueError for a client that decodes replies; the producer's client may.

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
            raise ValueError("decode_responses: a worker reads RQ's jobs, which are bytes; use a client without it")
        self.model = model
        self.name = name
        self.default = default
        self.requests: list[Submission] = []
        """The requests taken, in order, each once, even after takeovers."""
        self._redis = redis
        self._queues = keys.queues(model)
        self._by_prompt: dict[str, Script] = {}
        self._next: deque[Script] = deque()
        self._begun: dict[str, Script] = {}
        self._stopped = threading.Event()
        self._threads: list[threading.Thread] = []
        self._errors: list[Exception] = []

    def on(self, prompt: str, script: Script) -> Self:
        """Use `script` for every request with exactly this prompt."""
        self._by_prompt[prompt] = script
        return self

    def then(self, *scripts: Script) -> Self:
        """Use these scripts, one each, for the next requests without a script from `on`."""
        self._next.extend(scripts)
        return self

    def answer_queued(self) -> int:
        """Process all queued requests in this thread, one after the other, and return their number.

        For tests that step the worker manually, without a `with` block. A script that stalls is left unfinished.
        """
        taken: set[str] = set()
        while attempt := self._take():
            taken.add(attempt.execution.job_id)
            self._play(attempt, self._script_of(attempt), stalling=False)
        return len(taken)

    def __enter__(self) -> Self:
        self._register()
        pubsub = self._redis.pubsub(ignore_subscribe_messages=True)  # type: ignore[no-untyped-call]
        pubsub.subscribe(keys.QUEUED)  # before serving, so that no job is missed
        self._start(self._serve, pubsub)
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._redis.publish(keys.QUEUED, "")
        for thread in self._threads:  # the first one adds no more once it has ended
            thread.join()
        self._threads.clear()
        self._stopped.clear()
        self._unregister()
        if self._errors:
            raise self._errors[0]

    def _register(self) -> None:
        """Register as a live worker: readers warn of requests without one."""
        worker = keys.rq_worker(self.name)
        served: Batch = [("SADD", keys.rq_workers(queue), worker) for queue in self._queues]
        Pipeline(self._redis).run([set_state(self.name, "idle"), ("EXPIRE", worker, 3600), *served])

    def _unregister(self) -> None:
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
        """Run the script from the stream's current position up to its end or the next hand-back."""
        if self._stopped.wait(script.wait_s if not attempt.number else 0):
            attempt.hand_back()
            return
        if not isinstance(claim := attempt.claim(), Granted):
            attempt.abandon(claim)
            return
        hand_backs = script.hand_backs[attempt.number - 1 :]
        for token in script.tokens[attempt.written :]:
            if hand_backs and attempt.written >= hand_backs[0].after:
                break
            if not self._wait(attempt, script.pause_s):
                return
            if not isinstance(appended := attempt.append(token), Appended):
                attempt.abandon(appended)
                return
        if hand_backs:
            attempt.hand_back(crashed=hand_backs[0].crashed)
        elif script.end:
            attempt.finish(script.end)
        elif stalling:
            self._wait(attempt, float("inf"))

    def _wait(self, attempt: Attempt, seconds: float) -> bool:
        """Wait while renewing the lease. Returns False if the request is no longer ours."""
        while seconds > 0:
            if self._stopped.wait(min(seconds, HEARTBEAT_S)):
                attempt.hand_back()
                return False
            seconds -= HEARTBEAT_S
            if seconds > 0 and not isinstance(renewed := attempt.renew(), Renewed):
                attempt.abandon(renewed)
                return False
        return True
