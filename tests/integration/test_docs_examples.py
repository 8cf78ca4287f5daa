"""The documentation's Python examples, run as written: docstrings, and README's code blocks."""

from __future__ import annotations

import doctest
import importlib
import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tokenrelay.producer import Producer
from tokenrelay.testing import ScriptedWorker

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.redis_servers import RedisServer

MODULES = ("tokenrelay.producer.client", "tokenrelay.producer.aio")
README = Path(__file__).parents[2] / "README.md"


@pytest.fixture(autouse=True)
def answered(redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A scripted worker on the Redis in the environment; it answers "It is sunny and warm."."""
    monkeypatch.setenv("TOKENRELAY_REDIS_URL", redis_server.url)
    with redis_server.client() as client, ScriptedWorker(client):
        yield


@pytest.fixture
def request_id() -> str:
    """The ID of an answered request, for the examples."""
    with Producer() as producer:
        generation = producer.submit("What is the weather today?")
        generation.result(timeout_s=10)
        return generation.request_id


@pytest.mark.parametrize("module", MODULES)
def test_docstrings(module: str, request_id: str) -> None:
    result = doctest.testmod(importlib.import_module(module), extraglobs={"request_id": request_id})
    assert result.attempted > 0
    assert result.failed == 0


def python_blocks() -> list[str]:
    return re.findall(r"```python\n(.*?)```", README.read_text("utf-8"), re.DOTALL)


@pytest.mark.parametrize("number", range(len(python_blocks())))
def test_readme(number: int, request_id: str) -> None:
    exec(compile(python_blocks()[number], f"README.md, block {number}", "exec"), {"request_id": request_id})


def test_the_api_as_promised(capsys: pytest.CaptureFixture[str]) -> None:
    """The Python API in one example."""
    from tokenrelay.producer import Consumer, Producer

    with Producer() as producer:
        generation = producer.submit("What is the weather today?", max_new_tokens=32, temperature=0.7, seed=7)
        request_id = generation.request_id
        for token in generation:
            print(token.text, end="", flush=True)  # noqa: T201
        answer = generation.result(timeout_s=60)
        with producer.stream("Tell me more"):
            ...
    with Consumer() as consumer:
        again = consumer.get(request_id)
        indexes = [token.index for token in again.tokens(after=3)]
        kinds = [event.kind for event in again.events()]
    assert capsys.readouterr().out == answer.text == "It is sunny and warm."
    assert (answer.finish_reason, answer.seed, indexes) == ("stop", 7, [4, 5, 6])
    assert kinds == ["queued", "started", "completed"]
