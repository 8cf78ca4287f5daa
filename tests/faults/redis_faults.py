"""Faults of Redis and of the way to it: killed, stalled, full, failed over; connections and replies lost."""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

from tests.faults.primaries import PrimaryAndReplica
from tests.faults.site import Plan
from tests.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.faults.bench import Bench
    from tests.faults.proxy import Mode
    from tests.faults.rounds import Round
    from tests.faults.site import Site
    from tests.faults.verdict import Tally
    from tests.redis_servers import RedisServer

_AOF: Final = ("--appendonly", "yes", "--appendfsync", "everysec")
_TIMES: Final = 3
"""How often connections are cut in one run."""
STALL_LEASE_S: Final = 4.0
STALL_S: Final = STALL_LEASE_S + 2.0
PATIENCE_S: Final = 5.0
"""After so long a client gives up waiting for a reply and connects again, into the stall (connections.py)."""


def restart(bench: Bench, tally: Tally) -> None:
    """kill -9 of Redis, and a restart from its append-only file."""
    with bench.site(tally, Plan(workers=2, redis=_AOF)) as site:

        def inject(current: Round) -> None:
            current.await_moment()
            site.server.kill()
            time.sleep(current.rng.uniform(0, 0.5))
            site.server.start()

        bench.rounds(site, tally, inject)


def restart_streams(bench: Bench, tally: Tally) -> None:
    """kill -9 of the streams' Redis, while the queues' goes on."""
    _restart_one(bench, tally, lambda site: site.streams)


def restart_queues(bench: Bench, tally: Tally) -> None:
    """kill -9 of the queues' Redis, while the streams' goes on."""
    _restart_one(bench, tally, lambda site: site.server)


def _restart_one(bench: Bench, tally: Tally, server_of: Callable[[Site], RedisServer]) -> None:
    with bench.site(tally, Plan(workers=2, redis=_AOF, two_servers=True)) as site:
        server = server_of(site)

        def inject(current: Round) -> None:
            current.await_moment()
            server.kill()
            time.sleep(current.rng.uniform(0, 0.5))
            server.start()

        bench.rounds(site, tally, inject)


def drop_connections(bench: Bench, tally: Tally) -> None:
    """All connections of all workers are cut, and refused for a while."""
    _cut(bench, tally, "drop", 0.5)


def drop_replies(bench: Bench, tally: Tally) -> None:
    """Redis does what it's asked, and the connection is cut in place of the answer."""
    _cut(bench, tally, "drop-replies", 0.3)


def _cut(bench: Bench, tally: Tally, mode: Mode, longest_s: float) -> None:
    with bench.site(tally, Plan(workers=2)) as site:

        def inject(current: Round) -> None:
            for share in sorted(current.rng.random() for _ in range(_TIMES)):
                current.await_moment(share)
                site.proxy.switch(mode)
                time.sleep(current.rng.uniform(0.02, longest_s))
                site.proxy.switch("pass")

        bench.rounds(site, tally, inject)
        if mode == "drop-replies":
            tally.notes.append(f"{site.proxy.dropped_replies} replies dropped")
            tally.require(site.proxy.dropped_replies >= tally.runs, "replies were dropped")


def stall(bench: Bench, tally: Tally) -> None:
    """Redis stands still for the lease and 2 s: all leases have run out, and nobody may take over.

    Clients have given their connections up by then: Redis reads what they had sent beside what they send again.
    """
    reconnected = 0
    plan = Plan(workers=3, settings={"LEASE_MS": str(int(STALL_LEASE_S * 1000))})
    with bench.site(tally, plan) as site:

        def inject(current: Round) -> None:
            nonlocal reconnected
            current.await_moment(current.rng.uniform(0.05, 0.9))
            os.kill(site.server.pid, signal.SIGSTOP)
            time.sleep(PATIENCE_S - 0.5)
            before = site.proxy.connections
            time.sleep(STALL_S - PATIENCE_S + 0.5)
            reconnected += site.proxy.connections - before >= len(site.workers)
            os.kill(site.server.pid, signal.SIGCONT)

        bench.rounds(site, tally, inject)
    spurious = tally.takeovers
    tally.notes.append(
        f"{spurious} spurious takeovers in {tally.runs} stalls of {STALL_S:.0f} s, lease {STALL_LEASE_S:.0f} s; "
        f"all workers connected again in {reconnected} of them"
    )
    tally.require(spurious == 0, "a stall of Redis causes no takeover")
    tally.require(reconnected == tally.runs, "each stall outlasts the workers' patience with a connection")


def fail_over(bench: Bench, tally: Tally) -> None:
    """The primary dies and a replica that missed its last writes takes its place (by hand; clients follow by proxy)."""
    with bench.site(tally, Plan(workers=2)) as site, PrimaryAndReplica(site) as pair:
        missed = 0

        def inject(current: Round) -> None:
            nonlocal missed
            pair.replicate()
            current.await_moment(current.rng.uniform(0.05, 0.9))
            pair.part()
            time.sleep(current.rng.uniform(0.05, 0.4))
            missed += pair.fail_over(current.request_ids)

        bench.rounds(site, tally, inject, url=site.proxy.url)
    tally.notes.append(f"the replicas lacked {missed:,} acknowledged entries, all written again")
    tally.require(missed > tally.runs, "the replicas had missed writes")


def run_out_of_memory(bench: Bench, tally: Tally) -> None:
    """maxmemory is below what is used, for a while: no token can be written."""
    with bench.site(tally, Plan(workers=2, redis=("--maxmemory-policy", "noeviction"))) as site:

        def inject(current: Round) -> None:
            current.await_moment(current.rng.uniform(0, 0.95))
            site.redis.config_set("maxmemory", "1")
            time.sleep(current.rng.uniform(0.3, 1.0))
            site.redis.config_set("maxmemory", "0")

        bench.rounds(site, tally, inject)
        refused = site.redis.info("errorstats").get("errorstat_OOM", {}).get("count", 0)
    tally.notes.append(f"{refused} writes refused with OOM")
    tally.require(refused >= tally.runs, "writes were refused with OOM")


def fill_disk(bench: Bench, tally: Tally) -> None:
    """The append-only file can't grow: Redis refuses writes (MISCONF) until there's room."""
    with _small_disk() as disk:
        if disk is None:
            tally.skipped = "not run: mounting a tmpfs needs root"
            return
        with bench.site(tally, Plan(workers=2, redis=_AOF, folder=str(disk))) as site:
            filler = disk / "filler"

            def inject(current: Round) -> None:
                current.await_moment(current.rng.uniform(0, 0.9))
                _fill(filler)
                time.sleep(current.rng.uniform(1.2, 2.0))
                filler.unlink()

            bench.rounds(site, tally, inject)
            refused = site.redis.info("errorstats").get("errorstat_MISCONF", {}).get("count", 0)
    tally.notes.append(f"{refused} writes refused with MISCONF")
    tally.require(refused >= tally.runs, "writes were refused with MISCONF")


def _fill(file: Path) -> None:
    with file.open("wb", buffering=0) as filler:
        try:
            while True:
                filler.write(b"\0" * 4096)
        except OSError:
            return


@contextmanager
def _small_disk() -> Iterator[Path | None]:
    folder = Path(tempfile.mkdtemp(prefix="tokenrelay-disk-"))
    mounted = os.geteuid() == 0 and _ran("mount", "-t", "tmpfs", "-o", "size=96m", "tokenrelay", str(folder))
    try:
        yield folder if mounted else None
    finally:
        if mounted:
            wait_until(lambda: _ran("umount", str(folder)), 10)
        folder.rmdir()


def _ran(*command: str) -> bool:
    return subprocess.run(command, check=False, capture_output=True).returncode == 0


FAULTS: Final[dict[str, Callable[[Bench, Tally], None]]] = {
    "Redis kill -9, AOF": restart,
    "two Redis: streams' kill -9": restart_streams,
    "two Redis: queues' kill -9": restart_queues,
    "connection drop": drop_connections,
    "reply drop": drop_replies,
    "Redis stall, lease + 2 s": stall,
    "failover, writes missed": fail_over,
    "out of memory": run_out_of_memory,
    "AOF disk full": fill_disk,
}
