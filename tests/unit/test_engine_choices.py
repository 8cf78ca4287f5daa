"""Requests that share a prompt: the default engine prefills it once, and every token stays what it was alone."""

from __future__ import annotations

import random
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Final

import pytest
import torch
from transformers.generation.continuous_batching.requests import RequestState

from tests.polled_engine import PolledEngine
from tests.unit.test_engine_batching import VOCABULARY, loaded, run_until_ended, tiny_mistral
from tests.waiting import wait_until
from tokenrelay.worker.engine.contract import EngineRequest
from tokenrelay.worker.engine.transformers.kv_cache import EngineSettings
from tokenrelay.worker.engine.transformers.prompt_sharing import share_pages
from tokenrelay.worker.sampling.params import SamplingParams

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

N: Final = 8
PAGE: Final = 32


@pytest.fixture(scope="module", autouse=True)
def _one_torch_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class Counted(PolledEngine):
    """Counts the tokens that its model reads, prefill and decode together."""

    def __init__(self, settings: EngineSettings, *, sliding: bool = False) -> None:
        super().__init__(made := loaded(model=tiny_mistral() if sliding else None), settings)
        self.tokens = 0
        made.model.get_input_embeddings().register_forward_pre_hook(self._count)

    def _count(self, _: object, inputs: tuple[torch.Tensor]) -> None:
        self.tokens += inputs[0].numel()


@contextmanager
def running(*, sliding: bool = False, **settings: int) -> Iterator[Counted]:
    engine = Counted(EngineSettings(**{"slots": N, **settings}), sliding=sliding)
    engine.begin()
    engine.tokens = 0
    try:
        yield engine
    finally:
        engine.stop()


@pytest.fixture(scope="module")
def engine() -> Iterator[Counted]:
    with running() as engine:
        yield engine


def reached(engine: Counted, tokens: int) -> bool:
    return engine.tokens >= tokens


def prompt_of(length: int, start: int = 1) -> tuple[int, ...]:
    return tuple((start + 7 * step) % VOCABULARY for step in range(length))


PROMPT: Final = prompt_of(50, 5)


def choices(name: str, prompt: Sequence[int], tokens: int, n: int = N) -> list[EngineRequest]:
    return [
        EngineRequest(f"{name}{k}", tuple(prompt), (), tokens, SamplingParams(1.0, 0, 1.0, seed=k), shares_prompt=True)
        for k in range(n)
    ]


def alone(engine: PolledEngine, requests: Sequence[EngineRequest]) -> list[list[int]]:
    """The tokens of each, one after the other, with nothing shared."""
    plain = [replace(each, engine_id=f"alone {each.engine_id}", shares_prompt=False) for each in requests]
    return [run_until_ended(engine, each)[each.engine_id][0] for each in plain]


def together(engine: PolledEngine, requests: Sequence[EngineRequest]) -> list[list[int]]:
    return [tokens for tokens, _ in run_until_ended(engine, *requests).values()]


@pytest.mark.parametrize("length", [2, 7, 31, 32, 33, 34, 63, 64, 65, 100])
@pytest.mark.parametrize("tokens", [1, 9])
def test_eight_choices_prefill_their_prompt_once(engine: Counted, length: int, tokens: int) -> None:
    """Without sharing 8 prompts; limit 2. Beside it each choice reads the prompt's last token, and its own but one."""
    asked = choices(f"{length} {tokens} ", prompt_of(length, length), tokens)
    before = engine.tokens
    found = together(engine, asked)
    read = engine.tokens - before
    assert read - N * (tokens - 1) <= length - 1 + N
    if length >= N:
        assert read - N * (tokens - 1) <= 2 * length
    assert found == alone(engine, asked)


def test_a_prompt_that_is_prefilled_in_pieces_is_shared_whole() -> None:
    """At 16 tokens a step, beside a neighbour's decode."""
    with running(max_batch_tokens=16) as engine:
        neighbour = EngineRequest("n", prompt_of(3), (), 40, SamplingParams(1.0, 0, 1.0, seed=99))
        asked = choices("", prompt_of(60), 5, N - 1)
        *found, other = together(engine, [*asked, neighbour])
        assert engine.tokens <= 60 - 1 + (N - 1) * 5 + 3 + 39
        assert found == alone(engine, asked)
        assert [other] == alone(engine, [neighbour])


def test_choices_that_come_later_copy_from_those_that_are_there(engine: Counted) -> None:
    """The first one is far beyond the prompt's last page by then."""
    first, *others = choices("late", prompt_of(45), 60)
    engine.add(first)
    tokens = {each.engine_id: list[int]() for each in (first, *others)}
    ended = set[str]()

    def read() -> bool:
        for output in engine.outputs(1.0):
            tokens[output.engine_id] += output.token_ids
            ended.update([output.engine_id] if output.finish_reason else [])
        return len(tokens["late0"]) > PAGE

    before = engine.tokens
    wait_until(read)
    for each in others:
        engine.add(each)
    wait_until(lambda: read() and len(ended) == N)
    assert engine.tokens - before <= 45 - 1 + N * 60
    assert list(tokens.values()) == alone(engine, [first, *others])


def test_resumed_choices_share_the_prompt(engine: Counted) -> None:
    """Each goes on behind other tokens of its own."""
    asked = choices("resumed", prompt_of(40), 30)
    whole = alone(engine, asked)
    cut = [replace(each, emitted_ids=tuple(whole[k][: 3 * k])) for k, each in enumerate(asked)]
    before = engine.tokens
    assert together(engine, cut) == [tokens[3 * k :] for k, tokens in enumerate(whole)]
    assert engine.tokens - before <= 40 - 1 + N * 30


def test_others_go_on_when_the_one_that_prefills_is_cancelled() -> None:
    """After each number of steps: before, while and after the prompt is prefilled."""
    with running(max_batch_tokens=16) as engine:
        for steps in range(6):
            asked = choices(f"{steps} ", prompt_of(50, steps), 6)
            for each in asked:
                engine.add(each)
            until = engine.tokens + 16 * steps
            wait_until(partial(reached, engine, until))
            engine.cancel(asked[0].engine_id)
            left = {each.engine_id: list[int]() for each in asked}
            ended = set[str]()

            def read(left: dict[str, list[int]] = left, ended: set[str] = ended) -> bool:
                for output in engine.outputs(1.0):
                    left[output.engine_id] += output.token_ids
                    ended.update([output.engine_id] if output.finish_reason else [])
                return len(ended) >= N - 1

            wait_until(read)
            assert list(left.values())[1:] == alone(engine, asked)[1:], steps


def test_a_small_cache_keeps_every_token_and_every_page() -> None:
    """Six pages of 32 tokens: requests are thrown out and prefilled again. At the end all pages are free."""
    with running(kv_cache_tokens=192) as small, running() as roomy:
        for length in (20, 40, 64):
            asked = choices(f"{length}", prompt_of(length), 60)
            assert together(small, asked) == alone(roomy, asked)
        processor = small._manager.batch_processor
        assert processor is not None
        cache = processor.cache
        wait_until(lambda: not any(allocator.block_table for allocator in cache.cache_allocators.values()))
        cache.evict_cached_blocks()
        cache.pool.try_to_free_sectors()
        assert cache.pool.num_free_sectors == cache.num_sectors
        assert not any(allocator.ledger.shared_ref_counts for allocator in cache.cache_allocators.values())


def test_choices_whose_prompts_are_scored_report_each_of_them(engine: Counted) -> None:
    """No hidden states are computed for what is copied: those that ask prefill by themselves."""
    asked = [
        replace(each, prompt_logprobs=2) if k in (3, 4) else each for k, each in enumerate(choices("s", PROMPT, 3))
    ]
    for each in asked:
        engine.add(each)
    reported, ended = dict[str, int](), set[str]()

    def read() -> bool:
        for output in engine.outputs(1.0):
            if output.prompt_logprobs is not None:
                reported[output.engine_id] = len(output.prompt_logprobs)
            ended.update([output.engine_id] if output.finish_reason else [])
        return len(ended) == N

    wait_until(read)
    assert reported == {each.engine_id: len(PROMPT) - 1 for each in asked[3:5]}


def test_pages_that_the_manager_does_not_know_yet_are_shared_too(engine: Counted) -> None:
    """Under asynchronous batching a page gets its hash a step after it was filled."""
    processor = engine._manager.batch_processor
    assert processor is not None
    (allocator,) = processor.cache.cache_allocators.values()
    source = RequestState(request_id="source", initial_tokens=[])
    assert processor.cache.can_store_request_tokens(source, 2 * PAGE + 6)
    first, second, third = allocator.block_table["source"]
    allocator._copy_view[third].fill_(7)
    processor.cache.pool.allocate_sector(allocator.index)
    share_pages(allocator, "source", "other", 2 * PAGE + 3)
    copied = allocator.block_table["other"][2]
    assert allocator.block_table["other"] == [first, second, copied]
    assert copied != third
    assert torch.equal(allocator._copy_view[copied], allocator._copy_view[third])
    assert allocator.ledger.shared_ref_counts == {first: 2, second: 2}
    allocator.free_blocks("source")
    assert allocator.ledger.shared_ref_counts == {}, "the other one still has them, alone"
    allocator.free_blocks("other")


def test_a_sliding_window_shares_nothing_and_is_right() -> None:
    """Its cache is a ring, whose oldest tokens are overwritten."""
    with running(sliding=True, slots=4) as engine:
        asked = choices("", prompt_of(40), 12, 4)
        assert together(engine, asked) == alone(engine, asked)


@pytest.mark.parametrize("seed", range(4))
def test_random_company(seed: int) -> None:
    """Choices and plain requests, some prompts prefixes of others', in random order, more than there are slots."""
    rng = random.Random(seed)
    with running(slots=5, max_batch_tokens=24, kv_cache_tokens=512) as engine:
        asked = []
        for group in range(5):
            shares = rng.random() < 0.7
            made = choices(f"{group} ", prompt_of(rng.randint(1, 70)), rng.randint(1, 30), rng.randint(1, 5))
            asked += [replace(each, shares_prompt=shares) for each in made]
        rng.shuffle(asked)
        assert together(engine, asked) == alone(engine, asked)
