"""One sick request of any kind among 32, in a worker over a real engine in float64: the 31 others' texts are what they
are without it. The worker is the same in all examples, so that nothing sick may stay behind in it either."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from rq.suspension import resume, suspend
from transformers import PreTrainedTokenizerFast

from tests.faults.children import INVALID_SEED, spoiler
from tests.integration.test_worker import NOW, result
from tests.unit.test_engine_batching import loaded
from tests.unit.test_engine_sick import SICK, llama, made
from tests.waiting import wait_until
from tests.workers import running_worker, submit, word_tokenizer
from tokenrelay.shared.redis.commands import Call
from tokenrelay.shared.store.scripts import script
from tokenrelay.shared.wire import keys
from tokenrelay.worker.engine.transformers.batching import TransformersEngine
from tokenrelay.worker.engine.transformers.kv_cache import EngineSettings

if TYPE_CHECKING:
    from redis import Redis

    from tests.redis_servers import RedisServer
    from tokenrelay.shared.redis.batches import Pipeline

HEALTHY: Final = 31
UNREADABLE: Final = SICK - 1
"""A word that the tokenizer raises at, and that no healthy request holds or draws."""
KINDS: Final[dict[str, tuple[dict[str, Any], str | None]]] = {
    "NaN": ({"prompt": f"w1 w{SICK}"}, "invalid_logits"),
    "NaN deep in its prompt": ({"prompt": " ".join([*["w3"] * 40, f"w{SICK}", *["w4"] * 30])}, "invalid_logits"),
    "no finite logit": ({"seed": INVALID_SEED, "max_new_tokens": 20}, "invalid_logits"),
    "unreadable": ({"prompt": f"w2 w{UNREADABLE}"}, "internal_error"),
    "too long": ({"prompt": " ".join(["w5"] * 300)}, "prompt_too_long"),
    "cancelled": ({"max_new_tokens": 100}, None),
    "overdue": ({"max_new_tokens": 100, "deadline_s": 0.05}, None),
    "temperature that float32 rounds to 0": ({"temperature": 1e-300}, None),
    "smallest temperature": ({"temperature": 1e-38}, None),
    "hottest": ({"temperature": 100.0}, None),
    "smallest top-p": ({"temperature": 100.0, "top_p": 1e-300}, None),
    "largest top-k": ({"top_k": 2**31 - 1, "top_p": 0.5}, None),
}
"""What the sick request asks for, and the code with which it fails, if it does."""


class Unreadable(PreTrainedTokenizerFast):
    """Raises at one word."""

    def decode(self, token_ids: Any, *arguments: Any, **named: Any) -> Any:
        if UNREADABLE in list(token_ids):
            raise IndexError("piece id is out of range")
        return super().decode(token_ids, *arguments, **named)


class Unchecked(TransformersEngine):
    """The self-test would refuse it: every first token of its own greedy prompts is invalid."""

    def prepare(self) -> None:
        self.allocate()


def engine() -> TransformersEngine:
    model = made(llama, value=torch.nan)
    head: Any = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    head.bias.data[UNREADABLE] = -1e4
    model.register_forward_hook(spoiler(nan_word=-1), with_kwargs=True)
    return Unchecked(loaded(model=model), EngineSettings(slots=HEALTHY + 1, max_batch_tokens=64))


def healthy(pipeline: Pipeline, index: int) -> str:
    prompt = " ".join(f"w{(index * 7 + step) % UNREADABLE}" for step in range(8 + index * 5 % 17))
    asked = {"temperature": index % 3 * 0.6, "top_k": 7 * (index % 4 == 1), "top_p": 0.8 if index % 5 == 1 else 1.0}
    return submit(pipeline, NOW, prompt=prompt, seed=index, max_new_tokens=24, **asked)


def submit_sick(pipeline: Pipeline, kind: str) -> str:
    asked, _ = KINDS[kind]
    return submit(pipeline, NOW, **{"seed": 99, "max_new_tokens": 12, **asked})


def check_sick(redis: Redis, pipeline: Pipeline, kind: str, request_id: str) -> None:
    if kind == "cancelled":
        wait_until(lambda: redis.xlen(keys.stream(request_id)) > 2)
        pipeline.run([Call(script("cancel"), keys.of_request(request_id), ("test",))])
    assert result(redis, request_id).code == KINDS[kind][1]


@pytest.mark.slow
def test_a_sick_request_changes_nobodys_text(redis_server: RedisServer, redis: Redis, pipeline: Pipeline) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    tokenizer = Unreadable(tokenizer_object=word_tokenizer().backend_tokenizer, unk_token="<unk>")  # type: ignore[no-untyped-call]

    def texts(request_ids: list[str]) -> list[str]:
        return [result(redis, request_id).text for request_id in request_ids]

    with running_worker(redis_server.url, engine(), tokenizer=tokenizer, slots=HEALTHY + 1) as worker:
        without = texts([healthy(pipeline, index) for index in range(HEALTHY)])

        # What a batch pads with, or is first in it, would be read by the others.
        @example("NaN", 0, True)
        @example("NaN deep in its prompt", 0, True)
        @settings(max_examples=14)
        @given(st.sampled_from(sorted(KINDS)), st.integers(0, HEALTHY), st.booleans())
        def beside(kind: str, place: int, together: bool) -> None:
            if together:  # in one batch from the first token on
                suspend(redis, ttl=60)
            before = [healthy(pipeline, index) for index in range(place)]
            sick = submit_sick(pipeline, kind)
            behind = [healthy(pipeline, index) for index in range(place, HEALTHY)]
            resume(redis)
            check_sick(redis, pipeline, kind, sick)
            assert texts(before + behind) == without
            wait_until(lambda: not worker.threads.status.held)

        beside()
    torch.set_num_threads(threads)
