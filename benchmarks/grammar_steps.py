"""What grammars cost an engine's steps: the mask of a token, and how long compilations keep a thread from running.

A thread that wakes each millisecond stands for the engine's, which needs the interpreter after each operation. What
other processes cost is measured beside it, by a process that does the same.
"""

from __future__ import annotations

import json
import multiprocessing
import random
import statistics
import threading
import time
from typing import TYPE_CHECKING, Any, Final

from benchmarks.grammar_cases import USUAL
from benchmarks.report import Measurement

if TYPE_CHECKING:
    from collections.abc import Iterator
    from multiprocessing.connection import Connection

    from benchmarks.options import BenchOptions
    from tokenrelay.worker.sampling.grammar.compiler import Compilation, GrammarCompiler
    from tokenrelay.worker.sampling.grammar.vocabulary import Vocabulary

GROUP: Final = "grammars"
_WALKS, _TOKENS = 4, 200
_SCHEMAS: Final = 256
_PROPERTIES: Final = 4_880
_TICK_S: Final = 0.001


def measure(options: BenchOptions) -> Iterator[Measurement]:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_measure, args=(theirs, options))
    process.start()
    theirs.close()
    try:
        found: list[Measurement] = ours.recv()
    finally:
        process.join()
    yield from found


def _measure(results: Connection, options: BenchOptions) -> None:
    from transformers import AutoTokenizer

    from tokenrelay.worker.sampling.grammar.compiler import GrammarCompiler
    from tokenrelay.worker.sampling.grammar.token_bytes import read_vocabulary
    from tokenrelay.worker.serving.model import tune_interpreter

    tokenizer = AutoTokenizer.from_pretrained(options.model)
    vocabulary = read_vocabulary(tokenizer, len(tokenizer), frozenset({int(tokenizer.eos_token_id)}))
    compiler = GrammarCompiler(vocabulary)
    tune_interpreter()
    schemas, tokens = (options.rounds, 10) if options.quick else (_SCHEMAS, _TOKENS)
    try:
        masks = _masks(vocabulary, compiler, options.rounds, tokens)
        results.send([*masks, *_pauses(compiler, options.rounds, schemas)])
    finally:
        compiler.close()


def _masks(vocabulary: Vocabulary, compiler: GrammarCompiler, rounds: int, tokens: int) -> Iterator[Measurement]:
    """CPU time of a mask along random walks among the allowed tokens."""
    from tokenrelay.worker.sampling.grammar.grammar import Grammar

    compiled = [compiler.compile(Grammar(kind, text)) for kind, text in USUAL.values()]  # type: ignore[arg-type]
    cuts: list[list[float]] = []
    for number in range(rounds):
        rng = random.Random(number)
        walks = [_walk(grammar, rng, tokens, vocabulary) for grammar in compiled for _ in range(_WALKS)]
        cuts.append(statistics.quantiles([each for walk in walks for each in walk], n=100))
    note = f"{len(USUAL)} grammars as applications send them, CPU time of one thread"
    name = f"mask of a token, vocabulary of {len(vocabulary.tokens):,}"
    yield Measurement(GROUP, f"{name}: p50", "ms", tuple(each[49] * 1e3 for each in cuts), note=note)
    yield Measurement(GROUP, f"{name}: p99", "ms", tuple(each[98] * 1e3 for each in cuts), "≤", 1.0, note)


def _walk(grammar: Any, rng: random.Random, tokens: int, vocabulary: Vocabulary) -> Iterator[float]:
    import numpy as np

    from tokenrelay.worker.sampling.grammar.matcher import AnswerMask

    mask, ids = AnswerMask(grammar), list[int]()
    for _ in range(tokens):
        began = time.thread_time()
        bits = mask(ids)
        yield time.thread_time() - began
        allowed = np.flatnonzero(np.unpackbits(bits.numpy().view(np.uint8), bitorder="little"))
        if not len(allowed) or (token := int(rng.choice(allowed))) in vocabulary.eos_ids:
            return
        ids.append(token)


def _pauses(compiler: GrammarCompiler, rounds: int, schemas: int) -> Iterator[Measurement]:
    """How much later than due a thread runs, in the process that compiles and in one beside it."""
    context = multiprocessing.get_context("spawn")
    here: list[float] = []
    longest: list[float] = []
    rates: list[float] = []
    for number in range(rounds):
        texts = [_schema(each) for each in range(number, schemas, rounds)]
        stop, (ours, theirs) = context.Event(), context.Pipe()
        beside = context.Process(target=_send_lateness, args=(theirs, stop))
        beside.start()
        ours.recv()  # it has begun
        here.clear()
        ticking = threading.Thread(target=_tick, args=(here, stop))
        ticking.start()
        began = time.perf_counter()
        _compile(compiler, texts)
        rates.append(sum(map(len, texts)) / 1e6 / (time.perf_counter() - began))
        stop.set()
        ticking.join()
        longest.append((max(here) - max(ours.recv())) * 1e3)
        beside.join()
    note = f"{schemas} schemas of 256 KB over all rounds"
    name = "longest pause of a thread while schemas are compiled − of one in another process"
    yield Measurement(GROUP, name, "ms", tuple(longest), "≤", 5.0, note)
    yield Measurement(GROUP, "schemas compiled", "MB/s", tuple(rates), note=note)


def _tick(lateness: list[float], stop: Any) -> None:
    while not stop.is_set():
        began = time.perf_counter()
        time.sleep(_TICK_S)
        lateness.append(time.perf_counter() - began - _TICK_S)


def _send_lateness(results: Connection, stop: Any) -> None:
    results.send(None)
    lateness: list[float] = []
    _tick(lateness, stop)
    results.send(lateness)


def _compile(compiler: GrammarCompiler, texts: list[str]) -> None:
    """Compile as fast as the compiler takes them."""
    from tokenrelay.shared.errors import EngineError
    from tokenrelay.worker.sampling.grammar.compiler import outcome
    from tokenrelay.worker.sampling.grammar.grammar import Grammar

    begun: list[Compilation] = []
    for text in texts:
        while True:
            try:
                begun.append(compiler.begin(Grammar("json_schema", text)))
                break
            except EngineError:  # as many wait as may
                outcome(begun.pop(0))
    for each in begun:
        outcome(each)


def _schema(number: int) -> str:
    """256 KB, and another one for each number."""
    names = [f"field{number:03d}_{index}" for index in range(_PROPERTIES)]
    properties = {name: {"type": "string"} for name in names}
    return json.dumps({"type": "object", "properties": properties, "additionalProperties": False, "required": names})
