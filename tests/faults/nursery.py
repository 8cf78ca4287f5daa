"""Forks engine children from a process that has imported torch: a start takes one second instead of ten.

Everything behind the imports is the product's own: the forked process calls the same entry point, with the same
environment and pipes, that `tokenrelay-worker run` starts. `python -m tests.faults --cold` does without.

One thread, for it forks. It ends, and its children with it, when its standard input closes.
"""

from __future__ import annotations

import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Final

from tests.faults.children import run_child

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

ROOT: Final = Path(__file__).parents[2]
PRELOADED: Final = (
    "tokenrelay.worker.__main__",
    "tokenrelay.worker.worker",
    "tokenrelay.worker.engine.transformers.batching",
    "tokenrelay.worker.engine.transformers.models",
    "tests.workers",
)
"""All that children need: it's what their start takes so long for, and it stays as it was when the nursery began."""


class Nursery:
    """The nursery's process, from the outside: `environment` lets a supervisor's stub find it."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="nursery-")  # short: a socket's path has some 100 characters
        self._path = Path(self._folder.name) / "socket"
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.nursery", str(self._path)],
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert self._process.stdout is not None
        if self._process.stdout.readline() != b"ready\n":
            raise RuntimeError("the nursery didn't start")

    @property
    def environment(self) -> dict[str, str]:
        return {"NURSERY": str(self._path)}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(60)
        self._process.stdout.close()
        self._folder.cleanup()


def serve(path: str) -> None:
    """Fork a child for each connection, until standard input closes."""
    for module in PRELOADED:
        import_module(module)
    wake_read, wake_write = os.pipe()
    os.set_blocking(wake_write, False)
    signal.set_wakeup_fd(wake_write)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    stubs: dict[int, socket.socket] = {}
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener, selectors.DefaultSelector() as selector:
        listener.bind(path)
        listener.listen(64)
        for source in (listener, sys.stdin.fileno(), wake_read):
            selector.register(source, selectors.EVENT_READ)
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        while True:
            for key, _ in selector.select():
                if key.fileobj is listener:
                    stub, _ = listener.accept()
                    stubs[_fork(stub, [listener, *stubs.values()])] = stub
                    selector.register(stub, selectors.EVENT_READ)
                elif key.fd == wake_read:
                    os.read(wake_read, 4096)
                    _reap(stubs, selector)
                elif key.fd == sys.stdin.fileno():
                    for pid in stubs:
                        os.kill(pid, signal.SIGKILL)
                    return
                else:  # the stub was killed
                    selector.unregister(key.fileobj)
                    for pid in [pid for pid, stub in stubs.items() if stub is key.fileobj]:
                        os.kill(pid, signal.SIGKILL)


def _fork(stub: socket.socket, others: list[socket.socket]) -> int:
    data, descriptors, _, _ = socket.recv_fds(stub, 65_536, 3)
    while not data.endswith(b"\n"):
        data += stub.recv(65_536)
    report_fd, tether_fd, error_fd = descriptors
    pid = os.fork()
    if pid == 0:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        for other in (stub, *others):
            other.close()
        os.setsid()
        os.dup2(error_fd, 2)
        os.dup2(error_fd, 1)
        os.environ.clear()
        os.environ.update(json.loads(data))
        os._exit(run_child(report_fd, tether_fd))
    for descriptor in descriptors:
        os.close(descriptor)
    stub.sendall(f"{pid}\n".encode())
    return pid


def _reap(stubs: dict[int, socket.socket], selector: selectors.BaseSelector) -> None:
    while stubs:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid == 0:
            return
        stub = stubs.pop(pid)
        try:
            selector.unregister(stub)
            stub.sendall(f"{os.waitstatus_to_exitcode(status)}\n".encode())
        except (KeyError, OSError):
            pass  # the stub is gone already
        stub.close()


if __name__ == "__main__":
    serve(sys.argv[1])
