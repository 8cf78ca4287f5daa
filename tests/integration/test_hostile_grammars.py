"""Hostile grammars end to end, beside neighbours whose tokens are compared: what can't be served fails, by itself."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest

from benchmarks.grammar_cases import HOSTILE
from tests.grammars import save_tiny_model
from tests.structured import MODEL, PLAIN, Weather, tiny_worker
from tokenrelay.producer import Generation, GenerationFailed, Producer, RequestError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tests.redis_servers import RedisServer

QUICK: Final = (
    "schema of 100,000 levels", "enum of 10 MB", "1,000 optional properties", "$ref loop of three", "100,000 items",
    "10^9 characters", "multipleOf of 7 primes", "(a|b)*a(a|b){30}", "rules of 256 KB", "ambiguous: s s s",
)  # fmt: skip
"""A few of each kind; `make slow` has all."""
MOST_GROWTH: Final = 1 << 30
"""Of the worker's memory, in bytes: 64 kept grammars of up to 30 MiB each would be twice as much."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model") / MODEL
    save_tiny_model(folder)
    return folder


def neighbours(producer: Producer) -> list[Generation]:
    """With a grammar and without, at temperature 3."""
    plain = [producer.submit("Hi", **{**PLAIN, "max_new_tokens": 300, "seed": seed}) for seed in range(4)]
    return plain + [producer.submit("Hi", response_format=Weather, **{**PLAIN, "seed": seed}) for seed in range(4)]


def tokens(generations: Iterable[Generation]) -> list[list[int]]:
    return [[token.token_id for token in each.result().tokens] for each in generations]


def submit(producer: Producer, name: str) -> Generation | None:
    """None where submit refuses it: for its size, or its depth."""
    kind, text = HOSTILE[name]()
    form: Any = {"type": kind, "value": text}
    try:
        return producer.submit("Hi", response_format=form, **{**PLAIN, "max_new_tokens": 24, "seed": 1})
    except RequestError:
        return None


def check(url: str, folder: Path, names: Iterable[str]) -> dict[str, str]:
    """How each ended, beside neighbours that end as without them."""
    with Producer(url=url) as producer, tiny_worker(url, folder, slots=32):
        expected = tokens(neighbours(producer))
        before = memory()
        hostile = {name: submit(producer, name) for name in names}
        beside = neighbours(producer)
        hostile |= {f"{name} again": submit(producer, name) for name in names}
        assert tokens(beside) == expected
        ends = {name: end_of(each) for name, each in hostile.items()}
        assert tokens(neighbours(producer)) == expected
        assert memory() - before < MOST_GROWTH
    return ends


def memory() -> int:
    """Resident, in bytes."""
    return int(Path("/proc/self/statm").read_text("ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")


def end_of(generation: Generation | None) -> str:
    if generation is None:
        return "refused"
    try:
        return str(generation.result().finish_reason)
    except GenerationFailed as error:
        return str(error.code)


def test_hostile_grammars_cost_no_neighbour_a_token(redis_server: RedisServer, folder: Path) -> None:
    ends = check(redis_server.url, folder, QUICK)
    assert ends["enum of 10 MB"] == ends["schema of 100,000 levels"] == "refused"
    assert ends["multipleOf of 7 primes"] == ends["rules of 256 KB"] == ends["$ref loop of three"] == "invalid_grammar"
    assert ends["100,000 items"] == "length"
    assert {ends["10^9 characters"], ends["(a|b)*a(a|b){30}"]} <= {"length", "stop"}  # they may end at once, or never


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_all_hostile_grammars_cost_no_neighbour_a_token(redis_server: RedisServer, folder: Path) -> None:
    """More than may wait to be compiled at a time: some are taken again later. All of them end."""
    ends = check(redis_server.url, folder, HOSTILE)
    assert set(ends.values()) <= {"refused", "invalid_grammar", "grammar_dead_end", "length", "stop"}
    assert {name for name in HOSTILE if ends[name] != ends[f"{name} again"]} == set()
