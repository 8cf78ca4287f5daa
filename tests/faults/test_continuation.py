"""Crashes where the text side has something in its hands: a half character, a half stop string; first and last token.

Real tokenizers, real workers, real Redis; the engine says a given sentence, whoever runs it, and dies when told to.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pytest
from pydantic import SecretStr

from tests.engines import ScriptedEngine
from tests.integration.test_worker import entries
from tests.unit.test_detokenizer import byte_level, sentencepiece
from tests.workers import MODEL, submit
from tokenrelay.shared.errors import EngineError
from tokenrelay.shared.redis.connections import connect
from tokenrelay.shared.settings import WorkerSettings
from tokenrelay.shared.wire.answer import Answer, assemble
from tokenrelay.shared.wire.entries import State, Usage
from tokenrelay.worker.serving.model import Served
from tokenrelay.worker.serving.prompts import PromptReader
from tokenrelay.worker.text import EndRules, TokenText
from tokenrelay.worker.worker import Worker

if TYPE_CHECKING:
    from collections.abc import Callable

    from redis import Redis
    from transformers import PreTrainedTokenizerFast

    from tests.redis_servers import RedisServer
    from tokenrelay.shared.redis.batches import Pipeline

SAID = "Żółć 🌧️ EN, ENDE. END of it"
STOP = ("END of", "ENDO")
SHOWN = "Żółć 🌧️ EN, ENDE. "
TOKENIZERS = {"byte-level BPE": byte_level, "SentencePiece with byte fallback": sentencepiece}


def script_of(tokenizer: PreTrainedTokenizerFast, said: str = SAID) -> list[int]:
    return list(tokenizer(said, add_special_tokens=False)["input_ids"])


def held_after(tokenizer: PreTrainedTokenizerFast, stop: tuple[str, ...]) -> list[int]:
    """After how many tokens something is held back: bytes of a character, or what may become a stop string."""
    script = script_of(tokenizer)
    cuts = []
    for count in range(1, len(script)):
        text = TokenText(tokenizer, EndRules(stop))
        stopped = any(release.stopped for release in text.replay(script[:count]))
        if not stopped and text.flush():
            cuts.append(count)
    return cuts


def work(url: str, tokenizer: PreTrainedTokenizerFast, engine: ScriptedEngine) -> None:
    """A worker's life until the queues are empty, or until its engine dies (EngineError)."""
    engine.prepare()
    capabilities = replace(engine.capabilities, vocabulary=len(tokenizer))
    worker = Worker(
        settings=WorkerSettings(redis_url=SecretStr(url), heartbeat_ms=50),
        served=Served(engine, PromptReader.of(tokenizer, MODEL, "reading-1", capabilities)),
        connection=connect(url),
    )
    try:
        worker.work(burst=True)
    finally:
        worker.connection.close()


@pytest.fixture
def continued(
    redis_server: RedisServer, redis: Redis, pipeline: Pipeline
) -> Callable[[PreTrainedTokenizerFast, int, tuple[str, ...]], Answer]:
    """The answer of a request whose first worker died after so many tokens."""

    def run(tokenizer: PreTrainedTokenizerFast, dies_after: int, stop: tuple[str, ...]) -> Answer:
        script = script_of(tokenizer)
        chosen = {"max_new_tokens": len(script), "stop": list(stop)}
        request_id = submit(pipeline, datetime.now(UTC), prompt="It is", **chosen)
        with pytest.raises(EngineError):
            work(redis_server.url, tokenizer, ScriptedEngine(script, fail_after=dies_after))
        work(redis_server.url, tokenizer, ScriptedEngine(script))
        return assemble(request_id, entries(redis, request_id))

    return run


@pytest.mark.parametrize(
    "name",
    # The more bytes are tokens, the more places there are.
    ["byte-level BPE", pytest.param("SentencePiece with byte fallback", marks=pytest.mark.slow)],
)
def test_a_crash_while_text_is_held_back(
    name: str, continued: Callable[[PreTrainedTokenizerFast, int, tuple[str, ...]], Answer]
) -> None:
    """Inside a character and inside a half-matched stop string, at every token where that is so."""
    tokenizer = TOKENIZERS[name]()
    prompt_tokens = len(tokenizer("It is")["input_ids"])
    cuts = held_after(tokenizer, STOP)
    inside_characters = held_after(tokenizer, ())
    assert inside_characters, "the sentence has characters of several tokens"
    assert set(cuts) - set(inside_characters), "and half-matched stop strings"
    for cut in cuts:
        got = continued(tokenizer, cut, STOP)
        assert (got.text, got.state, got.finish_reason, got.attempts) == (SHOWN, State.COMPLETED, "stop", 2), cut
        assert got.usage == Usage(prompt_tokens, len(got.tokens), prompt_tokens + cut), cut


@pytest.mark.parametrize("name", TOKENIZERS)
@pytest.mark.parametrize("when", ["before the first token", "on the very last token"])
def test_a_crash_at_an_end(
    name: str, when: str, continued: Callable[[PreTrainedTokenizerFast, int, tuple[str, ...]], Answer]
) -> None:
    tokenizer = TOKENIZERS[name]()
    script, prompt_tokens = script_of(tokenizer), len(tokenizer("It is")["input_ids"])
    cut = 0 if when.startswith("before") else len(script)
    got = continued(tokenizer, cut, ())
    assert [token.token_id for token in got.tokens] == script
    assert (got.text, got.state, got.finish_reason, got.attempts) == (SAID, State.INCOMPLETE, "length", 2)
    assert got.usage == Usage(prompt_tokens, len(script), prompt_tokens + cut)
