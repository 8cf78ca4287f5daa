"""A worker's metrics: their names, and where each value comes from. docs/metrics.md lists them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING, Final

from tokenrelay.shared.metrics import queue_depths
from tokenrelay.shared.metrics.measures import Metric, family, labelled
from tokenrelay.shared.metrics.queue_depths import QueueDepths

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tokenrelay.shared.metrics.measures import Family, Histogram, Sample
    from tokenrelay.shared.settings import WorkerSettings
    from tokenrelay.worker.serving.model import Served
    from tokenrelay.worker.threads import GenerationThreads

_MODEL: Final = ("model",)

INFO = Metric("tokenrelay_worker_info", "gauge", "1; what serves.", ("model", "version", "device"))
RESTARTS = Metric(
    "tokenrelay_engine_restarts_total",
    "counter",
    "Restarts of this device's engine by the supervisor, as of this engine's start.",
    _MODEL,
)
STALLS = Metric(
    "tokenrelay_engine_stalls_total",
    "counter",
    "Engines of this device that the supervisor killed because they made no progress, as of this engine's start.",
    _MODEL,
)
SLOTS = Metric("tokenrelay_slots", "gauge", "Requests that may be generated at the same time.", _MODEL)
IN_FLIGHT = Metric("tokenrelay_in_flight_requests", "gauge", "Requests that this worker holds.", _MODEL)
BATCH = Metric(
    "tokenrelay_batch_requests",
    "histogram",
    "Requests that received tokens in one turn of the generation loop.",
    _MODEL,
)
KV_CAPACITY = Metric("tokenrelay_kv_cache_capacity_tokens", "gauge", "Tokens that the KV cache holds at most.", _MODEL)
KV_USED = Metric("tokenrelay_kv_cache_used_ratio", "gauge", "Share of the KV cache's pages in use.", _MODEL)
QUEUE_WAIT = Metric(
    "tokenrelay_queue_wait_seconds", "histogram", "From submit to the claim of a request's first attempt.", _MODEL
)
FIRST_TOKEN = Metric(
    "tokenrelay_time_to_first_token_seconds",
    "histogram",
    "From submit until Redis has the first token.",
    _MODEL,
)
INTER_TOKEN = Metric(
    "tokenrelay_inter_token_seconds",
    "histogram",
    "Time between two tokens in Redis, within one attempt. The tokens of one append share its time evenly.",
    _MODEL,
)
REQUEST = Metric(
    "tokenrelay_request_duration_seconds",
    "histogram",
    "From submit to the end, for requests that ended while a worker held them.",
    ("model", "state"),
)
ENDS = Metric(
    "tokenrelay_requests_ended_total",
    "counter",
    "Requests that ended while a worker held them, or that it found ended or past their deadline when it took them. "
    "Reason: stop, length, deadline, cancelled, or a failure's code; lost: its keys were gone or unusable; elsewhere: "
    "another process ended it.",
    ("model", "state", "reason"),
)
PROMPT_TOKENS = Metric("tokenrelay_prompt_tokens_total", "counter", "Tokens of the prompts of first attempts.", _MODEL)
GENERATED_TOKENS = Metric(
    "tokenrelay_generated_tokens_total", "counter", "Tokens that Redis acknowledged to this worker.", _MODEL
)
RECOMPUTED_TOKENS = Metric(
    "tokenrelay_recomputed_tokens_total",
    "counter",
    "Prompt and answer tokens that later attempts computed again.",
    _MODEL,
)
ATTEMPTS = Metric("tokenrelay_attempts_total", "counter", "Claims that were granted.", _MODEL)
TAKEOVERS = Metric(
    "tokenrelay_takeovers_total",
    "counter",
    "Granted claims of a request that another attempt had begun: its worker died, stalled or was drained.",
    _MODEL,
)
REFUSED_CLAIMS = Metric(
    "tokenrelay_refused_claims_total",
    "counter",
    "Claims that were refused. busy: another worker holds the request; not_mine: it needs another model; past: its "
    "deadline has passed; done: it has ended; poison: it crashes its workers; lost: its keys are gone.",
    ("model", "reason"),
)
FENCED_WRITES = Metric(
    "tokenrelay_fenced_writes_total",
    "counter",
    "Requests that this worker lost to another attempt: a write was refused.",
    _MODEL,
)
HANDED_BACK = Metric(
    "tokenrelay_handed_back_requests_total",
    "counter",
    "Requests released to other workers at the end of a drain.",
    _MODEL,
)
RECOVERED = Metric(
    "tokenrelay_recovered_requests_total",
    "counter",
    "Requests that had lost their worker, and that this worker queued again.",
    _MODEL,
)
APPENDS = Metric("tokenrelay_appends_total", "counter", "Calls that wrote tokens to Redis.", _MODEL)
COALESCED = Metric(
    "tokenrelay_coalesced_tokens_total",
    "counter",
    "Tokens written in one call with an earlier one of the same request: Redis or the loop was slow.",
    _MODEL,
)
PUBLISH_LAG = Metric(
    "tokenrelay_publish_lag_seconds",
    "histogram",
    "From the first try to send a step's tokens until Redis acknowledges them, errors and retries included.",
    _MODEL,
)
UNPUBLISHED = Metric("tokenrelay_unpublished_tokens", "gauge", "Tokens that Redis hasn't acknowledged yet.", _MODEL)
REDIS_ERRORS = Metric(
    "tokenrelay_worker_redis_errors_total",
    "counter",
    "Errors of Redis, unreachable or refusing, after redis-py's own retries. Use: publish, intake, heartbeat, "
    "registration, maintenance, listen, release.",
    ("model", "use"),
)


@dataclass(frozen=True, slots=True)
class Restarts:
    """What happened to this engine's predecessors, as the supervisor counts it."""

    restarts: int = 0
    stalls: int = 0


class WorkerMetrics:
    """The metrics of one worker, read at each scrape."""

    def __init__(
        self, threads: GenerationThreads, served: Served, settings: WorkerSettings, restarts: Restarts
    ) -> None:
        self.status = threads.status
        self.figures = threads.figures
        self.restarts = restarts
        self._cache_use = served.engine.cache_use
        self._info = (served.reader.served_model, version("tokenrelay"), settings.device)
        self._queues = QueueDepths(settings.urls, served.reader.served_model)

    def families(self) -> Iterator[Family]:
        """All of METRICS, except the queues' where Redis is away, and the KV cache's of an engine that has none."""
        model = self._info[0]
        yield family(INFO, 1, *self._info)
        for metric, read in _READERS.items():
            value = read(self)
            if isinstance(value, Sequence):
                yield labelled(metric, value, model)
            else:
                yield family(metric, value, model)
        if (use := self._cache_use()) is not None:
            yield family(KV_CAPACITY, use.capacity_tokens, model)
            yield family(KV_USED, use.used_ratio, model)
        yield from self._queues.families()


_READERS: Final[dict[Metric, Callable[[WorkerMetrics], float | Histogram | Sequence[Sample]]]] = {
    RESTARTS: lambda of: of.restarts.restarts,
    STALLS: lambda of: of.restarts.stalls,
    SLOTS: lambda of: of.status.slots,
    IN_FLIGHT: lambda of: len(of.status.held),
    BATCH: lambda of: of.figures.batch_requests,
    QUEUE_WAIT: lambda of: of.figures.queue_wait_s,
    FIRST_TOKEN: lambda of: of.figures.first_token_s,
    INTER_TOKEN: lambda of: of.figures.inter_token_s,
    REQUEST: lambda of: of.figures.request_s.items(),
    ENDS: lambda of: of.figures.ends.items(),
    PROMPT_TOKENS: lambda of: of.figures.prompt_tokens,
    GENERATED_TOKENS: lambda of: of.figures.generated_tokens,
    RECOMPUTED_TOKENS: lambda of: of.figures.recomputed_tokens,
    ATTEMPTS: lambda of: of.figures.attempts,
    TAKEOVERS: lambda of: of.figures.takeovers,
    REFUSED_CLAIMS: lambda of: of.figures.refused_claims.items(),
    FENCED_WRITES: lambda of: of.figures.fenced_writes.items(),
    HANDED_BACK: lambda of: of.figures.handed_back.items(),
    RECOVERED: lambda of: of.figures.recovered.items(),
    APPENDS: lambda of: of.figures.appends,
    COALESCED: lambda of: of.figures.coalesced_tokens,
    PUBLISH_LAG: lambda of: of.figures.publish_lag_s,
    UNPUBLISHED: lambda of: of.status.unpublished,
    REDIS_ERRORS: lambda of: of.figures.redis_errors.items(),
}
METRICS: Final = (INFO, *_READERS, KV_CAPACITY, KV_USED, *queue_depths.METRICS)
