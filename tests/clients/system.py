"""What the clients talk to while a `with` block lasts: a Redis, workers and a gateway with API keys, as processes."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self

from tests.observe.system import environment
from tests.waiting import wait_until
from tokenrelay.gateway.records.served_models import read_served_models
from tokenrelay.producer._core.drivers import Driver
from tokenrelay.producer.local import LocalRedis, LocalWorker
from tokenrelay.shared.redis.connections import connect
from tokenrelay.worker.models import weather_model_path

if TYPE_CHECKING:
    from collections.abc import Iterator

    from redis import Redis

MODEL: Final = "chat"
ENDLESS: Final = "endless"
KEY: Final = "sk-clients-0123456789abcdef"
_KILLED_AT: Final = 50
_KILL_POLL_S: Final = 0.02
_CONTEXT: Final = 32_768
_START_S: Final = 60.0


@dataclass(frozen=True, slots=True)
class System:
    """A running one. `model` is the folder of what clients ask as MODEL."""

    url: str
    redis_url: str
    model: Path

    def states(self) -> dict[str, str]:
        """The state of every request so far, by its ID."""
        with connect(self.redis_url) as redis:
            found = [key.decode() for key in redis.scan_iter("tokenrelay:{*}:request", count=1000)]
            return {key: (redis.hget(key, "state") or b"").decode() for key in found}


@contextmanager
def running_system(model: Path | None = None) -> Iterator[System]:
    """Serves the model folder, the bundled one where none is given, and the endless one."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tokenrelay-clients-")))
        redis_url = stack.enter_context(LocalRedis()).url
        folders = {MODEL: model or Path(weather_model_path()), ENDLESS: endless_model(folder / ENDLESS)}
        for name, served in folders.items():
            options = ("--model", str(served), "--served-model", name, "--slots", "4")
            stack.enter_context(LocalWorker(redis_url, model=name, options=options))
        url = stack.enter_context(_gateway(redis_url, folder / "gateway.log"))
        yield System(url, redis_url, folders[MODEL])


def endless_model(folder: Path) -> Path:
    """The bundled model, made to go on: a long context, and an end of sequence that it never draws."""
    shutil.copytree(weather_model_path(), folder)
    _edit(folder / "config.json", max_position_embeddings=_CONTEXT, eos_token_id=0)
    _edit(folder / "generation_config.json", eos_token_id=0, max_new_tokens=None)
    _edit(folder / "tokenizer_config.json", eos_token="<pad>", model_max_length=_CONTEXT)
    return folder


def _edit(file: Path, **changes: object) -> None:
    content = {**json.loads(file.read_text("utf-8")), **changes}
    file.write_text(json.dumps({name: value for name, value in content.items() if value is not None}), "utf-8")


@contextmanager
def _gateway(redis_url: str, log: Path) -> Iterator[str]:
    """A `tokenrelay serve` that knows one API key; its address."""
    known = json.dumps([{"name": "clients", "sha256": sha256(KEY.encode()).hexdigest()}])
    command = [sys.executable, "-m", "tokenrelay.cli", "serve", "--port", "0"]
    with log.open("wb") as out:
        process = subprocess.Popen(command, env=environment(redis_url, API_KEYS=known), stdout=out, stderr=out)
    try:
        found = wait_until(lambda: re.search(r"^http://\S+", log.read_text("utf-8"), re.MULTILINE), _START_S)
        yield found[0]
    finally:
        process.terminate()
        process.wait(30)


class WorkerKiller:
    """Kills the worker of the endless model once, when a request that began in the `with` block has some tokens."""

    def __init__(self, system: System) -> None:
        self._system = system
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="killer")
        self.fault = "no request came so far that its worker could be killed"
        """Why the kill didn't count; empty if another attempt ended the request."""

    def __enter__(self) -> Self:
        self._before = set(self._system.states())
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        with connect(self._system.redis_url) as redis:
            while (key := self._begun(redis)) is None:
                if self._over.wait(_KILL_POLL_S):
                    return
            for pid in Driver(redis).run(read_served_models())[ENDLESS].pids:
                os.kill(pid, signal.SIGKILL)
            self._over.wait()
            attempts = int(redis.hget(key, "attempt") or 0)
            self.fault = "" if attempts > 1 else f"its worker was killed too late: {attempts} attempt"

    def _begun(self, redis: Redis) -> str | None:
        """A new request with enough tokens."""
        found = [key for key in self._system.states() if key not in self._before]
        return next((key for key in found if int(redis.hget(key, "next") or 0) > _KILLED_AT), None)
