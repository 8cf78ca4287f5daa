"""The client that submits: durable requests, one by one or many at once."""

from __future__ import annotations

from contextlib import contextmanager
from functools import cached_property
from typing import TYPE_CHECKING

from tokenrelay.producer._core import endings
from tokenrelay.producer._core.planning import plan_many, plan_request
from tokenrelay.producer._core.submission import Submitter
from tokenrelay.producer.consumer import Consumer
from tokenrelay.producer.generation import Generation

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from typing import Unpack

    from tokenrelay.shared.options import Options, Submission


class Producer(Consumer):
    """Submits requests and follows them. Threads and forked children may share it, as a Consumer.

    Connects to `url`, TOKENRELAY_REDIS_URL where none is given, or uses `connection` (which it then doesn't close).

        >>> from tokenrelay.producer import Producer
        >>> with Producer() as producer:
        ...     generation = producer.submit("What is the weather today?", max_new_tokens=32, temperature=0.7, seed=7)
        ...     for token in generation:
        ...         print(token.text, end="")
        It is sunny and warm.
        >>> generation.text
        'It is sunny and warm.'
    """

    @cached_property
    def _submitter(self) -> Submitter:
        return Submitter(self._settings, self._driver.servers.planes)

    def get(self, request_id: str) -> Generation:
        """As Consumer.get; this handle can cancel."""
        self._driver.run(endings.status(endings.check_id(request_id)))
        return self._generation(request_id)

    def submit(self, prompt: str | None = None, **options: Unpack[Options]) -> Generation:
        """Queue one request. Once this returns, the request ends in an answer or an error, whatever process dies.

        Raises RequestError (field, limit; IdempotencyConflict), QueueFull, RedisUnusable. Nothing is queued then.
        """
        plan = plan_request({"prompt": prompt, **options}, self._settings)
        return self._generation(self._driver.run(self._submitter.submit(plan)).request_id)

    def submit_many(self, items: Iterable[str | Submission], **options: Unpack[Options]) -> list[Generation]:
        """Queue all of the items, or none. `options` are defaults for every item.

        Raises RequestError naming the item, field and limit; QueueFull where they don't fit all; RedisUnusable.
        """
        plans = plan_many(items, options, self._settings)
        if plans:
            self._driver.run(self._submitter.submit_many(plans))
        return [self._generation(plan.request_id) for plan in plans]

    @contextmanager
    def stream(self, prompt: str | None = None, **options: Unpack[Options]) -> Iterator[Generation]:
        """`submit` as a context manager: leaving the block cancels the request if it hasn't ended."""
        generation = self.submit(prompt, **options)
        try:
            yield generation
        finally:
            generation.cancel()

    def _generation(self, request_id: str) -> Generation:
        return Generation(request_id, self._driver)
