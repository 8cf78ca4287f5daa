"""Random schemas and patterns through Redis, a worker and its engine: each answer that ends complete validates."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import pytest

from tests.grammars import save_tiny_model
from tests.random_schemas import CLOSING, Format, random_format
from tests.structured import MODEL, PLAIN, tiny_worker
from tests.waiting import wait_until
from tokenrelay.producer import Producer
from tokenrelay.shared.wire.entries import State

if TYPE_CHECKING:
    from pathlib import Path

    from tests.redis_servers import RedisServer
    from tokenrelay.producer import Generation

REQUESTS: Final = 300


def submit(producer: Producer, form: Format, seed: int) -> Generation:
    options: Any = {**PLAIN, "logit_bias": {str(each): bias for each, bias in CLOSING.items()}, "seed": seed}
    return producer.submit("Hi", response_format=form.option, **options)  # type: ignore[arg-type]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_complete_answers_validate_whole_and_taken_over(redis_server: RedisServer, tmp_path: Path) -> None:
    """At temperature 3; the first worker hands over what it has begun."""
    folder = tmp_path / MODEL
    save_tiny_model(folder)
    formats = [random_format(seed) for seed in range(20_000, 20_000 + REQUESTS)]
    with Producer(url=redis_server.url) as producer:
        asked = [submit(producer, form, seed) for seed, form in enumerate(formats)]
        with tiny_worker(redis_server.url, folder, drain_timeout_s=0.0) as first:
            wait_until(lambda: sum(each.status().state is not State.QUEUED for each in asked) > REQUESTS // 4, 300)
            first.stop()
        with tiny_worker(redis_server.url, folder):
            answers = [each.result() for each in asked]
    assert {answer.finish_reason for answer in answers} <= {"stop", "length"}
    complete = 0
    for form, answer in zip(formats, answers, strict=True):
        if answer.finish_reason == "stop":
            assert form.is_valid(answer.text), (form.option, answer.text)
            complete += 1
    assert complete > 0.8 * REQUESTS
    assert sum(answer.attempts > 1 for answer in answers) > 3
