"""An estimate of Redis's clock, for latencies measured from an entry's time."""

from __future__ import annotations

import time


class RedisClock:
    """Estimate of Redis's clock, accurate to half a round trip."""

    def __init__(self) -> None:
        self._ahead_s = 0.0
        self._shortest_s = float("inf")
        self._asked_at = 0.0

    def start_sample(self) -> None:
        """Call just before TIME is sent."""
        self._asked_at = time.time()

    def finish_sample(self, server_us: int) -> None:
        """Call with TIME's reply. Samples with a long round trip are ignored while a recent better one exists."""
        now = time.time()
        took_s = max(now - self._asked_at, 0.0)
        self._shortest_s = max(self._shortest_s * 1.1, 0.0001)
        if took_s <= self._shortest_s:
            self._shortest_s = took_s
            self._ahead_s = server_us / 1e6 - (now + self._asked_at) / 2

    def now_us(self) -> float:
        return (time.time() + self._ahead_s) * 1e6
