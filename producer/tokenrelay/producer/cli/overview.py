"""What `tokenrelay status` shows: one request, or the queues of this Redis."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from redis.exceptions import RedisError

from tokenrelay.producer.cli.output import write_json, write_text
from tokenrelay.shared import keys
from tokenrelay.shared.connections import address, explain
from tokenrelay.shared.entries import text

if TYPE_CHECKING:
    import redis

    from tokenrelay.producer import Status


@dataclass(frozen=True, slots=True)
class QueueLine:
    """One queue: requests that wait, requests taken off it and not ended, workers that serve it."""

    queue: str
    waiting: int
    running: int
    workers: int


def write_status(status: Status, *, json: bool) -> None:
    """One request."""
    fields = {**asdict(status), "seconds_left": round(status.seconds_left, 3)}
    if json:
        write_json(fields)
        return
    shown = ("request_id", "state", "tokens", "attempts", "queue", "seconds_left", "cancelled_by", "metadata")
    for name in shown:
        if fields[name] not in (None, {}) and not (name == "seconds_left" and status.state.terminal):
            write_text(f"{name:13} {fields[name]}\n")


def write_overview(client: redis.Redis, *, json: bool) -> None:
    """Every queue that tokenrelay has used. Raises RedisUnusable."""
    try:
        lines = _queues(client)
    except RedisError as error:
        raise explain(error, address(client)) from error
    if json:
        for line in lines:
            write_json(asdict(line))
        return
    width = max([5, *(len(line.queue) for line in lines)])
    write_text(f"{'queue':{width}}  waiting  running  workers\n")
    for line in lines:
        write_text(f"{line.queue:{width}}  {line.waiting:7}  {line.running:7}  {line.workers:7}\n")


def _queues(client: redis.Redis) -> list[QueueLine]:
    names = sorted(text(key).removeprefix(keys.rq_queue("")) for key in client.smembers(keys.RQ_QUEUES))
    return [_queue(client, name) for name in names if name.startswith("tokenrelay.")]


def _queue(client: redis.Redis, name: str) -> QueueLine:
    with client.pipeline(transaction=False) as pipeline:
        pipeline.llen(keys.rq_queue(name))
        pipeline.zcard(keys.claimed(name))
        pipeline.smembers(keys.rq_workers(name))
        waiting, running, workers = pipeline.execute()
    alive = client.exists(*workers) if workers else 0
    return QueueLine(name, waiting, running, alive)
