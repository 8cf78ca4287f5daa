"""A place to break things: one Redis, workers as real processes that reach it through a proxy, and clean-up."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import count
from typing import TYPE_CHECKING, Any, Final

from tests.faults.nursery import ROOT
from tests.faults.proxy import Proxy
from tests.redis_servers import RedisServer
from tests.two_planes import client_on, pipeline_on
from tests.waiting import wait_until
from tokenrelay.shared.wire import keys
from tokenrelay.shared.wire.entries import text

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType
    from typing import Self

    from tests.faults.nursery import Nursery

READY_S: Final = 90.0
SETTINGS: Final = {"DTYPE": "float64", "LEASE_MS": "2000", "SLOTS": "32", "KV_CACHE_TOKENS": "12800"}
_NUMBERS = count(1)


@dataclass(frozen=True, slots=True)
class Plan:
    """How a site is set up. `settings` are TOKENRELAY_ variables without the prefix."""

    workers: int = 2
    redis: tuple[str, ...] = ()
    settings: dict[str, str] = field(default_factory=dict)
    kind: str = "weather"
    folder: str | None = None
    """Redis's own, where it isn't to be a temporary one."""
    two_servers: bool = False
    """Whether streams have a Redis of their own."""


class Worker:
    """One `tokenrelay-worker run`: a supervisor and its child."""

    def __init__(self, site: Site, kind: str, settings: dict[str, str]) -> None:
        self.name = f"w{next(_NUMBERS)}"
        self.child_name = f"{self.name}.0"
        self._site = site
        self.log = site.folder / f"{self.name}.log"
        chosen = {
            **SETTINGS,
            "REDIS_URL": site.proxy.url,
            "STREAMS_URL": site.streams_proxy.url,
            "WORKER_NAME": self.name,
            **settings,
        }
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "CHILD_KIND": kind}
        environment |= {f"TOKENRELAY_{name}": value for name, value in chosen.items()}
        module = ["tokenrelay.worker", "run"]
        if site.nursery is not None:
            module = ["tests.faults.worker"]
            environment |= site.nursery.environment
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", *module], cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, stderr=log
            )

    def ready(self) -> bool:
        """Whether the child is registered with RQ and alive; fails where the supervisor gave up."""
        if self.process.poll() is not None:
            raise AssertionError(f"worker {self.name} ended: {self.log.read_text()[-3000:]}")
        found = self._site.redis.hmget(keys.rq_worker(self.child_name), "pid", "death")
        return found[0] is not None and found[1] is None

    def wait_ready(self) -> None:
        wait_until(self.ready, READY_S)

    @property
    def child_pid(self) -> int:
        return int(text(self._site.redis.hget(keys.rq_worker(self.child_name), "pid") or b"0"))

    def signal_child(self, number: signal.Signals) -> None:
        with suppress(ProcessLookupError):
            os.kill(self.child_pid, number)

    def kill(self) -> None:
        """As a lost host: supervisor and child at once, the supervisor first, so that it releases nothing."""
        child = self.child_pid
        self.process.kill()
        with suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
        self.process.wait()

    def terminate(self) -> None:
        self.process.send_signal(signal.SIGTERM)

    def freeze(self) -> None:
        """As a suspended virtual machine: supervisor and child."""
        self.process.send_signal(signal.SIGSTOP)
        self.signal_child(signal.SIGSTOP)

    def thaw(self) -> None:
        self.signal_child(signal.SIGCONT)
        self.process.send_signal(signal.SIGCONT)

    def close(self) -> None:
        """Terminate it for good, in any state."""
        with suppress(ProcessLookupError):
            self.process.send_signal(signal.SIGCONT)
        self.process.kill()
        self.process.wait()  # its child hands back and ends by itself, or with the nursery


class Site:
    """The processes of one row of the table. Without a nursery every child imports torch for itself."""

    def __init__(self, folder: Path, nursery: Nursery | None, plan: Plan) -> None:
        self.folder = folder
        self.nursery = nursery
        self.plan = plan
        folder.mkdir(parents=True, exist_ok=True)
        redis_folder = folder if plan.folder is None else type(folder)(plan.folder)
        self.server = RedisServer(redis_folder, *plan.redis)
        self.proxy = Proxy(self.server.port)
        self.streams, self.streams_proxy = self.server, self.proxy
        if plan.two_servers:
            (redis_folder / "streams").mkdir()
            self.streams = RedisServer(redis_folder / "streams", *plan.redis)
            self.streams_proxy = Proxy(self.streams.port)
        # The suite itself outlasts what it breaks.
        self.redis = client_on(self.server.url, self.streams.url, retries=50)
        self.pipeline = pipeline_on(self.redis)
        self.workers: list[Worker] = []

    def __enter__(self) -> Self:
        try:
            self.start(self.plan.workers)
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for worker in self.workers:
            worker.close()
        self.redis.close()
        for proxy in {self.proxy, self.streams_proxy}:
            proxy.close()
        for server in {self.server, self.streams}:
            server.kill()

    def start(self, number: int = 1, kind: str | None = None, **settings: str) -> list[Worker]:
        """Start workers and wait until they claim."""
        chosen = {**self.plan.settings, **settings}
        begun = [Worker(self, kind or self.plan.kind, chosen) for _ in range(number)]
        self.workers += begun
        for worker in begun:
            worker.wait_ready()
        return begun

    def replace(self, worker: Worker, *, wait: bool = True, linger_s: float = 0.0) -> None:
        """End a worker and start a fresh one: a supervisor waits longer after each death of its child.

        `linger_s` gives the supervisor time to do what it does about a dead child.
        """
        self.workers.remove(worker)
        time.sleep(linger_s)
        worker.close()
        begun = Worker(self, self.plan.kind, self.plan.settings)
        self.workers.append(begun)
        if wait:
            begun.wait_ready()

    def wait_ready(self) -> None:
        for worker in self.workers:
            worker.wait_ready()

    def worker(self, child_name: str) -> Worker:
        return next(worker for worker in self.workers if worker.child_name == child_name)

    def now_us(self) -> int:
        """By Redis's clock."""
        now: Any = self.redis.time()
        seconds, microseconds = now
        return int(seconds) * 1_000_000 + int(microseconds)
