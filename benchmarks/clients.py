"""The callers, in a separate process: one coroutine per request, over Redis or HTTP."""

from __future__ import annotations

import asyncio
import json
import time
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import httpx
import redis.asyncio
from rq import Queue

from benchmarks import stock_rq
from benchmarks.children import Message, answer_lines
from benchmarks.waves import Outcome, Wave
from tokenrelay.producer import AsyncProducer
from tokenrelay.shared.redis.connections import connect

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

Call = tuple[int, str]
"""A request's number in its wave, and its prompt."""


async def _together(wave: Wave, call: Callable[[Call, Callable[[], None]], Awaitable[int]]) -> Outcome:
    """Run all requests at once. `call` reports its first token and returns the number of tokens."""
    began = time.perf_counter()
    firsts: list[float] = []

    def first() -> None:
        firsts.append(time.perf_counter() - began)

    counts = await asyncio.gather(*(call(numbered, first) for numbered in enumerate(wave.prompts)))
    return Outcome(sum(counts), time.perf_counter() - began, tuple(firsts))


async def over_tokenrelay(url: str, model: str, wave: Wave) -> Outcome:
    async with AsyncProducer(url) as producer:

        async def call(numbered: Call, first: Callable[[], None]) -> int:
            index, prompt = numbered
            chosen = {"max_new_tokens": wave.new_tokens, "temperature": wave.temperature, "seed": wave.seed + index}
            asked = wave.asked[index] if wave.asked else {}
            generation = await producer.submit(prompt, model=model, **{**chosen, "ignore_eos": True, **asked})
            count = 0
            async for _ in generation:
                count += 1
                if count == 1:
                    first()
            return count

        return await _together(wave, call)


async def over_sse(url: str, model: str, wave: Wave) -> Outcome:
    """Call `transformers serve`'s /v1/completions. Chunks carry text, so the requested token count is assumed."""
    config = {"max_new_tokens": wave.new_tokens, "do_sample": wave.temperature > 0, "eos_token_id": -1}
    async with httpx.AsyncClient(timeout=600, limits=httpx.Limits(max_connections=None)) as http:

        async def call(numbered: Call, first: Callable[[], None]) -> int:
            body = {"model": model, "prompt": numbered[1], "stream": True, "generation_config": json.dumps(config)}
            body["max_tokens"] = wave.new_tokens
            chunks, ended = 0, ""
            async with http.stream("POST", f"{url}/v1/completions", json=body) as response:
                response.raise_for_status()
                async for line in response.aiter_lines():
                    if not line.startswith("data: {"):
                        continue
                    choice = json.loads(line[6:])["choices"][0]
                    ended = choice.get("finish_reason") or ended
                    chunks += bool(choice.get("text"))
                    if chunks == 1:
                        chunks += 1
                        first()
            if ended != "length":
                raise RuntimeError(f"the server ended a request as {ended!r}, not at its {wave.new_tokens} tokens")
            return wave.new_tokens

        return await _together(wave, call)


async def over_gateway(url: str, model: str, wave: Wave) -> Outcome:
    """Call our gateway's or vLLM's /v1/completions."""
    async with httpx.AsyncClient(timeout=600, limits=httpx.Limits(max_connections=None)) as http:

        async def call(numbered: Call, first: Callable[[], None]) -> int:
            index, prompt = numbered
            body = {"model": model, "prompt": prompt, "stream": True, "max_tokens": wave.new_tokens}
            body |= {"temperature": wave.temperature, "seed": wave.seed + index, "ignore_eos": True}
            body |= {"stream_options": {"include_usage": True}}
            chunks, tokens = 0, 0
            async with http.stream("POST", f"{url}/v1/completions", json=body) as response:
                response.raise_for_status()
                async for line in response.aiter_lines():
                    if not line.startswith("data: {"):
                        continue
                    chunk = json.loads(line[6:])
                    chunks += 1
                    if chunks == 1:
                        first()
                    if chunk.get("usage"):
                        tokens = chunk["usage"]["completion_tokens"]
            return tokens

        return await _together(wave, call)


async def over_stock_rq(url: str, wave: Wave) -> Outcome:
    with connect(url) as client:
        queue = Queue(stock_rq.QUEUE, connection=client)
        # redis-py's timeout would abort callers that wait for the last request in the queue.
        async with redis.asyncio.Redis.from_url(url, socket_timeout=None) as reader:

            async def call(numbered: Call, first: Callable[[], None]) -> int:
                stream = f"stock:{uuid4().hex}"
                arguments = (numbered[1], stream, wave.new_tokens, wave.temperature)
                queue.enqueue(stock_rq.generate, *arguments, result_ttl=60)
                last = "0"
                while True:
                    reply: Any = await reader.xread({stream: last}, block=0)
                    entries = reply[0][1] if isinstance(reply, list) else reply[stream.encode()][0]
                    if last == "0":
                        first()
                    if any(b"done" in fields for _, fields in entries):
                        return wave.new_tokens
                    last = entries[-1][0]

            return await _together(wave, call)


def answer(message: Message) -> Message:
    wave = Wave.of(message)
    match message["kind"]:
        case "tokenrelay":
            outcome = over_tokenrelay(message["url"], message["model"], wave)
        case "gateway":
            outcome = over_gateway(message["url"], message["model"], wave)
        case "sse":
            outcome = over_sse(message["url"], message["model"], wave)
        case "rq":
            outcome = over_stock_rq(message["url"], wave)
        case kind:
            raise ValueError(f"no way to call {kind!r}")
    return asyncio.run(outcome).message()


if __name__ == "__main__":
    answer_lines(answer)
