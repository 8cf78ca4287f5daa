"""The naive implementation: RQ's SimpleWorker, generate() with a TextIteratorStreamer, one XADD per piece."""

from __future__ import annotations

import argparse
import logging
from functools import cache
from threading import Thread
from typing import Any, Final

from redis import Redis
from rq import Queue, SimpleWorker, get_current_job

QUEUE: Final = "stock"
_LIFETIME_S: Final = 60
_options: dict[str, str] = {}


@cache
def _model() -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(_options["model"], dtype=_options["dtype"])


@cache
def _tokenizer() -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(_options["model"])


def generate(prompt: str, stream: str, new_tokens: int, temperature: float) -> None:
    """The job."""
    from transformers import TextIteratorStreamer

    job = get_current_job()
    assert job
    redis = job.connection
    streamer = TextIteratorStreamer(_tokenizer(), skip_prompt=True)
    chosen = {"do_sample": True, "temperature": temperature, "top_k": 0} if temperature else {"do_sample": False}
    inputs = _tokenizer()(prompt, return_tensors="pt", return_token_type_ids=False)
    arguments = {**inputs, **chosen, "max_new_tokens": new_tokens, "min_new_tokens": new_tokens, "streamer": streamer}
    thread = Thread(target=_model().generate, kwargs=arguments)
    thread.start()
    for text in streamer:
        redis.xadd(stream, {"text": text})
    thread.join()
    redis.xadd(stream, {"done": 1})
    redis.expire(stream, _LIFETIME_S)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--url", required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--dtype", required=True)
    arguments = parser.parse_args()
    _options.update(model=arguments.model, dtype=arguments.dtype)
    _model()
    worker = SimpleWorker([Queue(QUEUE, connection=Redis.from_url(arguments.url))])
    worker.log.setLevel(logging.WARNING)
    worker.work(logging_level="WARNING")


if __name__ == "__main__":
    from benchmarks import stock_rq  # RQ imports the job function from that module, so the options must be there too

    stock_rq.main()
