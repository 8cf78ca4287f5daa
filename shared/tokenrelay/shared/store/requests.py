"""The token plane: the calls of the scripts that read and write a request's own keys. Their replies: `replies`.

A fence is `attempt:execution ID`; whoever writes gives the one that its claim was granted.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from tokenrelay.shared.redis.calls import ScriptCall
from tokenrelay.shared.store import replies
from tokenrelay.shared.store.scripts import script
from tokenrelay.shared.wire import keys
from tokenrelay.shared.wire.entries import text

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from tokenrelay.shared.redis.commands import Argument, Command, Reply

    WrittenToken = tuple[str, int] | tuple[str, int, bytes]
    """A token's text and ID, and its log-probabilities as JSON where the request asks for them."""


_MAX_DIGITS: Final = 19


@dataclass(frozen=True, slots=True)
class NewRequest:
    """A request to be created. `body`: its JSON, `metadata`: the caller's, as JSON, empty where there is none."""

    request_id: str
    queue: str
    body: str
    body_sha256: str
    deadline_ms: int
    retention_ms: int
    wire: int = 1
    owner: str = ""
    metadata: str = ""


@dataclass(frozen=True, slots=True)
class Claimant:
    """Who claims requests, and by which rules. Of another fingerprint than the first attempt's, it is refused.

    `wire`: the highest version that it knows.
    """

    worker: str
    model: str
    fingerprint: str
    lease_ms: int
    max_crashes: int
    suspicion_ms: int
    wire: int = 1


class Prompt(NamedTuple):
    """What the first claim stores. `ids` and `texts`: JSON; `texts` is empty for a long prompt."""

    seed: int
    length: int
    ids: bytes | str
    texts: bytes | str = b""
    effective: str = ""
    """JSON, for a request of wire version 2."""
    marks: str = ""
    """JSON: special tokens that stay in the answer's text, vocabulary ID → text; empty where there are none."""


@dataclass(frozen=True, slots=True)
class TerminalEvent:
    """What the terminal event says, besides what Redis knows itself."""

    state: str
    finish_reason: str
    text: str = ""
    code: str = ""
    message: str = ""


def create(new: NewRequest) -> ScriptCall[replies.CreateReply]:
    """Write the request and its `queued` event; a repeat attaches to what is there."""
    settings = (new.deadline_ms, new.retention_ms, new.owner, new.metadata, new.queue)
    arguments = (new.body_sha256, *settings, new.body, new.wire)
    return ScriptCall(script("create"), keys.of_request(new.request_id), arguments, replies.CREATE)


def claim(request_id: str, execution_id: str, claimant: Claimant, prompt: Prompt) -> ScriptCall[replies.ClaimReply]:
    """Make the execution the request's only writer. A repeat is granted again."""
    arguments: tuple[Argument, ...] = (
        execution_id,
        claimant.lease_ms,
        claimant.worker,
        claimant.model,
        claimant.fingerprint,
        claimant.max_crashes,
        claimant.suspicion_ms,
        str(prompt.seed),
        prompt.length,
        prompt.ids,
        prompt.texts,
        claimant.wire,
        prompt.effective,
        prompt.marks,
    )
    return ScriptCall(script("claim"), keys.of_request(request_id), arguments, replies.CLAIM)


def score(request_id: str, fence: str, prompt_logprobs: bytes) -> ScriptCall[replies.ScoreReply]:
    """Store the log-probabilities of the prompt's tokens, as JSON. What an earlier attempt has stored stays."""
    return ScriptCall(script("score"), keys.of_request(request_id), (fence, prompt_logprobs), replies.SCORE)


class Append(ScriptCall["replies.AppendReply"]):
    """An append, which may be `joined` with others."""

    __slots__ = ()


def append(request_id: str, fence: str, first: int, tokens: Sequence[WrittenToken], lease_ms: int) -> Append:
    """Write tokens, the first of them at index `first`, and renew the lease. A repeat writes none twice.

    Raises UnicodeEncodeError for a text that isn't Unicode.
    """
    arguments: tuple[Argument, ...] = (fence, first, lease_ms, *_flat(tokens))
    return Append(script("append"), keys.of_request(request_id), arguments, replies.APPEND)


def joined(appends: Sequence[Append]) -> Append:
    """One call for several appends, which Redis takes half the time for. `parted` gives what each is to parse."""
    if len(appends) == 1:
        return appends[0]
    pairs: list[str] = []
    arguments: list[Argument] = []
    for append in appends:
        pairs += append.keys
        arguments.append(len(append.args))
        arguments += append.args
    return Append(script("append"), tuple(pairs), tuple(arguments), replies.APPEND)


def parted(reply: Reply, count: int) -> Sequence[Reply]:
    """The replies to as many appends as were joined. An error of the whole call is that of each."""
    return reply if count > 1 and isinstance(reply, list) and len(reply) == count else [reply] * count


def finish(
    request_id: str, fence: str, first: int, tokens: Sequence[WrittenToken], end: TerminalEvent
) -> ScriptCall[replies.FinishReply]:
    """Write the last tokens, as `append`, and the terminal event. A repeat by the same fence is answered the same."""
    said = (text.encode() for text in (end.text, end.code, end.message))
    arguments: tuple[Argument, ...] = (fence, first, end.state, end.finish_reason, *said, *_flat(tokens))
    return ScriptCall(script("finish"), keys.of_request(request_id), arguments, replies.FINISH)


def cancel(request_id: str, cancelled_by: str) -> ScriptCall[replies.CancelReply]:
    """End the request as cancelled, whoever owns it."""
    return ScriptCall(script("cancel"), keys.of_request(request_id), (cancelled_by,), replies.CANCEL)


def expire(request_id: str) -> ScriptCall[replies.ExpireReply]:
    """End the request if its deadline is past."""
    return ScriptCall(script("expire"), keys.of_request(request_id), (), replies.EXPIRE)


def fail(request_id: str, detail: str) -> ScriptCall[replies.FailReply]:
    """End a request whose keys hold what no worker can continue from, as far as they allow."""
    return ScriptCall(script("fail"), keys.of_request(request_id), ("unreadable_request", detail), replies.FAIL)


def renew(request_id: str, fence: str, lease_ms: int) -> ScriptCall[replies.RenewReply]:
    """Keep the lease."""
    return ScriptCall(script("renew"), keys.of_request(request_id), (fence, lease_ms), replies.RENEW)


def release(request_id: str, execution_id: str, *, crashed: bool) -> ScriptCall[replies.ReleaseReply]:
    """Give the request up. `crashed`: its worker died, which is counted."""
    return ScriptCall(script("release"), keys.of_request(request_id), (execution_id, int(crashed)), replies.RELEASE)


def suspect(request_id: str, suspicion_ms: int) -> ScriptCall[replies.SuspectReply]:
    """Check a lease that may have expired; the second check, `suspicion_ms` after the first, releases it."""
    return ScriptCall(script("suspect"), keys.of_request(request_id), (suspicion_ms,), replies.SUSPECT)


def wake(request_ids: Iterable[str]) -> Command:
    """Tell readers which streams have grown."""
    return ("PUBLISH", keys.WAKE, " ".join(request_ids))


def announce_readers(request_id: str, gateway: str, until_us: int, lifetime_ms: int) -> tuple[Command, Command]:
    """The commands that announce a gateway's readers until `until_us`, by the token plane's clock."""
    key = keys.attached(request_id)
    return ("HSET", key, gateway, until_us), ("PEXPIRE", key, lifetime_ms)


def withdraw_readers(request_id: str, gateway: str) -> Command:
    """The command that withdraws a gateway's announcement."""
    return ("HDEL", keys.attached(request_id), gateway)


def readers_look(request_id: str) -> Command:
    """The command that reads which gateways have readers of the request; `has_readers` reads its reply."""
    return ("HGETALL", keys.attached(request_id))


def has_readers(reply: Mapping[Any, Any], now_us: int) -> bool:
    """Whether a gateway's announcement still holds. A malformed one doesn't."""
    return any(_until_us(value) > now_us for value in reply.values())


def _until_us(value: object) -> int:
    digits = text(value)
    return int(digits) if digits.isdecimal() and len(digits) <= _MAX_DIGITS else 0


def _flat(tokens: Sequence[WrittenToken]) -> list[Argument]:
    flat: list[Argument] = []
    for token in tokens:
        flat += (token[0].encode(), token[1] if len(token) == 2 else b"%d %b" % token[1:])
    return flat
