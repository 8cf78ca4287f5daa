"""The contenders: each runs a wave and returns its result, with the same model, slots and KV cache."""

from __future__ import annotations

import subprocess
import sys
import time
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol, Self

import httpx
import psutil

from benchmarks.children import ROOT, Child
from benchmarks.gateways import GatewayProcess
from benchmarks.waves import Outcome
from tests.redis_servers import RedisServer
from tokenrelay.producer.local import LocalWorker

if TYPE_CHECKING:
    from benchmarks.options import BenchOptions
    from benchmarks.waves import Wave

SLOTS: Final = 32
KV_CACHE_TOKENS: Final = 16_384
_PAGE_TOKENS: Final = 32
_SERVED: Final = "bench"
_SIZES: Final = ("--slots", str(SLOTS), "--kv-cache-tokens", str(KV_CACHE_TOKENS))
_START_TIMEOUT_S: Final = 300.0


class Contender(Protocol):
    def run(self, wave: Wave) -> Outcome: ...


@dataclass(frozen=True, slots=True)
class Alone:
    child: Child

    def run(self, wave: Wave) -> Outcome:
        return Outcome.of(self.child.ask(**wave.message()))


@dataclass(frozen=True, slots=True)
class Called:
    """A server that the clients' process calls."""

    clients: Child
    target: dict[str, str]

    def run(self, wave: Wave) -> Outcome:
        return Outcome.of(self.clients.ask(**self.target, **wave.message()))


@dataclass(frozen=True, slots=True)
class Metered:
    """A contender with the CPU time of its processes `pids`, without its callers'."""

    contender: Contender
    pids: tuple[int, ...]

    def run(self, wave: Wave) -> Outcome:
        before = self._spent_s()
        outcome = self.contender.run(wave)
        return replace(outcome, cpu_s=self._spent_s() - before)

    def _spent_s(self) -> float:
        times = [psutil.Process(pid).cpu_times() for pid in self.pids]
        return sum(float(spent.user + spent.system) for spent in times)


class Arena:
    """Context manager that runs the contenders side by side."""

    def __init__(self, options: BenchOptions) -> None:
        self._options = options
        self._stack = ExitStack()
        self._clients: Child | None = None
        self._redis: RedisServer | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def pids(self) -> tuple[int, ...]:
        """Process IDs of the pipeline: workers and Redis."""
        processes = psutil.Process().children(recursive=True)
        workers = [process.pid for process in processes if "tokenrelay.worker" in " ".join(process.cmdline())]
        return (*workers, self.redis().pid)

    def engine_alone(self, model: str | None = None, dtype: str | None = None) -> Alone:
        chosen = ("--model", model or self._options.model, "--dtype", dtype or self._options.dtype, *_SIZES)
        return Alone(self._stack.enter_context(Child("benchmarks.engine_alone", *chosen, log=self._log())))

    def pipeline(self, model: str | None = None, dtype: str | None = None) -> Called:
        chosen = ("--model", model or self._options.model, "--dtype", dtype or self._options.dtype, *_SIZES)
        url = self.redis().url
        self._stack.enter_context(LocalWorker(url, model=_SERVED, options=("--served-model", _SERVED, *chosen)))
        return Called(self.clients(), {"kind": "tokenrelay", "url": url, "model": _SERVED})

    def stock_rq(self) -> Called:
        url = self.redis().url
        command = [sys.executable, "-m", "benchmarks.stock_rq", "--url", url]
        command += ["--model", self._options.model, "--dtype", self._options.dtype]
        self._start(command)
        return Called(self.clients(), {"kind": "rq", "url": url})

    def transformers_serve(self) -> Called | None:
        """None if its extras aren't installed."""
        python = self._options.serve_python
        if not serve_is_installed(python):
            return None
        url, port = _free_url()
        command = [str(Path(python).with_name("transformers")), "serve", self._options.model, "--port", port]
        command += ["--host", "127.0.0.1", "--continuous-batching", "--dtype", self._options.dtype, "--device", "cpu"]
        command += ["--cb-num-blocks", str(KV_CACHE_TOKENS // _PAGE_TOKENS), "--cb-block-size"]
        command += [str(_PAGE_TOKENS), "--cb-max-batch-tokens", "512"]
        process = self._start(command)
        _await_health(url, process, "transformers serve")
        return Called(self.clients(), {"kind": "sse", "url": url, "model": self._options.model})

    def vllm(self) -> Called | None:
        """vLLM's own server; None if it isn't installed. Its completions take the same body as our gateway's."""
        python = self._options.vllm_python
        if subprocess.run([python, "-c", "import vllm"], capture_output=True, check=False).returncode:
            return None
        url, port = _free_url()
        command = [str(Path(python).with_name("vllm")), "serve", self._options.model, "--host", "127.0.0.1"]
        command += ["--port", port, "--dtype", self._options.dtype, "--max-num-seqs", str(SLOTS)]
        _await_health(url, self._start(command), "vllm serve")
        return Called(self.clients(), {"kind": "gateway", "url": url, "model": self._options.model})

    def gateway(self) -> Called:
        """The pipeline over HTTP."""
        gateway = self._stack.enter_context(GatewayProcess(self.redis().url, self._log()))
        return Called(self.clients(), {"kind": "gateway", "url": gateway.url, "model": _SERVED})

    def clients(self) -> Child:
        if self._clients is None:
            self._clients = self._stack.enter_context(Child("benchmarks.clients", log=self._log()))
        return self._clients

    def redis(self) -> RedisServer:
        if self._redis is None:
            self._redis = RedisServer(self._options.folder)
            self._stack.callback(self._redis.stop)
        return self._redis

    def _log(self) -> Path:
        return self._options.folder / "log.txt"

    def _start(self, command: list[str]) -> subprocess.Popen[bytes]:
        with self._log().open("ab") as log:
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=ROOT)
        self._stack.callback(_end, process)
        return process


def serve_is_installed(python: str) -> bool:
    """Whether this Python has transformers[serving]."""
    look = "from transformers.utils.import_utils import is_serve_available as a; raise SystemExit(not a())"
    return subprocess.run([python, "-c", look], capture_output=True, check=False).returncode == 0


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _free_url() -> tuple[str, str]:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    return f"http://127.0.0.1:{port}", str(port)


def _await_health(url: str, process: subprocess.Popen[bytes], what: str) -> None:
    end = time.monotonic() + _START_TIMEOUT_S
    while time.monotonic() < end:
        if process.poll() is not None:
            raise RuntimeError(f"{what} ended with {process.returncode}; see the log")
        try:
            if httpx.get(f"{url}/health", timeout=5).status_code == 200:
                return
        except httpx.TransportError:
            time.sleep(0.2)
    raise RuntimeError(f"{what} wasn't ready in time; see the log")
