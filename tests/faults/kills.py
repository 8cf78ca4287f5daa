"""Faults of workers: killed, frozen, failing, drained, restarted."""

from __future__ import annotations

import signal
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Final

import psutil

from tests.faults.bench import Bench, renew
from tests.faults.children import MARK
from tests.faults.load import await_end, entries, long_requests, submit
from tests.faults.rounds import Round
from tests.faults.site import Plan, Worker
from tests.faults.verdict import milliseconds
from tests.waiting import wait_until
from tests.workers import MODEL
from tokenrelay.shared.wire import keys
from tokenrelay.shared.wire.entries import Migrated, Started, Token

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tests.faults.verdict import Tally
    from tokenrelay.producer import Entry, Submission

RECLAIM_P50_S: Final = 0.3
RECLAIM_MAX_S: Final = 1.0
HOST_LOSS_S: Final = 1.0
"""Beyond the lease."""
ORPHAN_S: Final = 1.0


def _kill_child(bench: Bench, tally: Tally, plan: Plan) -> None:
    with bench.site(tally, plan) as site:

        def inject(current: Round) -> None:
            worker = current.started()
            current.await_moment()
            worker.signal_child(signal.SIGKILL)
            _then(current, worker)

        bench.rounds(site, tally, inject)


def _then(current: Round, worker: Worker) -> None:
    """After the streams went on elsewhere, have a fresh worker for the next run."""
    await_end(current.site, current.request_ids)
    renew(current.site, worker)


def sigkill_child(bench: Bench, tally: Tally) -> None:
    """The engine's process dies; its supervisor detects it and another worker takes over."""
    _kill_child(bench, tally, Plan(workers=3))
    claimed = tally.claims_s
    tally.require(claimed and claimed[len(claimed) // 2] <= RECLAIM_P50_S, f"re-claim p50 <= {RECLAIM_P50_S} s")
    tally.require(claimed and claimed[-1] <= RECLAIM_MAX_S, f"re-claim max <= {RECLAIM_MAX_S} s")


def sigkill_child_two_servers(bench: Bench, tally: Tally) -> None:
    """As sigkill_child; its leases are on one Redis, its jobs on the other."""
    _kill_child(bench, tally, Plan(workers=3, two_servers=True))


def sigkill_child_float32(bench: Bench, tally: Tally) -> None:
    """As sigkill_child, in the arithmetic that users run: reported, not promised."""
    tally.exact = False
    float32 = replace(bench, texts=bench.texts_float32)
    _kill_child(float32, tally, Plan(workers=3, settings={"DTYPE": "float32"}))


def _lose_host(bench: Bench, tally: Tally, lease_ms: int) -> None:
    plan = Plan(workers=3, settings={"LEASE_MS": str(lease_ms)})
    with bench.site(tally, plan) as site:

        def inject(current: Round) -> None:
            worker = current.started()
            current.await_moment()
            worker.kill()
            _then(current, worker)

        bench.rounds(site, tally, inject)
    bound = lease_ms / 1000 + HOST_LOSS_S
    tally.require(tally.claims_s and tally.claims_s[-1] <= bound, f"re-claim max <= {bound} s")


def lose_host(bench: Bench, tally: Tally) -> None:
    """Supervisor and child die at once: undetected until the leases expire."""
    _lose_host(bench, tally, 1000)


def lose_host_default_lease(bench: Bench, tally: Tally) -> None:
    """The same with the lease that ships."""
    _lose_host(bench, tally, 6000)


def zombie(bench: Bench, tally: Tally) -> None:
    """A worker sleeps for three leases and wakes up in the middle of its sentence, which others have gone on with."""
    plan = Plan(workers=3, settings={"LEASE_MS": "1000"})
    with bench.site(tally, plan) as site:

        def inject(current: Round) -> None:
            worker = current.started()
            current.await_moment()
            worker.freeze()
            time.sleep(3.0)
            worker.thaw()

        bench.rounds(site, tally, inject)


def zombie_writes(bench: Bench, tally: Tally) -> None:
    """As zombie, with engines whose tokens tell whose they are: none of the zombie's may stand behind the takeover."""
    settings = {"LEASE_MS": "1000", "SERVED_MODEL": MODEL}
    rng, accepted = bench.rng(tally), 0
    with bench.site(tally, Plan(workers=0, settings=settings)) as site:
        (low,) = site.start(kind="marked-low")
        site.start(kind="marked-high")
        for _ in range(tally.needed):
            made: list[Submission] = [{**each, "model": MODEL} for each in long_requests(8, rng.randrange(2**32), 250)]
            request_ids = submit(site, made)
            wait_until(lambda: all(len(stream) > 2 for stream in entries(site, request_ids)), 30)  # noqa: B023
            frozen = site.worker(_workers(entries(site, request_ids)[0])[0])
            time.sleep(rng.uniform(0, 1))
            frozen.freeze()
            time.sleep(3.0)
            frozen.thaw()
            await_end(site, request_ids)
            for stream in entries(site, request_ids):
                tally.streams += 1
                tally.tokens += sum(isinstance(entry, Token) for entry in stream)
                tally.takeovers += len(_workers(stream)) > 1
                accepted += sum((token.token_id < MARK) == (frozen is low) for token in _behind_takeover(stream))
            tally.runs += 1
    tally.notes.append(f"{accepted} tokens accepted from zombies")
    tally.require(accepted == 0, "no write of a zombie is accepted")
    tally.require(tally.takeovers >= tally.runs, "the zombies' streams were taken over")


def _workers(stream: Sequence[Entry]) -> list[str]:
    return [entry.worker for entry in stream if isinstance(entry, Started | Migrated)]


def _behind_takeover(stream: Sequence[Entry]) -> list[Token]:
    moved = next((n for n, entry in enumerate(stream) if isinstance(entry, Migrated)), len(stream))
    return [entry for entry in stream[moved:] if isinstance(entry, Token)]


def engine_exception(bench: Bench, tally: Tally) -> None:
    """A step of the model raises: the engine is dying, its child hands everything over and exits."""
    _signalled(bench, tally, signal.SIGUSR1, {})


def drain(bench: Bench, tally: Tally) -> None:
    """SIGTERM with less time than the streams need: the rest is handed back mid-stream."""
    _signalled(bench, tally, signal.SIGTERM, {"DRAIN_TIMEOUT_S": "0.3"}, to_child=False)


def _signalled(
    bench: Bench, tally: Tally, number: signal.Signals, settings: dict[str, str], *, to_child: bool = True
) -> None:
    with bench.site(tally, Plan(workers=3, settings=settings)) as site:

        def inject(current: Round) -> None:
            worker = current.started()
            current.await_moment()
            if to_child:
                worker.signal_child(number)
            else:
                worker.terminate()
            _then(current, worker)
            if not to_child:
                crashes = site.pipeline.run([("HGET", keys.request(each), "crashes") for each in current.request_ids])
                tally.require(set(crashes) == {b"0"}, "a hand-back is no crash")

        bench.rounds(site, tally, inject)


def _gone(process: psutil.Process) -> bool:
    """Whether it has ended, also before its exit code was collected."""
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def orphan_while_loading(bench: Bench, tally: Tally) -> None:
    """A supervisor is killed at any moment while its child imports and loads: the child is gone within a second."""
    rng, lasted_s, load_s = bench.rng(tally), list[float](), 0.0
    with bench.site(tally, Plan(workers=0)) as site:
        site.nursery = None  # a child of its own imports everything
        for number in range(tally.needed + 1):
            worker = Worker(site, "weather", {})
            began = time.monotonic()
            supervisor = psutil.Process(worker.process.pid)
            (child,) = wait_until(supervisor.children, 60)
            if number == 0:  # how long it takes
                worker.wait_ready()
                load_s = time.monotonic() - began
                worker.terminate()
                worker.process.wait(60)
                continue
            time.sleep(rng.uniform(0, 0.9 * load_s))
            killed = time.monotonic()
            worker.process.kill()
            worker.process.wait()
            wait_until(lambda: _gone(child), 30)  # noqa: B023
            lasted_s.append(time.monotonic() - killed)
            tally.runs += 1
    tally.notes.append(f"supervisor's death to the loading child's, p50 / max: {milliseconds(lasted_s)} ms")
    tally.require(max(lasted_s) <= ORPHAN_S, f"a loading child is gone within {ORPHAN_S} s")


def rolling_restart(bench: Bench, tally: Tally) -> None:
    """All workers are restarted, one after the other, under load."""
    with bench.site(tally, Plan(workers=2, settings={"DRAIN_TIMEOUT_S": "0.3"})) as site:

        def inject(current: Round) -> None:
            rounds = [current]
            for number, worker in enumerate(list(site.workers)):
                if number:
                    rounds.append(Round(site, tally, current.rng, current.texts))
                rounds[-1].await_moment(current.rng.uniform(0, 0.5))
                worker.terminate()
                tally.require(worker.process.wait(30) == 0, "SIGTERM ends a worker with exit code 0")
                site.replace(worker)
            for later in rounds[1:]:
                later.finish(further=True)

        bench.rounds(site, tally, inject)


FAULTS: Final[dict[str, Callable[[Bench, Tally], None]]] = {
    "SIGKILL child": sigkill_child,
    "two Redis: SIGKILL child": sigkill_child_two_servers,
    "SIGKILL child, float32": sigkill_child_float32,
    "SIGKILL supervisor and child": lose_host,
    "SIGKILL both, lease 6 s": lose_host_default_lease,
    "SIGSTOP 3 leases, SIGCONT": zombie,
    "zombie, marked tokens": zombie_writes,
    "engine exception": engine_exception,
    "drain (SIGTERM)": drain,
    "rolling restart": rolling_restart,
    "SIGKILL supervisor, loading": orphan_while_loading,
}
