"""`tokenrelay list`: every state, newest first, without SCAN."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from typer.testing import CliRunner

from tests.waiting import wait_until
from tests.writers import End, Writer
from tokenrelay.cli.commands import app
from tokenrelay.cli.ops.listing import ListState

if TYPE_CHECKING:
    from redis import Redis

    from tests.redis_servers import RedisServer
    from tokenrelay.producer import Generation, Producer


@pytest.fixture(autouse=True)
def environment(redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKENRELAY_REDIS_URL", redis_server.url)
    monkeypatch.setenv("COLUMNS", "80")


def listed(*arguments: str) -> list[dict[str, Any]]:
    done = CliRunner().invoke(app, ["list", "--json", *arguments])
    assert done.exit_code == 0, done.output
    return [json.loads(line) for line in done.stdout.splitlines()]


def ids(*arguments: str) -> list[str]:
    return [one["request_id"] for one in listed(*arguments)]


@pytest.fixture
def of_state(producer: Producer, writer: Writer) -> dict[str, Generation]:
    """One request in each state, submitted in this order."""
    found = {}
    ends = {"completed": End(), "incomplete": End("incomplete", "length"), "failed": End("failed", "error", code="x")}
    for state, end in ends.items():
        found[state] = producer.submit("x")
        assert writer.take() == found[state].request_id
        writer.answer(found[state].request_id, ("It",), end)
    found["cancelled"] = producer.submit("x", priority="low")
    found["cancelled"].cancel()
    found["expired"] = producer.submit("x", deadline_s=0.01)
    wait_until(lambda: found["expired"].status().seconds_left < 0)
    list(found["expired"].events())  # a producer that reads it expires it
    found["running"] = producer.submit("x")
    assert writer.take() == found["running"].request_id
    writer.claim(found["running"].request_id)
    writer.append(found["running"].request_id, "It", " is")
    found["queued"] = producer.submit("x", model="owner/name")
    return found


def test_every_state(of_state: dict[str, Generation], redis: Redis) -> None:
    redis.config_resetstat()
    for state in ListState:
        assert ids("--state", state) == [of_state[state].request_id], state
    assert ids() == [generation.request_id for generation in of_state.values()][::-1]
    assert ids("--limit", "2") == [of_state[state].request_id for state in ("queued", "running")]
    assert ids("--model", "owner/name") == [of_state["queued"].request_id]
    assert ids("--model", "owner/name", "--state", "failed") == []
    used = redis.info("commandstats")
    assert not {"cmdstat_scan", "cmdstat_keys"} & set(used)
    of_state["running"].cancel()


def test_a_request_that_waits_again_is_queued(of_state: dict[str, Generation], writer: Writer) -> None:
    request_id = of_state["running"].request_id
    writer.release(request_id)
    assert request_id in ids("--state", "queued")
    assert request_id not in ids("--state", "running")


def test_the_table(of_state: dict[str, Generation]) -> None:
    done = CliRunner().invoke(app, ["list", "--limit", "3"])
    header, newest, running, expired = done.stdout.splitlines()
    assert header.split() == ["request", "state", "age", "tokens", "tries", "queue"]
    assert newest.split()[:2] == [of_state["queued"].request_id, "queued"]
    assert newest.endswith("owner--name.default")
    assert (running.split()[1], running.split()[4:6]) == ("running", ["2", "1"])
    assert expired.split()[1] == "expired"
    assert max(map(len, done.stdout.splitlines())) <= 80
    assert done.stderr == "the newest 3; --limit N shows more\n"


def test_nothing_to_list() -> None:
    done = CliRunner().invoke(app, ["list"])
    assert (done.exit_code, done.stderr.startswith("no requests: none submitted")) == (0, True)


@pytest.mark.slow
def test_a_state_is_found_behind_many_others(producer: Producer, writer: Writer) -> None:
    """RQ has one registry for completed and incomplete requests: pages are read until there are enough."""
    wanted = producer.submit("x")
    writer.answer(writer.take() or "", ("It",), End("incomplete", "length"))
    producer.submit_many(["x"] * 250)
    while request_id := writer.take():
        writer.answer(request_id, ("It",))
    assert ids("--state", "incomplete", "--limit", "1") == [wanted.request_id]
