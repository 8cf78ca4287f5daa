"""The process that compiles each grammar first: python -m tokenrelay.worker.sampling.grammar.trial_process.

A compilation can take hours, all memory, or more stack than there is, which no limit of the library's own prevents.
Here it ends this process alone. Reads grammars from stdin, a JSON array a line. Writes a JSON array a line, of two
strings: the first when it is ready, then one for each grammar, with the reason why it is refused, or with its source as
the library compiles it; the other one is empty. Ends with stdin.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
import threading
from typing import Final

from tokenrelay.worker.sampling.grammar.grammar import Grammar, GrammarError
from tokenrelay.worker.sampling.grammar.library import bind, compile_grammar, to_source
from tokenrelay.worker.sampling.grammar.vocabulary import Vocabulary

CPU_S: Final = 1.0
"""The processor time of a compilation. Usual ones take 1 to 20 ms."""
_MEMORY_BYTES: Final = 1 << 30
_STACK_BYTES: Final = 2 << 20
"""A quarter of the usual thread's, which compiles the same grammar in the worker afterwards."""
_NICENESS: Final = 10
"""The model's steps come first."""

_BYTES: Final = Vocabulary((*(bytes([each]) for each in range(256)), b""), (256,))
"""Compilation doesn't depend on the model's tokens."""


def main() -> None:
    """Compile what stdin names, one after another."""
    os.nice(max(0, _NICENESS - os.nice(0)))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES, _MEMORY_BYTES))
    threading.stack_size(_STACK_BYTES)
    tokens = bind(_BYTES)

    def compile_and_answer(grammar: Grammar) -> None:
        try:
            source = to_source(grammar)
            compile_grammar(tokens, source, grammar.kind).deep_copy()
        except GrammarError as error:
            _answer(error.reason, "")
        else:
            _answer("", source)

    _answer("", "")
    for line in sys.stdin.buffer:
        thread = threading.Thread(target=compile_and_answer, args=(Grammar(*json.loads(line)),))
        # The signal's default action ends the process, whatever code it is in.
        signal.setitimer(signal.ITIMER_VIRTUAL, CPU_S)
        thread.start()
        thread.join()
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)


def _answer(reason: str, source: str) -> None:
    sys.stdout.write(json.dumps([reason, source]) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
