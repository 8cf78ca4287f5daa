"""Readers for tests: blocked in Redis, in their own threads."""

from __future__ import annotations

import threading
from concurrent.futures import Future
from typing import TYPE_CHECKING, TypeVar

from tests.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from redis import Redis

    from tokenrelay.producer import ReadOnlyGeneration, Token


Read = TypeVar("Read")


class Background:
    """Runs readers in daemon threads, so that a hanging reader fails only its test."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis

    def start(self, read: Callable[[], list[Read]]) -> Future[list[Read]]:
        """Start a reader, and return once it's blocked in Redis."""
        before = self._blocked()
        future: Future[list[Read]] = Future()

        def run() -> None:
            try:
                future.set_result(read())
            except Exception as error:  # noqa: BLE001 - it's the test's to judge
                future.set_exception(error)

        threading.Thread(target=run, daemon=True).start()
        wait_until(lambda: self._blocked() > before or future.done())
        return future

    def _blocked(self) -> int:
        return int(self._redis.info("clients")["blocked_clients"])


class Readers:
    """Follows streams from their start in threads, and records each token as first received."""

    def __init__(self, generations: Sequence[ReadOnlyGeneration]) -> None:
        self.seen: list[list[int]] = [[] for _ in generations]
        self.errors: list[BaseException] = []
        self._threads = [
            threading.Thread(target=self._read, args=(generation, seen))
            for generation, seen in zip(generations, self.seen, strict=True)
        ]
        for thread in self._threads:
            thread.start()

    def _read(self, generation: ReadOnlyGeneration, seen: list[int]) -> None:
        try:
            for token in generation.tokens():
                assert token.index == len(seen) + 1
                seen.append(token.token_id)
        except BaseException as error:  # noqa: BLE001  raised again in the test's own thread
            self.errors.append(error)

    def all_have(self, tokens: int) -> bool:
        if self.errors:
            raise self.errors[0]
        return all(len(seen) >= tokens for seen in self.seen)

    def join(self) -> None:
        for thread in self._threads:
            thread.join(300)
        if self.errors:
            raise self.errors[0]


def texts(tokens: list[Token]) -> list[str]:
    return [token.text for token in tokens]
