"""An engine child for supervisor tests: the real worker over a counting engine, in a process that can be killed.

A prompt that holds the word `w666` takes the process down, as a request that crashes its engine does. One that holds
`w777` is prefilled for PREFILL_S before anybody gets a token; at `w778` the engine hangs for ever. `w888` and `w889` do
it to the tokenizer, before the request is claimed: it takes the process down, and hangs for ever.

A grammar that is HELD isn't compiled before the child was restarted HELD_RESTARTS times. One that is DEADLY passes its
trial, and overflows the stack of the child that compiles it.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import threading
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from transformers import PreTrainedTokenizerFast

from tests.engines import ALL_OPTIONS, CountingEngine
from tests.grammars import vocabulary
from tests.workers import VOCABULARY, served, words
from tokenrelay.shared.settings import WorkerSettings
from tokenrelay.worker.metrics import Restarts
from tokenrelay.worker.sampling.grammar.compiler import GrammarCompiler
from tokenrelay.worker.sampling.grammar.grammar import Grammar
from tokenrelay.worker.sampling.grammar.library import to_source
from tokenrelay.worker.sampling.grammar.trial import Trial
from tokenrelay.worker.supervisor.pipes import Tether, report_regularly
from tokenrelay.worker.worker import Worker

if TYPE_CHECKING:
    from tokenrelay.worker.engine.contract import EngineOutput, EngineRequest

POISON = 666
POISON_TEXT, HANGING_TEXT = "w888", "w889"
HELD, DEADLY = "held", "deadly"
HELD_RESTARTS = 3
SLOW, HANGING = 777, 778
PREFILL_S = 8.0
CHUNK_S = 0.1


class PoisonableTokenizer(PreTrainedTokenizerFast):
    """As a native one, which may crash or never return."""

    def __call__(self, text: Any = None, *arguments: Any, **named: Any) -> Any:
        if POISON_TEXT in str(text).split():
            os.kill(os.getpid(), signal.SIGKILL)
        while HANGING_TEXT in str(text).split():
            time.sleep(1)
        return super().__call__(text, *arguments, **named)


class PoisonableEngine(CountingEngine):
    """Dies of a poisoned prompt the way a segfault does: without a word."""

    _chunks: int | None = 0  # left of a prefill; None of one that never ends

    def add(self, request: EngineRequest) -> None:
        if POISON in request.prompt_ids:
            os.kill(os.getpid(), signal.SIGKILL)
        if HANGING in request.prompt_ids:
            self._chunks = None
        elif SLOW in request.prompt_ids and self._chunks is not None:
            self._chunks += int(PREFILL_S / CHUNK_S)
        super().add(request)

    def advance(self) -> list[EngineOutput]:
        if self._chunks == 0:
            return super().advance()
        time.sleep(CHUNK_S)
        if self._chunks is not None:
            self._chunks -= 1
            self.progress += 1
        return []


class ScriptedTrial(Trial):
    """As of a grammar that takes long, and of one that the trial didn't find out."""

    def __init__(self, restarts: int) -> None:
        super().__init__()
        self._restarts = restarts

    def compile(self, grammar: Grammar) -> str:
        if grammar.text == HELD and self._restarts < HELD_RESTARTS:
            threading.Event().wait()
        if grammar.text == DEADLY:
            rules = "".join(f'r{n}: "a" r{n + 1} | "b" r{n + 1}\n' for n in range(30_000))
            return to_source(Grammar("lark", f'start: r0\n{rules}r30000: "c"\n'))
        return super().compile(grammar)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--report-fd", type=int, required=True)
    parser.add_argument("--tether-fd", type=int, required=True)
    parser.add_argument("--restarts", type=int, required=True)
    parser.add_argument("--stalls", type=int, required=True)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO)
    engine = PoisonableEngine(
        vocabulary=VOCABULARY, step_delay_s=0.02, slots=8, options=ALL_OPTIONS | {"response_format"}
    )
    tokenizer = PoisonableTokenizer(tokenizer_object=words(), unk_token="<unk>")  # type: ignore[no-untyped-call]
    settings = WorkerSettings.from_environment()
    restarts = Restarts(arguments.restarts, arguments.stalls)
    made = served(engine, tokenizer=tokenizer)
    compiler = GrammarCompiler(vocabulary(), trial=lambda: ScriptedTrial(arguments.restarts))
    worker = Worker(settings, replace(made, reader=replace(made.reader, grammars=compiler)), restarts=restarts)
    report_regularly(arguments.report_fd, worker.threads.progress, settings.heartbeat_ms / 1000)
    Tether(arguments.tether_fd).hand_over(worker.hand_back)
    worker.handle_signals()
    worker.work()


if __name__ == "__main__":
    main()
