"""Real workers for tests: RQ's registration, all scripts and threads, over the counting engine."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, Any

from pydantic import SecretStr
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from tests.engines import CountingEngine
from tests.waiting import wait_until
from tokenrelay.shared import options
from tokenrelay.shared.redis.commands import Call
from tokenrelay.shared.settings import WorkerSettings
from tokenrelay.shared.store.jobs import Enqueue, enqueue_call
from tokenrelay.shared.store.scripts import script
from tokenrelay.shared.wire import keys
from tokenrelay.worker.serving.model import Served
from tokenrelay.worker.serving.prompts import PromptReader
from tokenrelay.worker.worker import Worker

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from datetime import datetime

    from tokenrelay.shared.redis.batches import Pipeline
    from tokenrelay.worker.engine.contract import Engine

MODEL = "counting"
VOCABULARY = 1000
LIMITS = options.Limits(max_prompt_chars=10_000, max_new_tokens=10_000)


@cache
def word_tokenizer() -> PreTrainedTokenizerFast:
    """Word N of the vocabulary is `wN`; answers are words with blanks between."""
    return PreTrainedTokenizerFast(tokenizer_object=words(), unk_token="<unk>")  # type: ignore[no-untyped-call]


def words() -> Tokenizer:
    vocabulary = {f"w{index}": index for index in range(VOCABULARY)} | {"<unk>": VOCABULARY}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.decoder = decoders.WordPiece(cleanup=False)
    return tokenizer


def served(
    engine: Engine,
    fingerprint: str = "counting-1",
    tokenizer: PreTrainedTokenizerFast | None = None,
    defaults: Mapping[str, Any] | None = None,
) -> Served:
    engine.prepare()
    tokenizer = tokenizer or word_tokenizer()
    return Served(engine, PromptReader.of(tokenizer, MODEL, fingerprint, engine.capabilities, defaults))


@contextmanager
def running_worker(
    url: str,
    engine: Engine | None = None,
    *,
    fingerprint: str = "counting-1",
    tokenizer: PreTrainedTokenizerFast | None = None,
    defaults: Mapping[str, Any] | None = None,
    **settings: Any,
) -> Iterator[Worker]:
    """Run a registered worker that claims; stop it at the end and raise its errors. `defaults`: the model's own."""
    made = served(engine or CountingEngine(vocabulary=VOCABULARY), fingerprint, tokenizer, defaults)
    with running_model(url, made, **settings) as worker:
        yield worker


@contextmanager
def running_model(url: str, made: Served | None = None, **settings: Any) -> Iterator[Worker]:
    """As `running_worker`, for a model: that of the settings where none is given."""
    chosen = WorkerSettings(redis_url=SecretStr(url), **{"heartbeat_ms": 50, "drain_timeout_s": 0.5, **settings})
    worker = Worker(chosen, made)
    errors: list[BaseException] = []

    def work() -> None:
        try:
            worker.work()
        except BaseException as error:  # noqa: BLE001  raised again in the test's own thread
            errors.append(error)

    thread = threading.Thread(target=work, name="worker")
    thread.start()
    try:
        wait_until(lambda: worker.connection.exists(keys.rq_worker(worker.name)) or errors)
        yield worker
    finally:
        worker.stop()
        thread.join()
        for client in worker.servers.clients:
            client.close()
    if errors:
        raise errors[0]


def submit(pipeline: Pipeline, now: datetime, prompt: str = "w1 w2 w3", **chosen: Any) -> str:
    """Submit a request with the scripts only, and return its ID."""
    request = options.validate({"prompt": prompt, "model": MODEL, "seed": 7, "max_new_tokens": 8, **chosen}, LIMITS)
    request_id, queue = keys.new_request_id(), keys.queue(request["model"], request["priority"])
    deadline_ms = int(request["deadline_s"] * 1000)
    create = (options.body_sha256(request, LIMITS), deadline_ms, 60_000, "", "", queue, options.dump(request))
    job = Enqueue(request_id, queue, deadline_ms // 1000 + 60, deadline_ms // 1000, 60, 1000)
    calls = Call(script("create"), keys.of_request(request_id), create), enqueue_call(job, now)
    replies = [reply for call in calls for reply in pipeline.run([call])]
    assert [reply[0] for reply in replies] == [b"OK", b"OK"], replies
    return request_id
