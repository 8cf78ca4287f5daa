"""A gateway's counters and histograms: written by its event loop, read by the metrics endpoint. Knows no HTTP.

Latencies compare an entry's time, which is on Redis's clock, with the time the hub receives it: the gateway estimates
the offset between both clocks.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

from tokenrelay.shared.metrics.measures import FIRST_TOKEN_S, LAG_S, REQUEST_S, Durations, Histogram, Tally
from tokenrelay.shared.wire.entries import TERMINAL, Ended, Token

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tokenrelay.gateway.records.record import Record
    from tokenrelay.shared.wire.entries import AnyEntry

_REFUSALS: Final = ("queue_full", "concurrency_limit", "queue_limit")
_REDIS_USES: Final = ("answer", "follow", "readers")
_FRESH_US: Final = 1_000_000
"""A reader that attaches later than this after submit isn't counted: its wait wasn't the request's latency."""
_MOST_FRESH: Final = 4096


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


class GatewayCounters:
    """One gateway's counters and histograms."""

    def __init__(self) -> None:
        self.clock = RedisClock()
        self.http_requests = Tally()
        self.refused = Tally(*((code,) for code in _REFUSALS))
        self.disconnect_cancels = Tally(())
        self.redis_errors = Tally(*((use,) for use in _REDIS_USES))
        self.first_token_s = Histogram(FIRST_TOKEN_S)
        self.request_s = Durations(REQUEST_S, *TERMINAL)
        self.delivery_lag_s = Histogram(LAG_S)
        self._fresh: dict[str, bool] = {}

    def count_submitted(self, record: Record) -> None:
        """Note a request submitted here: a reader that attaches at once sees its full latency, even if it has ended."""
        self._fresh[record.request_id] = True
        if len(self._fresh) > _MOST_FRESH:
            del self._fresh[next(iter(self._fresh))]

    def count_received(self, record: Record, entries: Sequence[AnyEntry], known: int) -> None:
        """Observe latencies of the request's entries after the `known` ones. Entries older than the first reader aren't
        counted, except for requests submitted here."""
        if known == len(entries):
            return
        now_us, last = self.clock.now_us(), entries[-1]
        if known:
            self.delivery_lag_s.observe(max(now_us - last.at_us, 0.0) / 1e6)
        if record.created_us is None:
            return
        waited_s = max(now_us - record.created_us, 0.0) / 1e6
        fresh = not known and self._fresh.pop(record.request_id, False) and waited_s * 1e6 < _FRESH_US
        if (fresh or not record.tokens) and entries[known].entry_id.token < 2 and _has_first_token(entries, known):
            self.first_token_s.observe(waited_s)
        if isinstance(last, Ended) and (fresh or not record.state.terminal):
            self.request_s.observe(str(last.state), waited_s)


def _has_first_token(entries: Sequence[AnyEntry], known: int) -> bool:
    """Whether token 1 is among the new entries."""
    return any(isinstance(entry, Token) and entry.entry_id.token == 1 for entry in entries[known : known + 8])
