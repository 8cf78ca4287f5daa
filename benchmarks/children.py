"""Child processes that a benchmark calls with one line of JSON each way.

Code under measurement runs in its own process, so that the measuring interpreter doesn't compete with it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT = Path(__file__).parents[1]
Message = dict[str, Any]


class Child:
    """Context manager that runs `python -m MODULE ARGUMENTS` and waits until it's ready. Its stderr goes to `log`."""

    def __init__(self, module: str, *arguments: str, log: Path) -> None:
        self._command = [sys.executable, "-m", module, *arguments]
        self._log = log
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> Self:
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True, cwd=ROOT
            )
        self.read()
        return self

    def __exit__(self, *_: object) -> None:
        if self._process and self._process.stdin:
            self._process.stdin.close()
            try:
                self._process.wait(20)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()

    @property
    def pid(self) -> int:
        assert self._process
        return self._process.pid

    def ask(self, **message: Any) -> Message:
        """Call the child and return its answer. Raises RuntimeError with the end of its log if it died."""
        self.send(**message)
        return self.read()

    def send(self, **message: Any) -> None:
        """Send a call without waiting; `read` returns the answer."""
        assert self._process
        assert self._process.stdin
        self._process.stdin.write(json.dumps(message) + "\n")
        self._process.stdin.flush()

    def read(self) -> Message:
        """The answer to the last `send`. Raises RuntimeError with the end of its log if the child died."""
        assert self._process
        assert self._process.stdout
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"{' '.join(self._command)} died:\n{self._log.read_text('utf-8', 'replace')[-3000:]}")
        answer: Message = json.loads(line)
        return answer


def answer_lines(answer: Callable[[Message], Message]) -> None:
    """The child's side: report readiness, then answer calls until the parent closes the pipe."""
    # Output of libraries goes to the log: stdout is reserved for answers.
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    print("{}", file=out, flush=True)
    for line in sys.stdin:
        print(json.dumps(answer(json.loads(line))), file=out, flush=True)
