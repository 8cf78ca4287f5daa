"""Scaling with the context length: first token, further tokens, and the gap of a takeover. With a model.

A takeover prefills the prompt and the emitted tokens again: the gap is the constant time to detect the death and to
claim, plus that prefill.
"""

from __future__ import annotations

import os
import signal
import time
from typing import TYPE_CHECKING, Final

from benchmarks.contenders import KV_CACHE_TOKENS, Arena
from benchmarks.report import Measurement
from benchmarks.waves import Wave, prompt_of
from tests.waiting import wait_until
from tokenrelay.producer import Producer
from tokenrelay.shared.wire import keys
from tokenrelay.shared.wire.entries import Migrated, Started, Token

if TYPE_CHECKING:
    from collections.abc import Iterator

    import redis
    from transformers import PreTrainedTokenizerBase

    from benchmarks.contenders import Contender
    from benchmarks.options import BenchOptions

FIRST: Final = "growth: prompt length, first token"
FURTHER: Final = "growth: prompt length, each further token"
RECOVERY: Final = "growth: recovery"
GROUPS: Final = (FIRST, FURTHER, RECOVERY)
LENGTHS: Final = (16, 64, 256, 1024, 2048)
_NEW_TOKENS: Final = 16
_LEFT_TOKENS: Final = 96
"""Long enough that the request is still running when the worker is killed, also with the bundled model."""
_KILLED_AT: Final = 4
_START_TIMEOUT_S: Final = 120.0


def measure(options: BenchOptions) -> Iterator[Measurement]:
    from transformers import AutoConfig, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(options.model)
    context = int(AutoConfig.from_pretrained(options.model).max_position_embeddings)
    lengths = [length for length in LENGTHS if length + _LEFT_TOKENS <= min(context, KV_CACHE_TOKENS)]
    lengths = lengths[:2] if options.quick else lengths
    yield from _prompts(options, tokenizer, lengths)
    yield from _recoveries(options, tokenizer, lengths)


def _prompts(options: BenchOptions, tokenizer: PreTrainedTokenizerBase, lengths: list[int]) -> Iterator[Measurement]:
    """One request at a time, on the engine alone and through the pipeline, in turns."""
    firsts: dict[tuple[int, str], list[float]] = {}
    nexts: dict[tuple[int, str], list[float]] = {}
    with Arena(options) as arena:
        contenders: dict[str, Contender] = {"engine alone": arena.engine_alone(), "tokenrelay": arena.pipeline()}
        for number in range(options.rounds):
            for length in lengths:
                wave = Wave((prompt_of(tokenizer, length, number * 10_000 + length),), _NEW_TOKENS, 0.0, number)
                for name, contender in contenders.items():
                    outcome = contender.run(wave)
                    rest_ms = (outcome.seconds - outcome.first_token_s[0]) * 1000
                    firsts.setdefault((length, name), []).append(outcome.ttft_ms)
                    nexts.setdefault((length, name), []).append(rest_ms / (_NEW_TOKENS - 1))
    for group, found in ((FIRST, firsts), (FURTHER, nexts)):
        for length in lengths:
            for name in contenders:
                title, values = f"{length:,} tokens of prompt: {name}", tuple(found[length, name])
                yield Measurement(group, title, "ms", values, line=name, at=length)


def _recoveries(options: BenchOptions, tokenizer: PreTrainedTokenizerBase, lengths: list[int]) -> Iterator[Measurement]:
    """Two workers; the one that generates is killed, and the other takes over."""
    gaps: dict[int, list[float]] = {length: [] for length in lengths}
    prefills: dict[int, list[float]] = {length: [] for length in lengths}
    with Arena(options) as arena:
        model = arena.pipeline().target["model"]
        arena.pipeline()
        with arena.redis().client() as client, Producer(arena.redis().url) as producer:
            wait_until(lambda: client.scard(keys.rq_workers(keys.queue(model, "default"))) == 2, _START_TIMEOUT_S)
            for number in range(options.rounds):
                for length in lengths:
                    prompt = prompt_of(tokenizer, length, 77_000 + number * 10_000 + length)
                    gap_ms, prefill_ms = _taken_over(client, producer, prompt, model)
                    gaps[length].append(gap_ms)
                    prefills[length].append(prefill_ms)
    for length in lengths:
        for line, found in (("longest pause", gaps), ("of which claim to next token", prefills)):
            name = f"{length:,} tokens of context: {line}"
            yield Measurement(RECOVERY, name, "ms", tuple(found[length]), line=line, at=length)


def _taken_over(client: redis.Redis, producer: Producer, prompt: str, model: str) -> tuple[float, float]:
    """The pause of a stream whose worker is killed, and its part after the claim; milliseconds on Redis's clock."""
    generation = producer.submit(prompt, model=model, max_new_tokens=_LEFT_TOKENS, temperature=0.0, ignore_eos=True)
    worker, last_us, claimed_us = "", 0, 0
    gap_ms = prefill_ms = 0.0
    for entry in generation.entries():
        if isinstance(entry, Started):
            worker = entry.worker
        elif isinstance(entry, Migrated):
            claimed_us = entry.at_us
        elif isinstance(entry, Token):
            if claimed_us and not gap_ms:
                gap_ms, prefill_ms = (entry.at_us - last_us) / 1000, (entry.at_us - claimed_us) / 1000
            last_us = entry.at_us
            if entry.index == _KILLED_AT:
                killed = _pid(client, worker)
                os.kill(killed, signal.SIGKILL)
    if not gap_ms:
        raise RuntimeError("the request ended before its worker was killed")
    wait_until(lambda: _pid(client, worker) not in (0, killed), _START_TIMEOUT_S)
    time.sleep(1)  # what the new child does once it has registered
    return gap_ms, prefill_ms


def _pid(client: redis.Redis, worker: str) -> int:
    return int(client.hget(keys.rq_worker(worker), "pid") or 0)
