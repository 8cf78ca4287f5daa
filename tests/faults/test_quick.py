"""A few runs of the fault suite: rows, comparison, and that the comparison can fail. `make faults` runs it all."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from tests.faults import control, kills, redis_faults, sick_faults
from tests.faults.bench import Bench
from tests.faults.chaos import Books
from tests.faults.load import Text, requests, undisturbed
from tests.faults.nursery import Nursery
from tests.faults.site import Plan, Site
from tests.faults.verdict import Tally
from tests.formats import FORMATS
from tests.integration.test_supervisor import child_of, ready, supervised
from tests.streams import ended, migrated, queued, started, token
from tests.waiting import wait_until
from tests.workers import running_worker
from tokenrelay.shared.wire import keys
from tokenrelay.shared.wire.entries import EntryId, State, Token, TokenLogprob, Usage

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from redis import Redis

    from tests.conftest import MakeRedisServer
    from tests.redis_servers import RedisServer
    from tokenrelay.producer import Submission
    from tokenrelay.shared.wire.entries import Entry

TOKENS = 3
EXPECTED = Text(
    {"prompt": "x", "seed": 1}, tuple((f" t{index}", index + 100, ()) for index in range(1, TOKENS + 1)), "!"
)


def undisturbed_stream() -> list[Entry]:
    last = ended(EntryId(TOKENS, 1), State.INCOMPLETE, "!")
    tokens = [token(index) for index in range(1, TOKENS + 1)]
    return [queued(), started(), *tokens, replace(last, finish_reason="length")]


def taken_over_stream() -> list[Entry]:
    stream = undisturbed_stream()
    last = replace(ended(EntryId(TOKENS, 1), State.INCOMPLETE, "!"), finish_reason="length", usage=Usage(7, 3, 9))
    return [*stream[:4], migrated(EntryId(2, 1)), *stream[4:-1], last]


def verdict(stream: list[Entry]) -> Tally:
    tally = Tally("a fault", 1, runs=1)
    tally.receive("r" * 22, stream, EXPECTED)
    return tally


@pytest.mark.parametrize("stream", [undisturbed_stream(), taken_over_stream()])
def test_a_right_stream_is_identical(stream: list[Entry]) -> None:
    tally = verdict(stream)
    assert (tally.red, tally.identical, tally.tokens) == (False, 1, TOKENS), tally.broken


def test_what_is_wrong_is_counted() -> None:
    stream = undisturbed_stream()
    lost = verdict([*stream[:3], *stream[4:]])
    repeated = verdict([*stream[:4], stream[3], *stream[4:]])
    changed = verdict([*stream[:3], token(2, " another"), *stream[4:]])
    unended = verdict(stream[:-1])
    assert (lost.lost, repeated.repeated, changed.changed) == (1, 1, 1)
    assert all(tally.red and tally.identical == 0 for tally in (lost, repeated, changed))
    assert unended.red
    assert Tally("too few runs", 20, runs=19).red
    assert Tally("not run", 20, skipped="no root").red
    assert not Tally("not run", 20, skipped="no root", skips_allowed=True).red


def cut(stream: list[Entry], state: State = State.CANCELLED) -> Tally:
    tally = Tally("a fault", 0)
    tally.receive_cut("r" * 22, stream, EXPECTED, state)
    return tally


def test_a_cancelled_stream_is_the_beginning_of_the_undisturbed_one() -> None:
    end = replace(ended(EntryId(2, 1), State.CANCELLED), finish_reason="cancelled")
    stream = [*undisturbed_stream()[:4], end]
    right = cut(stream)
    assert (right.red, right.cut, right.streams, right.tokens) == (False, 1, 0, 2), right.broken
    assert cut(stream, State.FAILED).red
    assert cut([*stream[:3], token(2, " another"), end]).changed == 1
    assert cut([*stream[:2], stream[3], end]).lost == 1
    assert cut(stream[:-1]).red, "no end"
    assert cut([*stream, replace(end, entry_id=EntryId(2, 2))]).red, "two ends"


@pytest.mark.parametrize(("deaths", "red"), [(1, True), (2, False)])
def test_poison_is_believed_only_behind_deaths_without_a_token(deaths: int, red: bool) -> None:
    takeovers: list[Entry] = [migrated(EntryId(2, number), number + 1) for number in range(1, deaths)]
    end = replace(ended(EntryId(2, deaths), State.FAILED), finish_reason="error", code="poison_request")
    books = Books([])
    tail: list[Entry] = [migrated(EntryId(2, deaths), deaths + 1), replace(end, entry_id=EntryId(2, deaths + 1))]
    books.receive("r" * 22, [*undisturbed_stream()[:4], *takeovers, *tail], EXPECTED)
    assert books.poisoned == ["r" * 22]
    assert books.tally.red == red, books.tally.broken


def test_a_consumers_copy_is_compared_in_the_order_in_which_it_came() -> None:
    stream = undisturbed_stream()
    tally = Tally("a fault", 0)
    tally.receive_copy("r", stream, stream)
    assert not tally.red
    tally.receive_copy("r", [*stream[:3], stream[2], stream[4], stream[5]], stream)
    assert (tally.lost, tally.repeated, tally.changed) == (1, 1, 0)
    tally.receive_copy("r", stream[:-1], stream)
    assert tally.broken


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    folder = tmp_path_factory.mktemp("faults")
    with Nursery() as nursery:
        with Site(folder / "undisturbed", nursery, Plan(workers=1)) as site:
            texts = undisturbed(site, requests(16, seed=2, tokens=128))
        yield Bench(folder, nursery, texts, runs=1, seed=0)


@pytest.mark.timeout(150)
@pytest.mark.parametrize(
    "fault",
    [
        kills.sigkill_child,
        redis_faults.drop_replies,
        redis_faults.restart_streams,
        pytest.param(kills.sigkill_child_two_servers, marks=pytest.mark.slow),
        pytest.param(kills.lose_host, marks=pytest.mark.slow),
        pytest.param(sick_faults.long_prefill, marks=pytest.mark.slow),
    ],
)
def test_nothing_is_lost_repeated_or_changed(bench: Bench, fault: Callable[[Bench, Tally], None]) -> None:
    tally = Tally(fault.__name__, 1)
    fault(bench, tally)
    # How fast is for `make faults` to say, on a machine that does nothing else.
    tally.broken = [told for told in tally.broken if not told.startswith("re-claim ")]
    assert not tally.red, tally
    assert tally.identical == tally.streams > 0


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_load_could_go_wrong_and_is_what_the_draw_gives() -> None:
    assert control.main() == 0


def test_a_complete_answer_that_is_not_in_its_format_is_red() -> None:
    submission: Submission = {"prompt": "x", "response_format": FORMATS["json_object"].option}
    expected = replace(EXPECTED, submission=submission, state=State.COMPLETED, finish_reason="stop")
    tally = Tally("a fault", 1, runs=1)
    tally.receive("r" * 22, [*undisturbed_stream()[:-1], ended(EntryId(TOKENS, 1), State.COMPLETED, "!")], expected)
    assert (tally.changed, tally.complete, len(tally.broken)) == (0, 1, 1), tally


def test_log_probabilities_are_compared_where_results_are_exact() -> None:
    first, second, *rest = undisturbed_stream()[2:]
    assert isinstance(second, Token)
    reported = replace(second, logprobs=(TokenLogprob(102, -1.0, b" t2"),))
    stream = [queued(), started(), first, reported, *rest]
    assert verdict(stream).changed == 1
    tally = Tally("float32", 1, runs=1, exact=False)
    tally.receive("r" * 22, stream, EXPECTED)
    assert tally.changed == 0


@pytest.mark.slow
def test_a_killed_workers_name_can_be_used_again(redis_server: RedisServer, redis: Redis) -> None:
    """A host that restarts at once finds its own old registration, which couldn't be removed."""
    worker = keys.rq_worker("box.0")
    with supervised(redis_server.url) as supervisor:
        wait_until(lambda: ready(redis), 30)
        child = child_of(supervisor)
        supervisor.kill()
        child.kill()
        child.wait(10)
        redis.pexpire(worker, 2000)
        with supervised(redis_server.url):
            wait_until(lambda: redis.hget(worker, "pid") not in (None, str(child.pid).encode()), 30)


def test_a_worker_stops_in_good_order_without_redis(make_redis_server: MakeRedisServer) -> None:
    server = make_redis_server()
    with running_worker(server.url) as worker:
        wait_until(lambda: worker.connection.hget(keys.rq_worker(worker.name), "state") == b"idle")
        server.kill()
