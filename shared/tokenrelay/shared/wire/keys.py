"""Every key, channel and queue name, and the plane of each. The only module that spells one.

The braces are literal: a cluster hashes what they hold, so all keys of a request share a slot. RQ's names are
those of rq 3.0; the queue-plane scripts write them.
"""

from __future__ import annotations

import hashlib
import re
import secrets
from enum import StrEnum
from typing import Final


class Plane(StrEnum):
    """One half of the keys and channels. Each may be on a Redis of its own, so nothing touches both at once."""

    QUEUE = "queue"
    """RQ's keys and our own beside them: `claimed`, locks, idempotency keys, owners' requests."""
    TOKEN = "token"
    """Each request's own keys, and the channels that announce what is written to them."""


WAKE: Final = "tokenrelay:wake"
"""Channel: the IDs of the requests that one step appended to, separated by blanks."""
ENDED: Final = "tokenrelay:ended"
"""Channel: the ID of a request that somebody else than its worker ended; scripts/token/ending.lua spells it too."""
QUEUED: Final = "tokenrelay:queued"
"""Channel: the key of a queue that just got a job."""
PRIORITIES: Final = ("high", "default", "low")
JOB_FUNCTION: Final = "tokenrelay.worker.jobs.generate"

_TOKEN_CHANNELS: Final = frozenset({WAKE, ENDED})
_OF_REQUEST: Final = "tokenrelay:{"

RQ_PREFIX: Final = "rq"
RQ_QUEUES: Final = "rq:queues"
RQ_SUSPENDED: Final = "rq:suspended"
RQ_WORKERS: Final = "rq:workers"

_ID_BYTES: Final = 16
MAX_MODEL_CHARS: Final = 128
_REQUEST_ID: Final = re.compile(r"[A-Za-z0-9_-]{22,64}")
_MODEL: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)?")


def new_request_id() -> str:
    """A fresh ID of 128 random bits. Begins with a letter, so a shell never takes it for an option.

    Not in hexadecimal: `top` shows seven figures beside the ID, and in 80 columns would cut one of 32 characters.
    """
    return "r" + secrets.token_urlsafe(_ID_BYTES)


def choice_id(base_id: str, choice: int) -> str:
    """The ID of one of several requests of one call. The first has the base ID itself."""
    return f"{base_id}-{choice}" if choice else base_id


def is_request_id(value: str) -> bool:
    return _REQUEST_ID.fullmatch(value) is not None


def is_model_name(value: str) -> bool:
    """Whether `value` is a Hub name (owner/name) or a plain name, at most 128 characters and no two dashes in a row."""
    return len(value) <= MAX_MODEL_CHARS and "--" not in value and _MODEL.fullmatch(value) is not None


def plane_of(name: str | bytes) -> Plane:
    """The plane of a key or channel. Keys that aren't ours are RQ's."""
    name = name if isinstance(name, str) else name.decode("utf-8", "replace")
    return Plane.TOKEN if name.startswith(_OF_REQUEST) or name in _TOKEN_CHANNELS else Plane.QUEUE


def request(request_id: str) -> str:
    return f"tokenrelay:{{{request_id}}}:request"


def of_request(request_id: str) -> tuple[str, str]:
    """Both keys of a request, as the token-plane scripts take them."""
    return request(request_id), stream(request_id)


def stream(request_id: str) -> str:
    return f"tokenrelay:{{{request_id}}}:stream"


def attached(request_id: str) -> str:
    """The hash of gateways that have readers of the request, each until when that is good (Redis time, microseconds);
    only where its readers' leaving would cancel it."""
    return f"tokenrelay:{{{request_id}}}:attached"


def of_owner(owner: str) -> str:
    """The sorted set of an API key's unended requests, scored with when they were submitted."""
    return f"tokenrelay:owner:{owner}"


def claimed(queue: str) -> str:
    return f"tokenrelay:claimed:{queue}"


def maintainer(queue: str) -> str:
    """The lock of the one worker that maintains a model's queues, named by their first."""
    return f"tokenrelay:maintainer:{queue}"


def idempotency(idempotency_key: str) -> str:
    return f"tokenrelay:idempotency:{hashlib.sha256(idempotency_key.encode()).hexdigest()}"


def idempotency_mark(idempotency_key: str) -> str:
    """The ID that the key was bound to a moment ago: its request may not be there yet."""
    return f"{idempotency(idempotency_key)}:new"


def queue(model: str, priority: str) -> str:
    """The RQ queue of a model and priority. A slash becomes two dashes, which model names can't contain."""
    return f"tokenrelay.{model.replace('/', '--')}.{priority}"


def model_of(queue_name: str) -> str | None:
    """The model that a queue is for; None for a queue of somebody else's."""
    ours, _, rest = queue_name.partition(".")
    model, _, priority = rest.rpartition(".")
    return model.replace("--", "/") if ours == "tokenrelay" and priority in PRIORITIES and model else None


def queues(model: str) -> tuple[str, ...]:
    """The model's queues in the order in which workers serve them."""
    return tuple(queue(model, priority) for priority in PRIORITIES)


def rq_job(job_id: str) -> str:
    return f"rq:job:{job_id}"


def rq_dependents(job_id: str) -> str:
    return f"rq:job:{job_id}:dependents"


def rq_results(job_id: str) -> str:
    return f"rq:results:{job_id}"


def rq_executions(job_id: str) -> str:
    return f"rq:executions:{job_id}"


def rq_execution(job_id: str, execution_id: str) -> str:
    return f"rq:execution:{job_id}:{execution_id}"


def rq_queue(queue_name: str) -> str:
    return f"rq:queue:{queue_name}"


def rq_registry(kind: str, queue_name: str) -> str:
    """kind: wip, finished, failed, canceled."""
    return f"rq:{kind}:{queue_name}"


def rq_worker(worker: str) -> str:
    return f"rq:worker:{worker}"


def rq_commands(worker: str) -> str:
    """Channel: RQ's commands for a worker."""
    return f"rq:pubsub:{worker}"


def rq_worker_executions(worker: str) -> str:
    return f"rq:worker:{worker}:executions"


def rq_workers(queue_name: str) -> str:
    """The set of worker keys that serve a queue."""
    return f"rq:workers:{queue_name}"
