"""Workers of the tiny model for tests of structured output."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, Field, SecretStr

from tests.workers import running_model
from tokenrelay.shared.settings import WorkerSettings
from tokenrelay.worker.sampling.grammar.compiler import GrammarCompiler
from tokenrelay.worker.sampling.grammar.token_bytes import read_vocabulary
from tokenrelay.worker.serving.model import Served, serve

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from redis import Redis

    from tokenrelay.worker.worker import Worker

MODEL = "tiny"
PLAIN: dict[str, Any] = {"model": MODEL, "temperature": 3.0, "max_new_tokens": 200}


class Weather(BaseModel):
    """What the tests ask for."""

    city: str = Field(min_length=20, max_length=24)
    degrees: int = Field(ge=-40, le=50)
    sky: list[bool] = Field(min_length=3, max_length=8)


@contextmanager
def tiny_worker(
    url: str, folder: Path, change: Callable[[Served], Served] = lambda served: served, **settings: Any
) -> Iterator[Worker]:
    """A worker for the tiny model, and with what `change` makes of it."""
    chosen = {
        "device": "cpu", "dtype": "float64", "slots": 16, "model_path": str(folder), "served_model": MODEL, **settings,
    }  # fmt: skip
    served = change(serve(WorkerSettings(redis_url=SecretStr(url), **chosen)))
    with running_model(url, served, **chosen) as worker:
        yield worker


def compiling(**chosen: Any) -> Callable[[Served], Served]:
    """Has the worker's grammars compiled by a GrammarCompiler with these options."""

    def change(served: Served) -> Served:
        vocabulary = read_vocabulary(served.reader.tokenizer, 440, frozenset({0}))
        return replace(served, reader=replace(served.reader, grammars=GrammarCompiler(vocabulary, **chosen)))

    return change


def was_refused(redis: Redis, job: str) -> bool:
    names: Any = redis.hkeys(job)
    return any(name.startswith(b"refused:") for name in names)
