"""RQ's commands to a worker (`rq.command.send_command`), as messages for the generation loop."""

from __future__ import annotations

import json
import logging
import time
from typing import TYPE_CHECKING

from tokenrelay.worker.core.messages import Stop, StopJob

if TYPE_CHECKING:
    from tokenrelay.worker.core.messages import Message

log = logging.getLogger(__name__)


def parse_command(data: bytes) -> Message | None:
    """The message that a command asks for; None for one that is malformed or unknown, which is logged."""
    try:
        payload = json.loads(data)
        command = payload["command"]
        job_id, execution_id = str(payload.get("job_id", "")), str(payload.get("execution_id", ""))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        log.warning("a malformed command was ignored: %r", error)
        return None
    if command == "shutdown":
        return Stop(time.monotonic())
    if command in ("stop-job", "stop-execution"):
        return StopJob(job_id, execution_id)
    log.warning("the command %r was ignored: a generation worker doesn't know it", command)
    return None
