"""A worker's metrics: their names, and where each value comes from. docs/metrics.md lists them."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING, Final

from tokenrelay.shared import queue_depths
from tokenrelay.shared.measures import Metric, family, labelled
from tokenrelay.shared.queue_depths import QueueDepths

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tokenrelay.shared.measures import Family
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
METRICS: Final = (
    INFO, RESTARTS, STALLS, SLOTS, IN_FLIGHT, BATCH, KV_CAPACITY, KV_USED, QUEUE_WAIT, FIRST_TOKEN, INTER_TOKEN,
    REQUEST, ENDS, PROMPT_TOKENS, GENERATED_TOKENS, RECOMPUTED_TOKENS, ATTEMPTS, TAKEOVERS, REFUSED_CLAIMS,
    FENCED_WRITES, HANDED_BACK, RECOVERED, APPENDS, COALESCED, PUBLISH_LAG, UNPUBLISHED, REDIS_ERRORS,
    *queue_depths.METRICS,
)  # fmt: skip


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
        self._threads = threads
        self._served = served
        self._settings = settings
        self._restarts = restarts
        self._model = served.reader.served_model
        self._queues = QueueDepths(settings.urls, self._model)

    def families(self) -> Iterator[Family]:
        """All of METRICS, except the queues' where Redis is away, and the KV cache's of an engine that has none."""
        yield from self._engine()
        yield from self._latencies()
        yield from self._requests()
        yield from self._publishing()
        yield from self._queues.families()

    def _engine(self) -> Iterator[Family]:
        model, status = self._model, self._threads.status
        yield family(INFO, 1, model, version("tokenrelay"), self._settings.device)
        yield family(RESTARTS, self._restarts.restarts, model)
        yield family(STALLS, self._restarts.stalls, model)
        yield family(SLOTS, status.slots, model)
        yield family(IN_FLIGHT, len(status.held), model)
        yield family(BATCH, self._threads.figures.batch_requests, model)
        if (use := self._served.engine.cache_use()) is not None:
            yield family(KV_CAPACITY, use.capacity_tokens, model)
            yield family(KV_USED, use.used_ratio, model)

    def _latencies(self) -> Iterator[Family]:
        model, figures = self._model, self._threads.figures
        yield family(QUEUE_WAIT, figures.queue_wait_s, model)
        yield family(FIRST_TOKEN, figures.first_token_s, model)
        yield family(INTER_TOKEN, figures.inter_token_s, model)
        yield labelled(REQUEST, figures.request_s.items(), model)

    def _requests(self) -> Iterator[Family]:
        model, figures = self._model, self._threads.figures
        yield labelled(ENDS, figures.ends.items(), model)
        yield family(PROMPT_TOKENS, figures.prompt_tokens, model)
        yield family(GENERATED_TOKENS, figures.generated_tokens, model)
        yield family(RECOMPUTED_TOKENS, figures.recomputed_tokens, model)
        yield family(ATTEMPTS, figures.attempts, model)
        yield family(TAKEOVERS, figures.takeovers, model)
        yield labelled(REFUSED_CLAIMS, figures.refused_claims.items(), model)
        yield labelled(FENCED_WRITES, figures.fenced_writes.items(), model)
        yield labelled(HANDED_BACK, figures.handed_back.items(), model)
        yield labelled(RECOVERED, figures.recovered.items(), model)

    def _publishing(self) -> Iterator[Family]:
        model, figures = self._model, self._threads.figures
        yield family(APPENDS, figures.appends, model)
        yield family(COALESCED, figures.coalesced_tokens, model)
        yield family(PUBLISH_LAG, figures.publish_lag_s, model)
        yield family(UNPUBLISHED, self._threads.status.unpublished, model)
        yield labelled(REDIS_ERRORS, figures.redis_errors.items(), model)
