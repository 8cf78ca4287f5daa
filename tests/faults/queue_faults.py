"""Faults of the queue: entries that stand in it twice, repairs that meet, requests that kill, cancels."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from statistics import median
from typing import TYPE_CHECKING, Final, cast

from rq.registry import StartedJobRegistry
from rq.serializers import JSONSerializer
from rq.suspension import resume, suspend

from tests.faults.bench import Bench, at_least_ready
from tests.faults.children import POISON_LENGTH, POISON_WORD
from tests.faults.load import await_end, entries, long_requests, submit
from tests.faults.rounds import Round
from tests.faults.site import Plan, Site
from tests.faults.verdict import milliseconds
from tests.waiting import wait_until
from tokenrelay.producer import Producer
from tokenrelay.shared.wire import keys
from tokenrelay.shared.wire.entries import Ended, Migrated, Started, Token, text

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from tests.faults.verdict import Tally
    from tokenrelay.producer import Entry, Submission
    from tokenrelay.shared.redis.commands import Batch

QUEUE: Final = keys.queue("weather", "default")
CANCEL_P50_S: Final = 0.15
INNOCENT: Final = 32


def duplicate(bench: Bench, tally: Tally) -> None:
    """Put every job into the queue again several times, as a non-atomic clean-up does."""
    with bench.site(tally, Plan(workers=3)) as site:

        def inject(current: Round) -> None:
            for share in sorted(current.rng.random() for _ in range(3)):
                current.await_moment(share)
                site.pipeline.run(_requeued(current.request_ids))
            await_end(site, current.request_ids)
            site.pipeline.run(_requeued(current.request_ids))
            wait_until(lambda: not site.redis.llen(keys.rq_queue(QUEUE)), 30)

        bench.rounds(site, tally, inject)
    tally.require(tally.takeovers == 0, "a duplicate causes no takeover")


def _requeued(request_ids: Sequence[str]) -> Batch:
    commands: Batch = []
    for request_id in request_ids:
        commands.append(("HSET", keys.rq_job(request_id), "status", "queued"))
        commands += [("LPUSH", keys.rq_queue(QUEUE), request_id), ("RPUSH", keys.rq_queue(QUEUE), request_id)]
    return commands


def maintain_at_once(bench: Bench, tally: Tally) -> None:
    """Three workers' maintenance and RQ's own clean-up (`rq info`, in a loop) repair the same dead worker's jobs."""
    with bench.site(tally, Plan(workers=4)) as site, _rq_looks(site):

        def inject(current: Round) -> None:
            worker = current.started()
            current.await_moment()
            worker.kill()
            wip = keys.rq_registry("wip", QUEUE)
            # RQ's leases are 60 s: let them have run out, so that its clean-up fails the jobs while ours requeues them.
            for member in cast("list[bytes]", site.redis.zrange(wip, 0, -1)):
                site.redis.zadd(wip, {member: 1}, xx=True)
            await_end(site, current.request_ids)
            waiting = site.redis.lrange(keys.rq_queue(QUEUE), 0, -1)
            tally.require(not set(map(text, waiting)) & set(current.request_ids), "an ended request waits in no queue")
            for stream in entries(site, current.request_ids):
                tally.require(sum(isinstance(e, Migrated) for e in stream) <= 1, "one death, one takeover")
            site.replace(worker, wait=False)
            at_least_ready(site, 3)

        bench.rounds(site, tally, inject)


@contextmanager
def _rq_looks(site: Site) -> Iterator[None]:
    """`rq info` in a loop, and the clean-up that it calls as fast as it can be called."""
    over = threading.Event()

    def clean() -> None:
        with site.server.client() as client:
            registry = StartedJobRegistry(QUEUE, connection=client, serializer=JSONSerializer)
            while not over.wait(0.01):
                registry.cleanup()

    cleaner = threading.Thread(target=clean, name="clean-up")
    command = [sys.executable, "-m", "rq.cli", "info", "--url", site.server.url, "--interval", "0.1"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as info:
        cleaner.start()
        try:
            yield
        finally:
            over.set()
            cleaner.join()
            info.kill()


def poison(bench: Bench, tally: Tally) -> None:
    """One request takes down every process that reads it, with 32 others in flight."""
    rng = bench.rng(tally)
    bad: Submission = {"prompt": " ".join([POISON_WORD] * POISON_LENGTH), "max_new_tokens": 8, "seed": 1}
    innocent_failed = 0
    # One worker, with a slot left for the poison: it must meet the innocent, not an idle worker.
    with bench.site(tally, Plan(workers=0, settings={"SLOTS": str(INNOCENT + 8)})) as site:
        for _ in range(tally.needed):
            site.start(1)
            current = Round(site, tally, rng, rng.sample(list(bench.texts), INNOCENT))
            current.await_moment(rng.uniform(0, 0.9))
            (poisoned,) = submit(site, [bad])
            await_end(site, [poisoned])
            end = entries(site, [poisoned])[0][-1]
            tally.require(isinstance(end, Ended) and end.code == "poison_request", f"the poison request: {end}")
            before = len(tally.broken)
            current.finish()
            innocent_failed += len(tally.broken) - before
            for worker in site.workers:
                worker.close()
            site.workers.clear()
    tally.notes.append(f"{innocent_failed} innocent requests failed of {tally.streams}")
    tally.require(tally.takeovers >= tally.streams / 2, "the poison took the innocent down with it")


def cancel(bench: Bench, tally: Tally) -> None:
    """Not a fault, but a promise: a cancelled request's slot is free for the next one at once.

    Measured twice, by Redis's clock: until the next request is claimed, and until the engine gave it a token, which
    it can't before the slot is free in the engine too.
    """
    slots, rng, claims, tokens = 8, bench.rng(tally), list[float](), list[float]()
    plan = Plan(workers=1, settings={"SLOTS": str(slots)})
    with bench.site(tally, plan) as site, Producer(site.server.url) as producer:
        for _ in range(tally.needed):
            made = long_requests(slots + 1, rng.randrange(2**32), 400)
            running = submit(site, made[:slots])
            wait_until(lambda: all(len(stream) > 3 for stream in entries(site, running)), 30)  # noqa: B023
            (waiting,) = submit(site, made[slots:])
            time.sleep(rng.uniform(0.05, 0.3))
            victim = rng.choice(running)
            tally.require(producer.get(victim).cancel(), "the cancel came in time")
            wait_until(lambda: len(entries(site, [waiting])[0]) > 2, 30)  # noqa: B023
            end, (_, begin, first, *_) = entries(site, [victim])[0][-1], entries(site, [waiting])[0]
            assert isinstance(end, Ended), end
            assert isinstance(begin, Started), begin
            assert isinstance(first, Token), first
            claims.append((begin.at_us - end.at_us) / 1e6)
            tokens.append((first.at_us - end.at_us) / 1e6)
            for request_id in (*running, waiting):
                producer.get(request_id).cancel()
            await_end(site, [*running, waiting])
            streams = entries(site, [*running, waiting])
            tally.streams += len(streams)
            tally.tokens += sum(isinstance(entry, Token) for stream in streams for entry in stream)
            tally.require(all(_ends_once(stream) for stream in streams), "one terminal event, and nothing behind it")
            tally.runs += 1
    tally.notes.append(f"cancel to the slot's next request, p50 / max: claimed {milliseconds(claims)} ms")
    tally.notes.append(f"cancel to that request's first token, p50 / max: {milliseconds(tokens)} ms")
    # The first token is beyond the promise by a prefill; that the engine frees its slot in time is a unit test's.
    tally.require(median(claims) <= CANCEL_P50_S, f"cancel to slot free p50 <= {CANCEL_P50_S} s")


def crash_loop(bench: Bench, tally: Tally) -> None:
    """A request that took workers down twice stands in front of the queue, and every worker is busy: the others begin
    all the same, and it runs once a worker is idle."""
    slots, workers, rng = 8, 3, bench.rng(tally)
    plan = Plan(workers=workers, settings={"SLOTS": str(slots)})
    with bench.site(tally, plan) as site, Producer(site.server.url) as producer:
        for _ in range(tally.needed):
            # One more than two workers hold, so that each has some; they last longer than two rounds of streams.
            busy = submit(site, long_requests(slots * (workers - 1) + 1, rng.randrange(2**32), 400))
            wait_until(lambda: all(len(stream) > 3 for stream in entries(site, busy)), 60)  # noqa: B023
            text, *others = rng.sample(list(bench.texts), 9)
            suspend(site.redis)
            (crashed,) = submit(site, [text.submission])
            site.redis.hset(keys.request(crashed), "crashes", 2)
            resume(site.redis)
            current = Round(site, tally, rng, others)
            current.finish()
            began = [stream[1].at_us for stream in entries(site, current.request_ids)]
            for request_id in busy:
                producer.get(request_id).cancel()
            await_end(site, [*busy, crashed])
            ends = [stream[-1].at_us for stream in entries(site, busy)]
            tally.require(max(began) < min(ends), "the others began while every worker was busy")
            tally.receive(crashed, entries(site, [crashed])[0], text)


def _ends_once(stream: Sequence[Entry]) -> bool:
    return isinstance(stream[-1], Ended) and sum(isinstance(entry, Ended) for entry in stream) == 1


FAULTS: Final[dict[str, Callable[[Bench, Tally], None]]] = {
    "duplicate queue entries": duplicate,
    "concurrent maintainers": maintain_at_once,
    "poison request, 32 in flight": poison,
    "cancel": cancel,
    "two crashes, all workers busy": crash_loop,
}
