"""A request's own scripts on real servers: every reply word, fences, repeats, lifetimes."""

from __future__ import annotations

import re
import time
from typing import TYPE_CHECKING

import pytest

from tests.streams import REQUEST_ID
from tests.token_plane import TokenPlane, hashed, read_stream, rows
from tokenrelay.shared.redis.calls import Unusable
from tokenrelay.shared.store import requests
from tokenrelay.shared.store.replies import Appended
from tokenrelay.shared.wire import keys
from tokenrelay.shared.wire.answer import assemble
from tokenrelay.shared.wire.entries import Ended, Migrated, Queued, Started, State, Token, Usage

if TYPE_CHECKING:
    from redis import Redis

    from tokenrelay.shared.redis.batches import Pipeline


def past(redis: Redis, name: str) -> None:
    """The time that a field of the hash names is over."""
    redis.hset(keys.request(REQUEST_ID), name, 1)


def test_a_whole_life(appending: TokenPlane, redis: Redis) -> None:
    before = time.time()
    assert appending.create(metadata='{"a": 1}')[0] == "OK"
    word, fence, attempt, index, crashes, deadline_us, prompt_ids, emitted, effective, logprobs = appending.claim("x1")
    assert (word, fence, attempt, index, crashes) == ("OK", "1:x1", 1, 1, 0)
    assert (prompt_ids, emitted, effective, logprobs) == ("[5, 6, 7]", [], "", [])
    assert abs(int(deadline_us) / 1e6 - before - 600) < 5
    assert appending.append(fence, 1, ("It", 11)) == ["OK", 2]
    assert appending.append(fence, 2, (" is", 12), (" sun", 13)) == ["OK", 4]
    assert appending.finish(fence, 4, ("", 14), text="ny.") == ["OK"]

    entries = read_stream(redis)
    assert [str(entry.entry_id) for entry in entries] == ["0-1", "0-2", "1-0", "2-0", "3-0", "4-0", "4-1"]
    assert [type(entry) for entry in entries] == [Queued, Started, Token, Token, Token, Token, Ended]
    answer = assemble(REQUEST_ID, entries)
    assert (answer.text, answer.state, answer.usage) == ("It is sunny.", State.COMPLETED, Usage(3, 4, 0))
    assert (answer.metadata, answer.seed, answer.model) == ({"a": 1}, 42, "weather")


def test_times_are_plain_digits_of_redis_time(plane: TokenPlane, redis: Redis) -> None:
    plane.create()
    plane.claim("x1")
    plane.append("1:x1", 1, ("It", 11))
    seconds, microseconds = redis.time()
    for _, fields in rows(redis, keys.stream(REQUEST_ID)):
        at_us = fields[b"at_us"]
        assert re.fullmatch(rb"\d{16}", at_us)
        assert 0 <= seconds * 1_000_000 + microseconds - int(at_us) < 10_000_000
    for name in ("deadline_us", "lease_us"):
        assert re.fullmatch(rb"\d{16}", hashed(redis, keys.request(REQUEST_ID))[name.encode()])


def test_both_keys_live_equally_long_at_every_moment(plane: TokenPlane, redis: Redis) -> None:
    def ttls() -> tuple[int, int]:
        with redis.pipeline() as both:
            both.pttl(keys.request(REQUEST_ID))
            both.pttl(keys.stream(REQUEST_ID))
            one, other = both.execute()
        return int(one), int(other)

    plane.create(deadline_ms=50_000, retention_ms=30_000)
    plane.claim("x1")
    plane.append("1:x1", 1, ("It", 11))
    one, other = ttls()
    assert abs(one - other) <= 1
    assert 75_000 < one <= 80_000, "deadline + retention"
    plane.finish("1:x1", 2)
    one, other = ttls()
    assert abs(one - other) <= 1
    assert 25_000 < one <= 30_000, "retention from the end on"


def test_create_attaches_or_conflicts(plane: TokenPlane, redis: Redis) -> None:
    assert plane.create("body")[0] == "OK"
    assert plane.create("body") == ["ATTACHED", "queued"]
    assert plane.create("other") == ["CONFLICT"]
    plane.cancel()
    assert plane.create("body") == ["ATTACHED", "cancelled"]
    assert len(read_stream(redis)) == 2


def test_claim_again_after_a_lost_reply_is_the_same_grant(plane: TokenPlane, redis: Redis) -> None:
    plane.create()
    first = plane.claim("x1")
    assert plane.claim("x1") == first
    plane.append("1:x1", 1, ("It", 11))
    assert plane.claim("x1")[7] == ["11", "It"]
    assert len(read_stream(redis)) == 3


def test_a_live_lease_is_nobody_elses(plane: TokenPlane) -> None:
    plane.create()
    plane.claim("x1")
    assert plane.claim("x2") == ["BUSY"]
    assert plane.claim("1") == ["BUSY"], "the end of a fence is not the fence"
    assert plane.claim("") == ["BUSY"]


def test_only_a_granted_claim_reads_the_stream(plane: TokenPlane, redis: Redis) -> None:
    """8,000 tokens of a live request were read before the script answered BUSY."""
    plane.create()
    fence = plane.claim("x1")[1]
    plane.append(fence, 1, *((" a", 1) for _ in range(1000)))
    redis.config_resetstat()
    assert plane.claim("x2") == ["BUSY"]
    plane.cancel()
    assert plane.claim("x2") == ["DONE", "cancelled"]
    assert "cmdstat_xrange" not in redis.info("commandstats")


def test_taking_over_needs_two_looks(plane: TokenPlane, redis: Redis) -> None:
    plane.create()
    plane.claim("x1", lease_ms=-1)
    plane.append("1:x1", 1, ("It", 11), (" is", 12), lease_ms=-1)
    assert plane.claim("x2", suspicion_ms=0) == ["BUSY"], "nobody has looked yet"
    assert plane.suspect() == ["SUSPECT"]
    assert plane.claim("x2") == ["BUSY"], "the second look comes too soon"
    granted = plane.claim("x2", suspicion_ms=0)
    assert granted[:5] == ["OK", "2:x2", 2, 3, 1], "the lost lease is a crash"
    assert granted[6:] == ["[5, 6, 7]", ["11", "It", "12", " is"], "", []]
    last = read_stream(redis)[-1]
    assert isinstance(last, Migrated)
    assert (str(last.entry_id), last.attempt, last.resumed_at) == ("2-1", 2, 3)
    assert plane.append("1:x1", 3, ("!", 13)) == ["FENCED"], "the zombie wakes up"


def test_later_claims_get_the_first_ones_prompt(plane: TokenPlane, redis: Redis) -> None:
    plane.create()
    plane.claim("x1")
    plane.append("1:x1", 1, ("It", 11))
    plane.release("x1")
    assert plane.claim("x2", prompt=(9,))[6] == "[5, 6, 7]"
    plane.finish("2:x2", 2)
    assert assemble(REQUEST_ID, read_stream(redis)).usage == Usage(3, 1, 4), "recomputed: the prompt and one token"


def test_the_refusals_of_claim(plane: TokenPlane, redis: Redis) -> None:
    assert plane.claim("x1") == ["LOST"]
    plane.create()
    plane.claim("x1")
    plane.release("x1")
    assert plane.claim("x2", fingerprint="other") == ["NOT_MINE", "fingerprint"]
    redis.hset(keys.request(REQUEST_ID), "wire", 2)
    assert plane.claim("x2") == ["NOT_MINE", "wire 2"]
    redis.hset(keys.request(REQUEST_ID), "wire", 1)
    past(redis, "deadline_us")
    assert plane.claim("x2") == ["PAST"]
    plane.expire()
    assert plane.claim("x2") == ["DONE", "expired"]


def test_poison_is_told_after_the_third_crash_in_a_row(plane: TokenPlane, redis: Redis) -> None:
    plane.create()
    for attempt in (1, 2, 3):
        assert plane.claim(f"x{attempt}")[4] == attempt - 1
        assert plane.release(f"x{attempt}", crashed=True) == ["OK"]
    assert plane.claim("x4") == ["POISON"]
    assert plane.claim("x4") == ["DONE", "failed"]
    last = read_stream(redis)[-1]
    assert isinstance(last, Ended)
    assert (last.state, last.code, last.finish_reason) == (State.FAILED, "poison_request", "error")
    assert "3 times" in (last.message or "")


def test_the_dead_ones_finish_is_not_the_poisons_end(plane: TokenPlane, redis: Redis) -> None:
    plane.create()
    plane.claim("x1", lease_ms=-1)
    plane.suspect()
    assert plane.claim("x2", suspicion_ms=0, max_crashes=1) == ["POISON"]
    assert plane.finish("1:x1", 1, state="completed") == ["DONE", "failed"]


@pytest.mark.parametrize("between", ["token", "hand-back"])
def test_what_is_no_crash_in_a_row(plane: TokenPlane, between: str) -> None:
    plane.create()
    for attempt in range(1, 6):
        word, fence, *_ = plane.claim(f"x{attempt}")
        assert word == "OK"
        if between == "token":
            plane.append(fence, attempt, ("a", 11))
        plane.release(f"x{attempt}", crashed=between == "token")


def test_append_repeated_gapped_and_overlapping(appending: TokenPlane, redis: Redis) -> None:
    appending.create()
    appending.claim("x1")
    assert appending.append("1:x1", 2, ("b", 2)) == ["GAP", 1]
    assert appending.append("1:x1", 1, ("a", 1), ("b", 2)) == ["OK", 3]
    assert appending.append("1:x1", 1, ("a", 1), ("b", 2)) == ["OK", 3], "the reply was lost"
    assert appending.append("1:x1", 2, ("b", 2), ("c", 3)) == ["OK", 4], "half of it is new"
    assert appending.append("1:x1", 5, ("e", 5)) == ["GAP", 4]
    assert appending.finish("1:x1", 6, ("f", 6)) == ["GAP", 4]
    assert [entry.text for entry in read_stream(redis) if isinstance(entry, Token)] == ["a", "b", "c"]


def test_the_refusals_of_append(appending: TokenPlane, redis: Redis) -> None:
    assert appending.append("1:x1", 1, ("a", 1)) == ["LOST"]
    appending.create()
    assert appending.append("", 1, ("a", 1)) == ["FENCED"], "no fence is nobody's"
    appending.claim("x1")
    for fence in ("", "x1", "2:x1", "1:x2", "1:x1 "):
        assert appending.append(fence, 1, ("a", 1)) == ["FENCED"]
    past(redis, "deadline_us")
    assert appending.append("1:x1", 1, ("a", 1)) == ["PAST"]
    appending.cancel()
    assert appending.append("1:x1", 1, ("a", 1)) == ["DONE", "cancelled"]
    assert len(read_stream(redis)) == 3


def test_an_append_with_foreign_keys_hurts_none_that_it_is_joined_with(
    plane: TokenPlane, pipeline: Pipeline, redis: Redis
) -> None:
    plane.create()
    plane.claim("x1")
    foreign = "f" * 22
    redis.set(keys.request(foreign), "a string", ex=60)
    sick = requests.append(foreign, "1:x1", 1, [("a", 1)], 1000)
    appends = [sick, requests.append(REQUEST_ID, "1:x1", 1, [("a", 1), ("b", 2)], 1000), sick]
    (reply,) = pipeline.run([requests.joined(appends)])
    answers = [append.parse(part) for append, part in zip(appends, requests.parted(reply, 3), strict=True)]
    assert answers[1] == Appended(3)
    assert [type(answer) for answer in answers] == [Unusable, Appended, Unusable]
    assert [entry.text for entry in read_stream(redis) if isinstance(entry, Token)] == ["a", "b"]


@pytest.mark.parametrize("gone", [keys.stream(REQUEST_ID), keys.request(REQUEST_ID)])
def test_a_lost_key_is_never_made_again(appending: TokenPlane, redis: Redis, gone: str) -> None:
    appending.create()
    appending.claim("x1")
    appending.append("1:x1", 1, ("a", 1))
    redis.delete(gone)
    assert appending.append("1:x1", 2, ("b", 2)) == ["LOST"]
    assert appending.finish("1:x1", 2, ("b", 2)) == ["LOST"]
    assert appending.finish("1:x1", 2) == ["LOST"]
    assert appending.claim("x2") == ["LOST"]
    assert appending.cancel() == ["LOST"]
    assert redis.exists(gone) == 0


def test_a_stream_without_its_beginning_is_not_continued(plane: TokenPlane, redis: Redis) -> None:
    plane.create()
    plane.claim("x1")
    plane.append("1:x1", 1, ("a", 1), ("b", 2))
    plane.release("x1")
    redis.xdel(keys.stream(REQUEST_ID), "1-0")
    assert plane.claim("x2") == ["LOST"]


def test_finish_answers_a_repeat_and_refuses_the_others(plane: TokenPlane, redis: Redis) -> None:
    plane.create()
    assert plane.finish("", 1) == ["FENCED"]
    plane.claim("x1")
    plane.release("x1")
    plane.claim("x2")
    assert plane.finish("1:x1", 1) == ["FENCED"]
    assert plane.finish("2:x2", 1, state="failed", code="prompt_too_long", message="3 > 2") == ["OK"]
    assert plane.finish("2:x2", 1, state="failed") == ["OK"]
    assert plane.finish("1:x1", 1) == ["DONE", "failed"]
    assert plane.finish("", 1) == ["DONE", "failed"]
    answer = assemble(REQUEST_ID, read_stream(redis))
    assert (answer.code, answer.message) == ("prompt_too_long", "3 > 2")


def test_cancel_needs_no_owner(plane: TokenPlane, redis: Redis) -> None:
    assert plane.cancel() == ["LOST"]
    plane.create()
    plane.claim("x1")
    plane.append("1:x1", 1, ("a", 1))
    assert plane.cancel("the caller") == ["OK", "1:x1"]
    assert plane.cancel("another") == ["DONE", "cancelled"]
    assert plane.renew("1:x1") == ["DONE", "cancelled"], "how the worker hears of it"
    answer = assemble(REQUEST_ID, read_stream(redis))
    assert (answer.state, answer.cancelled_by) == (State.CANCELLED, "the caller")


def test_an_end_by_somebody_else_is_announced(plane: TokenPlane, redis: Redis) -> None:
    with redis.pubsub() as channel:  # type: ignore[no-untyped-call]
        channel.subscribe(keys.ENDED)
        assert channel.get_message(timeout=30)
        plane.create()
        plane.cancel()
        message = channel.get_message(timeout=30)
    assert message
    assert message["data"].decode() == REQUEST_ID


def test_expire_before_and_after_the_first_token(plane: TokenPlane, redis: Redis) -> None:
    assert plane.expire() == ["LOST"]
    plane.create(deadline_ms=60_000)
    word, left_us = plane.expire()
    assert word == "EARLY"
    assert 50_000_000 < int(left_us) <= 60_000_000
    past(redis, "deadline_us")
    assert plane.expire() == ["OK", "expired"]
    assert plane.expire() == ["DONE", "expired"]


def test_past_the_deadline_behind_a_token_is_incomplete(plane: TokenPlane, redis: Redis) -> None:
    plane.create()
    plane.claim("x1")
    plane.append("1:x1", 1, ("a", 1))
    past(redis, "deadline_us")
    assert plane.expire() == ["OK", "incomplete"]
    assert assemble(REQUEST_ID, read_stream(redis)).finish_reason == "deadline"


def test_renew_and_suspect(plane: TokenPlane, redis: Redis) -> None:
    assert plane.renew("1:x1") == ["LOST"]
    assert plane.suspect() == ["LOST"]
    plane.create()
    assert plane.suspect() == ["FREE"]
    assert plane.renew("") == ["FENCED"]
    plane.claim("x1")
    assert plane.suspect() == ["LIVE"]
    assert plane.renew("1:x2") == ["FENCED"]
    past(redis, "lease_us")
    assert plane.suspect(suspicion_ms=0) == ["SUSPECT"], "the first look only marks"
    assert plane.renew("1:x1") == ["OK"], "Redis had stalled, not the worker"
    assert plane.suspect(suspicion_ms=0) == ["LIVE"]
    past(redis, "lease_us")
    assert plane.suspect() == ["SUSPECT"]
    assert plane.suspect() == ["SUSPECT"], "too soon"
    assert plane.suspect(suspicion_ms=0) == ["RELEASED"]
    assert plane.append("1:x1", 1, ("a", 1)) == ["FENCED"]
    assert plane.suspect() == ["FREE"]
    plane.cancel()
    assert plane.suspect() == ["DONE", "cancelled"]


def test_release_fences_what_is_still_in_a_socket_buffer(plane: TokenPlane) -> None:
    assert plane.release("x1") == ["LOST"]
    plane.create()
    plane.claim("x1")
    for other in ("x2", "1", "", "1:x1"):
        assert plane.release(other) == ["FENCED"]
    assert plane.release("x1") == ["OK"]
    assert plane.release("x1") == ["FENCED"]
    assert plane.append("1:x1", 1, ("a", 1)) == ["FENCED"]
    assert plane.claim("x1")[1] == "2:x1"
    plane.cancel()
    assert plane.release("x1") == ["DONE", "cancelled"]
