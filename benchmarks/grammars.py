"""Compares two grammar libraries: python -m benchmarks.grammars --model DIR [--suite DIR].

Prints, for llguidance and xgrammar: CPU time of a mask and of a compilation, coverage of JSON Schema's own test suite
(a checkout of github.com/json-schema-org/JSON-Schema-Test-Suite), and what hostile grammars cost, each in a process of
its own with 20 s and 4 GB. Both libraries have to be installed (`pip install llguidance xgrammar`). docs/adr/0020 holds
the figures that decided.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import random
import resource
import statistics
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from benchmarks.grammar_cases import HOSTILE, USUAL
from benchmarks.grammar_libraries import LIBRARIES

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from benchmarks.grammar_libraries import Library, Matcher

_WALKS, _TOKENS = 4, 200
_HOSTILE_S: Final = 20
_HOSTILE_BYTES: Final = 4 << 30


def quantiles(seconds: Sequence[float]) -> str:
    """p50, p99 and the largest, in ms."""
    cuts = statistics.quantiles(seconds, n=100) if len(seconds) > 1 else [seconds[0]] * 99
    return f"p50 {cuts[49] * 1e3:.3f} ms, p99 {cuts[98] * 1e3:.3f} ms, max {max(seconds) * 1e3:.1f} ms"


def walk(matcher: Matcher, rng: random.Random, tokens: int, eos: int) -> Iterator[float]:
    """CPU seconds of each mask along random tokens that it allows, until the grammar ends."""
    for _ in range(tokens):
        began = time.thread_time()
        bits = matcher.mask()
        yield time.thread_time() - began
        allowed = np.flatnonzero(np.unpackbits(bits.view(np.uint8), bitorder="little"))
        if not len(allowed):
            return
        token = int(rng.choice(allowed))
        if token == eos:
            return
        matcher.accept(token)


def measure_usual(library: Library, eos: int) -> None:
    """Compilation and masks of the usual grammars."""
    masks: list[float] = []
    compilations: list[float] = []
    for name, (kind, text) in USUAL.items():
        try:
            began = time.thread_time()
            make = library.compile(kind, text)
            make().mask()
            compilations.append(time.thread_time() - began)
        except Exception as error:  # noqa: BLE001 - whatever the library raises is its answer
            print(f"  {name}: {str(error)[:100]}")
            continue
        own = [each for seed in range(_WALKS) for each in walk(make(), random.Random(seed), _TOKENS, eos)]
        print(f"  {name}: compiled in {compilations[-1] * 1e3:.1f} ms; {len(own)} masks: {quantiles(own)}")
        masks += own
    print(f"  all: compilation {quantiles(compilations)}; {len(masks)} masks: {quantiles(masks)}")


def accepts(matcher: Matcher, ids: Iterable[int], eos: int) -> bool:
    """Whether the grammar lets a text be written, token by token, and then end."""
    return all(matcher.accept(token) for token in ids) and bool(matcher.mask()[eos // 32] >> (eos % 32) & 1)


def measure_coverage(library: Library, suite: Path, tokenizer: PreTrainedTokenizerBase, eos: int) -> None:
    """Schemas and instances of the suite's required tests.

    An invalid instance that is accepted is a wrong answer waiting; a valid one that is refused is only an answer that
    can't be given (an order of keys, for one).
    """
    counted: Counter[str] = Counter()
    times: list[float] = []
    for file in sorted((suite / "tests" / "draft2020-12").glob("*.json")):
        for group in json.loads(file.read_text("utf-8")):
            counted["schemas"] += 1
            began = time.thread_time()
            try:
                make = library.compile("json_schema", json.dumps(group["schema"]))
                matcher = make()
            except Exception:  # noqa: BLE001
                counted["schemas refused"] += 1
                continue
            finally:
                times.append(time.thread_time() - began)
            wrong = False
            for test in group["tests"]:
                text = json.dumps(test["data"], separators=(",", ":"), ensure_ascii=False)
                ids = tokenizer(text, add_special_tokens=False)["input_ids"]
                matcher = make()
                accepted = accepts(matcher, ids, eos)
                counted["valid" if test["valid"] else "invalid"] += 1
                counted["invalid accepted"] += accepted and not test["valid"]
                counted["valid refused"] += test["valid"] and not accepted
                wrong |= accepted and not test["valid"]
            counted["schemas that let an invalid instance through"] += wrong
    print(
        "  suite:", ", ".join(f"{number} {name}" for name, number in counted.items()), "| compilation", quantiles(times)
    )


def _attempt(results: Any, model: str, vocabulary: int, library: str, case: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(model)
    compiler = LIBRARIES[library](tokenizer, vocabulary)
    kind, text = HOSTILE[case]()
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    resource.setrlimit(resource.RLIMIT_AS, (_HOSTILE_BYTES, _HOSTILE_BYTES))
    began = time.thread_time()
    outcome, spent = "", 0.0
    masks: list[float] = []
    results.put(None)
    try:
        make = compiler.compile(kind, text)
        spent = time.thread_time() - began
        masks = list(walk(make(), random.Random(1), 30, int(tokenizer.eos_token_id)))
    except Exception as error:  # noqa: BLE001
        outcome = " ".join(str(error).split())[:90] or type(error).__name__
    spent = spent or time.thread_time() - began
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - used) >> 10
    shown = f", slowest mask {max(masks) * 1e3:.0f} ms" if masks else ""
    results.put(f"{'refused' if outcome else 'compiled'} in {spent * 1e3:.0f} ms, +{grown} MB{shown} {outcome}")


def measure_hostile(library: str, model: str, vocabulary: int) -> None:
    """Each hostile grammar alone in a process."""
    context = multiprocessing.get_context("spawn")
    for case in HOSTILE:
        results = context.Queue()
        process = context.Process(target=_attempt, args=(results, model, vocabulary, library, case), daemon=True)
        process.start()
        results.get()
        process.join(_HOSTILE_S)
        if process.is_alive():
            process.kill()
            process.join()
            print(f"  {case}: killed after {_HOSTILE_S} s", flush=True)
        elif process.exitcode:
            print(f"  {case}: the process died, exit code {process.exitcode}", flush=True)
        else:
            print(f"  {case}: {results.get()}", flush=True)


def main() -> None:
    """Measure each library that was asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True, help="folder of a model whose tokenizer to use")
    parser.add_argument("--suite", type=Path, help="checkout of JSON-Schema-Test-Suite")
    parser.add_argument("--library", choices=sorted(LIBRARIES), action="append")
    parser.add_argument("--no-hostile", action="store_true")
    asked = parser.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(asked.model)
    vocabulary, eos = len(tokenizer), int(tokenizer.eos_token_id)
    for name in asked.library or LIBRARIES:
        library = LIBRARIES[name](tokenizer, vocabulary)
        print(f"{name} {library.version}, vocabulary {vocabulary}", flush=True)
        measure_usual(library, eos)
        if asked.suite:
            measure_coverage(library, asked.suite, tokenizer, eos)
        if not asked.no_hostile:
            measure_hostile(name, asked.model, vocabulary)


if __name__ == "__main__":
    main()
