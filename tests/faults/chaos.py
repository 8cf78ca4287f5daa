"""`python -m tests.faults.chaos --seconds S --seed N`: everything at once, then the books are balanced.

Producers submit, consumers come, leave and come back, three workers generate, and every second or two something breaks.
At the end every accepted request has exactly one terminal event, every text is the undisturbed one (a cancelled
request's: its beginning), every consumer's copy is Redis's, and no key has neither TTL nor owner. Exit code 1 where
that isn't so.

`max_crashes` is the one that ships, 3. Kills here fall faster than tokens come now and then, and a request whose
worker dies three times before one more token is poison as far as anybody can tell: it is failed as promised, printed
as such, and broken only where its stream shows a token between those deaths.
"""

from __future__ import annotations

import argparse
import logging
import os
import random
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Final, cast

from rich.console import Console
from rq.registry import StartedJobRegistry
from rq.serializers import JSONSerializer

from tests.faults.load import POOL, await_end, entries, requests, undisturbed
from tests.faults.nursery import Nursery
from tests.faults.site import Plan, Site
from tests.faults.verdict import Tally
from tests.leaks import leaked_keys
from tokenrelay.producer import Consumer, Producer
from tokenrelay.shared.errors import RedisUnusable, TokenRelayError
from tokenrelay.shared.settings import ProducerSettings
from tokenrelay.shared.wire import keys
from tokenrelay.shared.wire.entries import Ended, Migrated, Started, State, Token, text

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tests.faults.load import Text
    from tests.faults.site import Worker
    from tokenrelay.producer import Entry, Options

WORKERS: Final = 3
IN_FLIGHT: Final = 36
CONSUMERS: Final = 4
QUEUE: Final = keys.queue("weather", "default")
RETENTION_S: Final = 600
PROGRESS_S: Final = 60.0
LEAST_CLAIMS_OF_POISON: Final = 2
"""Behind the last token: of three deaths in a row the first may be that of the attempt that gave it."""
PLAN: Final = Plan(
    workers=WORKERS,
    redis=("--appendonly", "yes", "--appendfsync", "everysec", "--maxmemory-policy", "noeviction"),
    settings={"DRAIN_TIMEOUT_S": "0.5", "RETENTION_S": str(RETENTION_S)},
)


class Books:
    """What was accepted, what is open, and what consumers have seen. Shared by all threads."""

    def __init__(self, texts: Sequence[Text]) -> None:
        self.texts = texts
        self.tally = Tally("chaos", 0)
        self.open: dict[str, Text] = {}
        self.cancelled: set[str] = set()
        self.poisoned: list[str] = []
        self.lock = threading.Lock()
        self.over = threading.Event()

    def accept(self, request_ids: Sequence[str], texts: Sequence[Text]) -> None:
        with self.lock:
            self.open.update(zip(request_ids, texts, strict=True))

    def settle(self, site: Site) -> None:
        """Compare and forget what has ended."""
        with self.lock:
            waiting = dict(self.open)
        states = site.pipeline.run([("HGET", keys.request(each), "state") for each in waiting])
        over = [each for each, state in zip(waiting, states, strict=True) if _over(state)]
        for request_id, stream in zip(over, entries(site, over), strict=True):
            with self.lock:
                self.receive(request_id, stream, self.open.pop(request_id))

    def receive(self, request_id: str, stream: Sequence[Entry], expected: Text) -> None:
        """Compare what has ended, however it was brought to its end."""
        end = stream[-1] if stream else None
        if request_id in self.cancelled:
            self.tally.receive_cut(request_id, stream, expected, State.CANCELLED)
        elif isinstance(end, Ended) and end.code == "poison_request":
            self.poisoned.append(request_id)
            self.tally.receive_cut(request_id, stream, expected, State.FAILED)
            last = max((n for n, entry in enumerate(stream) if isinstance(entry, Token)), default=0)
            claims = sum(isinstance(entry, Started | Migrated) for entry in stream[last:])
            self.tally.require(claims >= LEAST_CLAIMS_OF_POISON, f"{request_id}: innocent, and failed as poison")
        else:
            self.tally.receive(request_id, stream, expected)


def _over(state: object) -> bool:
    if isinstance(state, Exception):
        raise state
    return state is None or text(state) not in ("queued", "in_progress")


def produce(site: Site, books: Books, rng: random.Random) -> None:
    """Keep requests in flight, one to six at a time. What wasn't accepted is asked again with the same key."""
    settings = ProducerSettings(retention_s=RETENTION_S)
    with Producer(site.server.url, settings=settings) as producer:
        while not books.over.wait(0.05):
            if len(books.open) >= IN_FLIGHT:
                continue
            texts = rng.sample(list(books.texts), rng.randint(1, 6))
            for expected in texts:
                options = cast("Options", {**expected.submission, "idempotency_key": secrets.token_hex(8)})
                while True:
                    try:
                        generation = producer.submit(**options)
                    except RedisUnusable:
                        time.sleep(0.1)
                    except TokenRelayError as error:
                        with books.lock:
                            books.tally.broken.append(f"a producer: {type(error).__name__}: {error}")
                        break
                    else:
                        books.accept([generation.request_id], [expected])
                        break


def consume(site: Site, books: Books, rng: random.Random) -> None:
    """Follow one request after the other, leaving and coming back in its middle."""
    while not books.over.is_set():
        with books.lock:
            chosen = rng.choice(list(books.open)) if books.open else None
        if chosen is None:
            time.sleep(0.05)
            continue
        copy: list[Entry] = []
        try:
            _read(site, chosen, copy, rng)
            with Consumer(site.server.url) as consumer:
                whole = list(consumer.get(chosen).entries())
        except RedisUnusable:
            continue
        except TokenRelayError as error:
            with books.lock:
                books.tally.broken.append(f"a consumer of {chosen}: {type(error).__name__}: {error}")
            continue
        with books.lock:
            books.tally.receive_copy(chosen, copy, whole)


def _read(site: Site, request_id: str, copy: list[Entry], rng: random.Random) -> None:
    """Read the whole stream in several connections, each resuming after the last token of the previous one."""
    while not (copy and isinstance(copy[-1], Ended)):
        visit = rng.randint(1, 80)
        with Consumer(site.server.url) as consumer:
            after = copy[-1].entry_id.token if copy else 0
            for entry in consumer.get(request_id).entries(after=after):
                if entry.entry_id.token > after or not copy or isinstance(entry, Ended):
                    copy.append(entry)
                visit -= 1
                # Only after a token: a reader that resumes gets events again that it has seen.
                if visit <= 0 and entry.entry_id.event == 0:
                    break


class Vandal:
    """Breaks one thing at a time and mends it."""

    def __init__(self, site: Site, books: Books, rng: random.Random) -> None:
        self._site = site
        self._books = books
        self._rng = rng
        self.done: Counter[str] = Counter()
        self._faults: dict[Callable[[], None], int] = {
            self.kill_child: 6,
            self.lose_host: 3,
            self.freeze: 2,
            self.fail_engine: 3,
            self.drain: 3,
            self.restart_redis: 1,
            self.stall_redis: 1,
            self.drop_connections: 2,
            self.drop_replies: 2,
            self.duplicate: 1,
            self.clean_up_as_rq: 2,
            self.cancel: 3,
            self.run_out_of_memory: 2,
        }

    def strike(self) -> None:
        (fault,) = self._rng.choices(list(self._faults), weights=list(self._faults.values()))
        self.done[fault.__name__.replace("_", " ")] += 1
        fault()

    def kill_child(self) -> None:
        worker = self._any_ready()
        worker.signal_child(signal.SIGKILL)
        self._site.replace(worker, wait=False, linger_s=0.5)

    def lose_host(self) -> None:
        worker = self._any_ready()
        worker.kill()
        self._site.replace(worker, wait=False)

    def freeze(self) -> None:
        worker = self._any_ready()
        worker.freeze()
        time.sleep(self._rng.uniform(1, 6))
        worker.thaw()

    def fail_engine(self) -> None:
        worker = self._any_ready()
        worker.signal_child(signal.SIGUSR1)
        self._site.replace(worker, wait=False, linger_s=0.7)

    def drain(self) -> None:
        worker = self._any_ready()
        worker.terminate()
        worker.process.wait(60)
        self._site.replace(worker, wait=False)

    def restart_redis(self) -> None:
        self._site.server.kill()
        time.sleep(self._rng.uniform(0, 1))
        self._site.server.start()

    def stall_redis(self) -> None:
        os.kill(self._site.server.pid, signal.SIGSTOP)
        time.sleep(self._rng.uniform(0.5, 4))
        os.kill(self._site.server.pid, signal.SIGCONT)

    def drop_connections(self) -> None:
        self._cut("drop")

    def drop_replies(self) -> None:
        self._cut("drop-replies")

    def _cut(self, mode: str) -> None:
        self._site.proxy.switch("drop" if mode == "drop" else "drop-replies")
        time.sleep(self._rng.uniform(0.05, 1))
        self._site.proxy.switch("pass")

    def duplicate(self) -> None:
        for job_id in self._site.redis.zrange(keys.claimed(QUEUE), 0, -1):
            self._site.redis.hset(keys.rq_job(text(job_id)), "status", "queued")
            self._site.redis.rpush(keys.rq_queue(QUEUE), text(job_id))

    def clean_up_as_rq(self) -> None:
        """Run RQ's clean-up after some of its 60 s leases have expired."""
        wip = keys.rq_registry("wip", QUEUE)
        for member in self._site.redis.zrange(wip, 0, -1):
            if self._rng.random() < 0.5:
                self._site.redis.zadd(wip, {text(member): 1}, xx=True)
        StartedJobRegistry(QUEUE, connection=self._site.redis, serializer=JSONSerializer).cleanup()
        command = [sys.executable, "-m", "rq.cli", "info", "--url", self._site.server.url]
        subprocess.run(command, check=True, capture_output=True, timeout=60)

    def cancel(self) -> None:
        with self._books.lock:
            chosen = self._rng.choice(list(self._books.open)) if self._books.open else None
        if chosen is not None:
            with Producer(self._site.server.url) as producer:
                if producer.get(chosen).cancel():
                    self._books.cancelled.add(chosen)

    def run_out_of_memory(self) -> None:
        self._site.redis.config_set("maxmemory", "1")
        time.sleep(self._rng.uniform(0.1, 1))
        self._site.redis.config_set("maxmemory", "0")

    def _any_ready(self) -> Worker:
        while not (ready := [worker for worker in self._site.workers if worker.ready()]):
            time.sleep(0.05)
        return self._rng.choice(ready)


def run(
    site: Site, texts: Sequence[Text], seconds: float, seed: int, progress: Callable[[str], object]
) -> tuple[Books, Counter[str]]:
    """Inject faults for a time, then wait until all requests have ended. Reports to `progress` every 60 s."""
    books = Books(texts)
    vandal = Vandal(site, books, random.Random(f"{seed} faults"))
    threads = [threading.Thread(target=produce, args=(site, books, random.Random(f"{seed} producer")), daemon=True)]
    for number in range(CONSUMERS):
        rng = random.Random(f"{seed} consumer {number}")
        threads.append(threading.Thread(target=consume, args=(site, books, rng), daemon=True))
    for thread in threads:
        thread.start()
    began, pauses = time.monotonic(), random.Random(f"{seed} pauses")
    said = began
    while time.monotonic() < began + seconds:
        time.sleep(pauses.uniform(0.2, 1.5))
        vandal.strike()
        books.settle(site)
        if time.monotonic() >= said + PROGRESS_S:
            said = time.monotonic()
            progress(f"{said - began:.0f} s: {vandal.done.total()} faults, {_sums(books)}")
    books.over.set()
    for thread in threads:
        thread.join(120)
        books.tally.require(not thread.is_alive(), f"{thread.name} came to its end")
    await_end(site, list(books.open), 120)
    books.settle(site)
    books.tally.require(not books.open, "every accepted request has ended")
    return books, vandal.done


def _sums(books: Books) -> str:
    tally = books.tally
    return (
        f"{tally.takeovers:,} takeovers, {tally.streams:,} streams, {tally.tokens:,} tokens; "
        f"lost {tally.lost}, repeated {tally.repeated}, changed {tally.changed}, broken {len(tally.broken)}"
    )


def main() -> int:
    """1 where a promise was broken."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults.chaos", description=__doc__)
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--seed", type=int, default=None, help="drawn and printed if not given")
    parser.add_argument("--progress", action="store_true", help="say every 60 s how far it is")
    chosen = parser.parse_args()
    for name in ("asyncio", "rq"):  # what they say of connections and jobs that are lost on purpose
        logging.getLogger(name).setLevel(logging.CRITICAL)
    seed = secrets.randbelow(2**32) if chosen.seed is None else chosen.seed
    console = Console()
    console.print(f"chaos for {chosen.seconds:.0f} s, seed {seed}")
    folder = Path(tempfile.mkdtemp(prefix="tokenrelay-chaos-"))
    with Nursery() as nursery, Site(folder / "chaos", nursery, PLAN) as site:
        texts = undisturbed(site, requests(POOL, seed=1))
        books, done = run(site, texts, chosen.seconds, seed, console.print if chosen.progress else lambda _: None)
        tally = books.tally
        tally.broken += leaked_keys(site.redis)
        number_of_keys = site.redis.dbsize()
    faults = ", ".join(f"{name} {number}" for name, number in done.most_common())
    console.print(
        f"{_sums(books)}\n"
        f"identical {tally.identical:,} of {tally.streams:,}, the beginning of theirs in {tally.cut:,} that were ended "
        f"early: {len(books.cancelled)} cancelled, {len(books.poisoned)} failed as poison after three deaths in a row; "
        f"{tally.consumers:,} consumers' copies compared; "
        f"{tally.complete:,} structured answers complete, and in format; "
        f"{number_of_keys:,} keys, each with a TTL or an owner\nfaults: {faults}"
    )
    for line in tally.broken[:20]:
        console.print(f"broken: {line}", style="red", markup=False)
    if tally.red:
        console.print(f"logs: {folder}")
        return 1
    shutil.rmtree(folder, ignore_errors=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
