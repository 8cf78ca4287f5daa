"""Why one request doesn't progress: its place in the queue, the workers that could take it, its last owner."""

from __future__ import annotations

from typing import TYPE_CHECKING

from redis.exceptions import NoPermissionError

from tokenrelay.cli.ops import request_summaries
from tokenrelay.cli.ops.diagnosis import Finding, diagnose, is_abandoned, is_busy
from tokenrelay.cli.ops.system import read_system
from tokenrelay.cli.terminal.tables import counted
from tokenrelay.producer._core.steps import RoundTrip
from tokenrelay.shared.store.jobs import status_look
from tokenrelay.shared.wire import keys
from tokenrelay.shared.wire.entries import State, text

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tokenrelay.cli.ops.request_summaries import RequestSummary
    from tokenrelay.cli.ops.system import System
    from tokenrelay.producer import Status
    from tokenrelay.producer._core.steps import Steps
    from tokenrelay.shared.redis.commands import Reply

_ELSEWHERE = ("all_busy", "not_taken", "no_worker", "abandoned", "worker_silent", "worker_gone")
"""System findings that may be about other requests; this request has its own wording for them."""


def explain_request(status: Status) -> Steps[list[Finding]]:
    """Why the request doesn't progress, most important first; empty for one that has ended."""
    if status.state.terminal:
        return []
    try:
        now = yield from read_system()
    except NoPermissionError:  # a read-only consumer may read neither queues nor workers
        return [_no_permission()]
    job, position, seen = yield from _look_up(status)
    sighting = seen[0] if seen else None
    findings = [found for found in diagnose(now) if found.code not in _ELSEWHERE]
    if status.seconds_left < 0:
        message = f"its deadline passed {-status.seconds_left:.1f} s ago, and it hasn't been expired yet"
        findings.insert(0, Finding("past_deadline", message, "read or cancel it with a producer, which expires it"))
    if sighting is not None and (sighting.owned or sighting.started_us is not None):
        return [*findings, *_begun(sighting, now)]
    return [*findings, *_queued(status, now, job, position)]


def progress_line(status: Status) -> str:
    """The line shown for a request without findings."""
    if status.state.terminal:
        return f"It has ended: {status.state}."
    if status.state is State.QUEUED:
        return "It is next in its queue."
    return f"It is being answered: {counted(status.tokens, 'token')} so far."


def _look_up(status: Status) -> Steps[tuple[Reply, Reply, list[RequestSummary]]]:
    job, position = yield RoundTrip(
        [
            status_look(status.request_id),
            ("LPOS", keys.rq_queue(status.queue), status.request_id),
        ]
    )
    found = request_summaries.RequestRef(status.request_id, status.queue, "running")
    try:
        return job, position, (yield from request_summaries.read_summaries([found]))
    except NoPermissionError:
        return job, position, []


def _begun(one: RequestSummary, now: System) -> Iterator[Finding]:
    if is_abandoned(one, now):
        message = f"it lost its worker after {counted(one.tokens, 'token')}, and no live worker serves its model"
        yield Finding("abandoned", message, "start one: it resumes at the next token")
    elif one.owned and one.worker and one.worker not in {worker.name for worker in now.workers if worker.alive}:
        left_s = one.lease_left_s(now.now_us)
        message = f"its worker {one.worker} has no heartbeat; another takes over when the lease ends, in {left_s:.1f} s"
        yield Finding("waits_for_lease", message, "wait")


def _queued(status: Status, now: System, job: Reply, position: Reply) -> Iterator[Finding]:
    model = keys.model_of(status.queue) or status.queue
    if not isinstance(job, Exception) and (job is None or text(job) in ("canceled", "failed", "finished", "stopped")):
        message = f"its job in RQ is {text(job) if job else 'gone'}, so no worker will take it"
        yield Finding("job_gone", message, "read it with a producer, which cancels it")
        return
    ahead = _ahead(status, now, position)
    if not now.serving(model):
        served = f"live workers serve {', '.join(map(repr, now.models))}" if now.models else "no worker is alive"
        message = f"no live worker serves its model {model!r} ({served})"
        yield Finding(
            "no_worker", message, f"start one: tokenrelay-worker run --served-model {model}, or check the name"
        )
    elif is_busy(model, now):
        message = f"all slots of its model's {counted(len(now.serving(model)), 'worker')} are in use"
        yield Finding("all_busy", message, "wait, or start another worker")
    if ahead:
        yield Finding("queued_behind", f"{counted(ahead, 'request')} {'is' if ahead == 1 else 'are'} before it", "wait")


def _ahead(status: Status, now: System, position: Reply) -> int:
    """Number of requests ahead of it, including higher priorities."""
    lengths = {queue.name: queue.waiting for queue in now.queues}
    model = keys.model_of(status.queue)
    names = keys.queues(model) if model else ()
    higher = sum(lengths.get(name, 0) for name in names[: names.index(status.queue)]) if status.queue in names else 0
    own = lengths.get(status.queue, 1) - 1 if isinstance(position, Exception) else position or 0
    return max(0, higher + own)


def _no_permission() -> Finding:
    remedy = "set TOKENRELAY_REDIS_URL to a user with more permissions, such as `operator` in deploy/users.acl"
    return Finding("cannot_look", "this Redis user may read neither queues nor workers", remedy)
