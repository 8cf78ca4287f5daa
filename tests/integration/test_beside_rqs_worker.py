"""What RQ's own API says of a job at every moment of its life: of ours on our worker, of RQ's on RQ's own worker."""

from __future__ import annotations

import subprocess
import sys
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest
from rq import Queue
from rq import Worker as RqWorker
from rq.command import send_stop_job_command
from rq.exceptions import InvalidJobOperation
from rq.job import Job
from rq.registry import (
    CanceledJobRegistry,
    DeferredJobRegistry,
    FailedJobRegistry,
    FinishedJobRegistry,
    ScheduledJobRegistry,
    StartedJobRegistry,
)
from rq.serializers import JSONSerializer
from rq.suspension import resume, suspend

from tests.engines import CountingEngine
from tests.integration import rq_jobs
from tests.two_planes import pipeline_on
from tests.waiting import wait_until
from tests.workers import MODEL, VOCABULARY, running_worker, submit
from tokenrelay.shared.wire import keys

if TYPE_CHECKING:
    from collections.abc import Iterator

    from redis import Redis

    from tests.redis_servers import RedisServer

ROOT: Final = Path(__file__).parents[2]
OURS: Final = keys.queue(MODEL, "default")
THEIRS: Final = "theirs"
REGISTRIES: Final = (
    StartedJobRegistry,
    FinishedJobRegistry,
    FailedJobRegistry,
    DeferredJobRegistry,
    ScheduledJobRegistry,
    CanceledJobRegistry,
)
TOLD_MORE: Final[dict[str, dict[str, Any]]] = {
    "stopped": {"times": [True] * 4, "worker named": True},
    "canceled": {"times": [True, True, False, True]},
}
"""RQ keeps no end of a job that was stopped or canceled, and of a stopped one no worker. We do."""
MOMENTS: Final = ("queued", "suspended", "started", "finished", "failed", "stopped", "canceled")


def queue(redis: Redis, name: str) -> Queue:
    return Queue(name, connection=redis, serializer=JSONSerializer)


def view(redis: Redis, name: str, job_id: str) -> dict[str, Any]:
    """All that RQ's API tells of the job, but for names, times and texts."""
    job = Job.fetch(job_id, connection=redis, serializer=JSONSerializer)
    result = job.latest_result()
    return {
        "status": job.get_status(),
        "in queue": job_id in queue(redis, name).job_ids,
        "registries": [kind.__name__ for kind in REGISTRIES if job_id in kind(queue=queue(redis, name)).get_job_ids()],
        "executions": len(job.get_executions()),
        "times": [getattr(job, what) is not None for what in ("created_at", "enqueued_at", "started_at", "ended_at")],
        "worker named": bool(job.worker_name),
        "result": result and result.type,
        "workers": [worker.get_state() for worker in RqWorker.all(queue=queue(redis, name))],
    }


@contextmanager
def rqs_worker(redis: Redis, url: str, kind: str) -> Iterator[None]:
    """RQ's own worker in a process of its own. Only the forking one knows how to stop a job."""
    code = (
        f"from redis import Redis; from rq import Queue, {kind}; from rq.serializers import JSONSerializer as J;"
        f"redis = Redis.from_url({url!r}); {kind}([{THEIRS!r}], connection=redis, serializer=J).work()"
    )
    with subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stderr=subprocess.DEVNULL) as process:
        try:
            wait_until(lambda: RqWorker.all(queue=queue(redis, THEIRS)), 40)
            yield
        finally:
            process.terminate()
            with suppress(subprocess.TimeoutExpired):
                process.wait(20)
            process.terminate()  # ends an endless job, which RQ's worker waits for at first
            process.wait(60)


def reached(redis: Redis, name: str, job_id: str, moment: str) -> bool:
    """Whether job and worker have come to the moment; a worker's state follows its job's."""
    try:
        return _has_reached(redis, name, job_id, moment)
    except ValueError:
        return False  # RQ reads an execution after its ID: it may have ended between them


def _has_reached(redis: Redis, name: str, job_id: str, moment: str) -> bool:
    if moment == "canceled" and name == OURS and not view(redis, name, job_id)["times"][3]:
        return False  # RQ's cancel is done at once; a worker of ours closes the job a moment later
    status = "queued" if moment == "suspended" else moment
    seen = view(redis, name, job_id)
    state = {"started": ["busy"], "suspended": ["suspended"], "queued": []}.get(moment, ["idle"])
    return bool(
        seen["status"] == status and seen["workers"] == state and bool(seen["executions"]) == (moment == "started")
    )


def bring_about(redis: Redis, job_id: str, moment: str) -> None:
    """What a user does to a job for it to come to the moment."""
    job = Job.fetch(job_id, connection=redis, serializer=JSONSerializer)
    if moment == "canceled":
        job.cancel()
    if moment == "stopped":
        wait_until(lambda: told_to_stop(redis, job), 40)


def told_to_stop(redis: Redis, job: Job) -> bool:
    """Whether the job has stopped. Tells it again: RQ's worker drops a command that comes too early."""
    if job.get_status() == "started":
        # It may have ended meanwhile; or begun, but its execution isn't where RQ looks for it by its ID.
        with suppress(InvalidJobOperation, ValueError):
            if job.get_executions():
                send_stop_job_command(redis, job.id, serializer=JSONSerializer)
    return job.get_status() not in ("queued", "started")


@pytest.mark.parametrize("moment", MOMENTS)
def test_rq_says_the_same_of_our_jobs_as_of_its_own(redis_server: RedisServer, redis: Redis, moment: str) -> None:
    endless = moment in ("started", "stopped")
    with ExitStack() as stack:
        if moment in ("suspended", "canceled"):
            suspend(redis, ttl=60)  # before RQ's worker waits for a job: one that waits takes it all the same
        if moment != "queued":
            stack.enter_context(
                rqs_worker(redis, redis_server.url, "Worker" if moment == "stopped" else "SimpleWorker")
            )
            engine = CountingEngine(vocabulary=VOCABULARY, step_delay_s=0.02)
            stack.enter_context(running_worker(redis_server.url, engine))
        work = rq_jobs.wait if endless else rq_jobs.fail if moment == "failed" else rq_jobs.finish
        theirs = queue(redis, THEIRS).enqueue(work, result_ttl=60, failure_ttl=60, job_timeout=600).id
        asked: Any = {"max_new_tokens": 5000 if endless else 8, "deadline_s": 0.001 if moment == "failed" else 60.0}
        ours = submit(pipeline_on(redis), datetime.now(UTC), **asked)
        for job_id in (ours, theirs):
            bring_about(redis, job_id, moment)
        if moment == "canceled":
            resume(redis)
        for name, job_id in ((OURS, ours), (THEIRS, theirs)):
            wait_until(lambda name=name, job_id=job_id: reached(redis, name, job_id, moment), 40)  # type: ignore[misc]
        assert view(redis, OURS, ours) == {**view(redis, THEIRS, theirs), **TOLD_MORE.get(moment, {})}
        redis.set(rq_jobs.GO, 1, ex=60)
        resume(redis)
    redis.delete(keys.rq_job(theirs), keys.rq_queue(THEIRS), keys.rq_registry("canceled", THEIRS))
