"""Compiling a grammar where it can be killed. Owns the process that does so: see `trial_process`."""

from __future__ import annotations

import json
import select
import signal
import subprocess
import sys
from contextlib import suppress
from typing import IO, TYPE_CHECKING, Final, cast

from tokenrelay.shared.errors import EngineError
from tokenrelay.worker.sampling.grammar.grammar import GrammarError
from tokenrelay.worker.sampling.grammar.trial_process import CPU_S

if TYPE_CHECKING:
    from tokenrelay.worker.sampling.grammar.grammar import Grammar

COMMAND: Final = (sys.executable, "-m", "tokenrelay.worker.sampling.grammar.trial_process")
_WALL_S: Final = 30.0
"""Of a compilation, and of the process's start: its processor time is limited by itself, and it has a low priority."""
_TOO_LONG: Final = f"the grammar is too complex: compiling it takes more than {CPU_S:g} s of processor time"
_TOO_LARGE: Final = "the grammar is too complex: compiling it takes too much memory, or nests too deeply"


class Trial:
    """Compiles grammars one after another in a process, which is started with the first and after each one's death."""

    def __init__(self, command: tuple[str, ...] = COMMAND, wall_s: float = _WALL_S) -> None:
        self.command, self.wall_s = command, wall_s
        self._process: subprocess.Popen[bytes] | None = None

    def compile(self, grammar: Grammar) -> str:
        """The source of a grammar that can be compiled within the limits: see `library.to_source`. Raises GrammarError;
        EngineError where there is no process to try it, or none that gets processor time."""
        process = self._running()
        pipe = cast("IO[bytes]", process.stdin)
        try:
            pipe.write(json.dumps([grammar.kind, grammar.text, grammar.strict]).encode() + b"\n")
            pipe.flush()
            reason, source = self._answer(process)
        except (BrokenPipeError, EOFError):
            out_of_time = process.wait() == -signal.SIGVTALRM
            self.close()
            raise GrammarError(_TOO_LONG if out_of_time else _TOO_LARGE) from None
        except TimeoutError as error:  # of a host that is too busy: nothing is known of the grammar
            self.close()
            raise EngineError(f"the process that compiles grammars hasn't answered for {self.wall_s:g} s") from error
        if reason:
            raise GrammarError(reason)
        return source

    def close(self) -> None:
        """End the process, if there is one."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()
            with suppress(BrokenPipeError), cast("IO[bytes]", process.stdin):
                cast("IO[bytes]", process.stdout).close()

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is not None and self._process.poll() is None:
            return self._process
        self.close()
        try:
            self._process = process = subprocess.Popen(
                self.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
            )
            self._answer(process)
        except (OSError, EOFError, TimeoutError) as error:
            self.close()
            raise EngineError("the process that compiles grammars doesn't start") from error
        return process

    def _answer(self, process: subprocess.Popen[bytes]) -> list[str]:
        """The next line: see `trial_process`. Raises EOFError where the process is gone, TimeoutError without one."""
        pipe = cast("IO[bytes]", process.stdout)
        ready, _, _ = select.select([pipe], [], [], self.wall_s)
        if not ready:
            raise TimeoutError
        line = pipe.readline()
        if not line:
            raise EOFError
        return cast("list[str]", json.loads(line))
