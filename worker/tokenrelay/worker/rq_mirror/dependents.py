"""RQ jobs that depend on a generation (`enqueue(f, depends_on=request_id)`): enqueued by RQ's own rules at its end.

RQ's own code enqueues them. It reads their fields and keeps their calls as bytes: nothing in them is imported or
unpickled here.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from rq.exceptions import NoSuchJobError
from rq.job import Job
from rq.queue import Queue
from rq.serializers import JSONSerializer

from tokenrelay.shared.redis.connections import is_transient

if TYPE_CHECKING:
    from collections.abc import Iterable

    from redis import Redis

    from tokenrelay.shared.store.jobs import Execution

log = logging.getLogger(__name__)


class _Readable(Job):
    """A job of RQ's. `fetch_many` leaves out the jobs that can't be read, so that the others still run."""

    @classmethod
    def fetch_many(cls, job_ids: Iterable[str], connection: Redis, serializer: Any = None) -> list[Job | None]:
        return [_fetched(job_id, connection) for job_id in job_ids]


def enqueue_dependents(connection: Redis, execution: Execution) -> None:
    """Enqueue the dependents of a job that has ended, where their other dependencies are met too.

    As RQ does: all of a finished job, those that allow failures of a failed one. Raises transient redis errors.
    """
    job = _fetched(execution.job_id, connection)
    if job is None:
        return
    queue = Queue(execution.queue, connection=connection, job_class=_Readable, serializer=JSONSerializer)
    try:
        queue.enqueue_dependents(job)
    except Exception as error:
        if is_transient(error):
            raise
        log.exception("the jobs that depend on %s couldn't be enqueued", execution.job_id)


def _fetched(job_id: str, connection: Redis) -> Job | None:
    """The job; None where it is gone or unreadable."""
    try:
        return _Readable.fetch(job_id, connection=connection, serializer=JSONSerializer)
    except NoSuchJobError:
        return None
    except Exception as error:  # any bytes may stand in a job's fields
        if is_transient(error):
            raise
        log.warning("job %s can't be read: %r", job_id, error)
        return None
