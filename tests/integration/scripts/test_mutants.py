"""Broken copies of the Lua sources: the model must notice each of them."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import pytest
from redis.exceptions import ResponseError

from tests.integration.scripts.machine import run_model
from tokenrelay.shared.errors import ProtocolError, StreamError

if TYPE_CHECKING:
    from tests.redis_servers import RedisServer

FENCE_CHECK = "if m[2] == '' or m[2] ~= ARGV[1] then return { 'FENCED' } end"
DONE_CHECK = "if terminal(m[1]) then return { 'DONE', m[1] } end"
TOKEN_XADD = "'NOMKSTREAM', index .. '-0'"
EVENT_XADD = "'NOMKSTREAM', id"
SUSPECT_MARK = """if not suspect then
  redis.call('HSET', request, 'suspect_us', now)
  return { 'SUSPECT' }
end"""

# what is broken → (a comment of the one script that is meant, or '', what is taken out, what stands there instead)
MUTANTS: dict[str, tuple[str, str, str]] = {
    "append is not fenced": (
        "-- Append one or several",
        "if m[1] == '' or m[1] ~= ARGV[first] then",
        "local state = redis.call('HGET', request, 'state') if not state or terminal(state) then",
    ),
    "finish is not fenced": ("-- Append the last tokens", FENCE_CHECK, ""),
    "renew is not fenced": ("-- Keep the lease", FENCE_CHECK, ""),
    "score is not fenced": ("-- Store the log-probabilities", FENCE_CHECK, ""),
    "score goes on behind the end": ("-- Store the log-probabilities", DONE_CHECK, ""),
    "a second score replaces the first": (
        "-- Store the log-probabilities",
        "redis.call('HEXISTS', request, 'prompt_logprobs') == 0",
        "true",
    ),
    "an empty fence writes": ("-- Append one or several", "m[1] == '' or ", ""),
    "an empty fence finishes": ("-- Append the last tokens", "m[2] == '' or ", ""),
    "a fence is compared by its end": (
        "-- Clear the fence",
        "m[2] ~= tostring(m[3]) .. ':' .. ARGV[1]",
        "m[2] == '' or string.sub(m[2], #m[2] - #ARGV[1] + 1) ~= ARGV[1]",
    ),
    "a claim takes another's fence for its own": (
        "-- Make this execution",
        "fence == attempt .. ':' .. ARGV[1]",
        "fence ~= '' and string.sub(fence, #fence - #ARGV[1] + 1) == ARGV[1]",
    ),
    "gaps are let through": ("", "if index > next_index then return { 'GAP', next_index } end", ""),
    "a lost stream is made again by a token": ("", TOKEN_XADD, "index .. '-0'"),
    "a lost stream is made again by an event": ("", EVENT_XADD, "id"),
    "append does not tell of the end": (
        "-- Append one or several",
        "if terminal(state) then return { 'DONE', state } end",
        "",
    ),
    "cancel goes on behind the end": ("-- End the request as cancelled", DONE_CHECK, ""),
    "expire goes on behind the end": ("-- End the request if its deadline", DONE_CHECK, ""),
    "renew goes on behind the end": ("-- Keep the lease", DONE_CHECK, ""),
    "release goes on behind the end": ("-- Clear the fence", DONE_CHECK, ""),
    "next is off by one": ("", "next_index = next_index + 1", "next_index = next_index + 2"),
    "an event's number forgets those before it": ("", "local number = events + 1", "local number = 1"),
    "an end counts no tokens": ("", "'completion_tokens', (position())", "'completion_tokens', 0"),
    "tokens do not clear the crashes": ("", ", 'crashes', '0')", ")"),
    "a finish is not remembered": ("", "fields.finished_by or ''", "''"),
    "poison is remembered as the dead one's finish": (
        "",
        "code = 'poison_request',",
        "code = 'p', finished_by = fence,",
    ),
    "the end keeps the fence": (
        "",
        ", 'fence', '')\n  redis.call('HDEL', request, 'lease_us'",
        ")\n  redis.call('HDEL', request, 'lease_us'",
    ),
    "one look is enough to take over": ("", "not suspect or now - suspect < tonumber(ARGV[7]) * 1000", "false"),
    "one look is enough to release": ("", SUSPECT_MARK, "suspect = suspect or 1"),
    "a renewed lease stays suspected": ("-- Keep the lease", "redis.call('HDEL', request, 'suspect_us')", ""),
    "an append leaves the lease suspected": (
        "-- Append one or several",
        "redis.call('HDEL', request, 'suspect_us')",
        "",
    ),
    "a released request keeps its writer": ("-- Clear the fence", "redis.call('HSET', request, 'fence', '')", ""),
    "a lost lease is no crash": ("-- Look at a lease", "(whole(m[5]) or 0) + 1", "whole(m[5]) or 0"),
    "a takeover is no crash": ("", "crashes = crashes + 1", ""),
    "poison is never told": ("", "if crashes >= tonumber(ARGV[6]) then", "if false then"),
    "another model goes on": ("", "m[5] and m[5] ~= ARGV[5]", "false"),
    "append goes on past the deadline": (
        "-- Append one or several",
        "if now > deadline then return { 'PAST' } end",
        "",
    ),
    "claim goes on past the deadline": (
        "-- Make this execution",
        "if now > deadline then return { 'PAST' } end",
        "",
    ),
    "expire comes early": ("", "if now <= deadline then", "if false then"),
    "expired is said behind a token": ("", "position() ~= '0' and 'incomplete' or 'expired'", "'expired'"),
    "times lose their digits": ("", "return string.format('%.0f', number)", "return tostring(number)"),
    "a hand-over recomputes nothing": ("", "(whole(counted[1]) or 0) + next_index - 1", "0"),
    "a repeated create starts over": ("", "return { 'ATTACHED', state }", ""),
    "another body attaches": ("", "if body ~= ARGV[1] then return { 'CONFLICT' } end", ""),
    "the end forgets a key's lifetime": ("", "redis.call('PEXPIREAT', stream, us(at_ms))", ""),
}


QUICK = {
    "append is not fenced",
    "gaps are let through",
    "a lost stream is made again by a token",
    "the end keeps the fence",
    "next is off by one",
}


@pytest.mark.parametrize(
    "mutant", [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in MUTANTS]
)
def test_the_model_notices(mutant: str, redis_server: RedisServer) -> None:
    only_in, old, new = MUTANTS[mutant]
    applied: Counter[str] = Counter()

    def alter(lua: str) -> str:
        if only_in in lua and old in lua:
            applied[mutant] += 1
            return lua.replace(old, new)
        return lua

    with redis_server.client() as client:
        with pytest.raises((AssertionError, ResponseError, ProtocolError, StreamError)):
            run_model(client, alter=alter, examples=200)
        client.flushall()
    assert applied, "the mutant's text is in no script any more: bring it up to date"
