"""The token-plane scripts of one request, called by name; and running them from altered sources."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

from redis.exceptions import NoScriptError, ResponseError

from tests.streams import REQUEST_ID, parsed
from tokenrelay.shared.redis.commands import Argument, Call
from tokenrelay.shared.store import requests
from tokenrelay.shared.store.scripts import script
from tokenrelay.shared.wire import keys

if TYPE_CHECKING:
    from collections.abc import Callable

    import redis

    from tokenrelay.shared.redis.batches import Pipeline
    from tokenrelay.shared.wire.entries import Entry

Reply = list[Any]
Tokens = tuple[tuple[str, int], ...]
LONG_MS = 600_000


def decoded(reply: Any) -> Any:
    """A reply with its bytes as text, lists in lists included."""
    if isinstance(reply, list):
        return [decoded(item) for item in reply]
    return reply.decode("utf-8") if isinstance(reply, bytes) else reply


def reply_word(reply: Any) -> str:
    """The first word of a script's reply. Raises an error reply."""
    if isinstance(reply, Exception):
        raise reply
    if isinstance(reply, int):
        return "OK"  # an append's: the next index alone
    word = reply[0]
    return word.decode() if isinstance(word, bytes) else str(word)


class TokenPlane:
    """One request's scripts. Replies are lists that begin with the script's word, append's number with OK; errors are
    raised."""

    def __init__(self, send: Callable[[Call], Any], request_id: str = REQUEST_ID) -> None:
        self._send = send
        self.request_id = request_id

    def call(self, name: str, *arguments: Argument) -> Reply:
        script_keys = (keys.request(self.request_id), keys.stream(self.request_id))
        reply = self._send(Call(script(name), script_keys, arguments))
        if isinstance(reply, Exception):
            raise reply
        answer: Reply = ["OK", reply] if isinstance(reply, int) else decoded(reply)
        return answer

    def create(
        self, body: str = "body", *, deadline_ms: int = LONG_MS, retention_ms: int = LONG_MS, metadata: str = ""
    ) -> Reply:
        return self.call("create", body, deadline_ms, retention_ms, "", metadata, "tokenrelay.weather.default", "{}")

    def claim(
        self,
        execution: str,
        *,
        lease_ms: int = LONG_MS,
        fingerprint: str = "f",
        max_crashes: int = 3,
        suspicion_ms: int = LONG_MS,
        prompt: tuple[int, ...] = (5, 6, 7),
    ) -> Reply:
        model = ("w-" + execution, "weather", fingerprint)
        bounds = (max_crashes, suspicion_ms)
        return self.call("claim", execution, lease_ms, *model, *bounds, 42, len(prompt), str(list(prompt)))

    def score(self, fence: str, logprobs: str) -> Reply:
        return self.call("score", fence, logprobs)

    def append(self, fence: str, index: int, *tokens: tuple[str, int], lease_ms: int = LONG_MS) -> Reply:
        return self.call("append", fence, index, lease_ms, *(item for token in tokens for item in token))

    def finish(
        self,
        fence: str,
        index: int,
        *tokens: tuple[str, int],
        state: str = "completed",
        text: str = "",
        code: str = "",
        message: str = "",
    ) -> Reply:
        flat = (item for token in tokens for item in token)
        return self.call("finish", fence, index, state, "stop", text, code, message, *flat)

    def cancel(self, cancelled_by: str = "caller") -> Reply:
        return self.call("cancel", cancelled_by)

    def expire(self) -> Reply:
        return self.call("expire")

    def renew(self, fence: str, *, lease_ms: int = LONG_MS) -> Reply:
        return self.call("renew", fence, lease_ms)

    def release(self, execution: str, *, crashed: bool = False) -> Reply:
        return self.call("release", execution, int(crashed))

    def suspect(self, *, suspicion_ms: int = LONG_MS) -> Reply:
        return self.call("suspect", suspicion_ms)


def through(pipeline: Pipeline) -> Callable[[Call], Any]:
    """Calls as the product makes them."""
    return lambda call: pipeline.run([call])[0]


def beside_others(send: Callable[[Call], Any]) -> Callable[[Call], Any]:
    """As `send`, but every append goes out joined between two of a request that isn't there."""

    def send_joined(call: Call) -> Any:
        if call.script.name != "append":
            return send(call)
        append = requests.Append(call.script, call.keys, call.args)
        absent = requests.append("absent", "1:x1", 1, [("a", 1)], LONG_MS)
        reply = send(requests.joined([absent, append, absent]))
        if isinstance(reply, Exception):
            return reply
        before, own, behind = reply
        assert before == behind == [b"LOST"]
        return own

    return send_joined


class AlteredScripts:
    """Calls scripts with sources changed by `alter`, to run mutants without touching the product."""

    def __init__(self, client: redis.Redis, alter: Callable[[str], str]) -> None:
        self._client = client
        self._alter = alter

    def __call__(self, call: Call) -> Any:
        lua = self._alter(call.script.source(modern=False))
        sha1 = hashlib.sha1(lua.encode(), usedforsecurity=False).hexdigest()
        arguments = ("EVALSHA", sha1, len(call.keys), *call.keys, *call.args)
        try:
            return self._client.execute_command(*arguments)  # type: ignore[no-untyped-call]
        except NoScriptError:
            self._client.script_load(lua)
            return self._client.execute_command(*arguments)  # type: ignore[no-untyped-call]
        except ResponseError as error:
            return error


def rows(client: redis.Redis, key: str) -> list[tuple[bytes, dict[bytes, bytes]]]:
    """A stream as it is."""
    found: Any = client.xrange(key)
    return list(found)


def hashed(client: redis.Redis, key: str) -> dict[bytes, bytes]:
    found: Any = client.hgetall(key)
    return dict(found)


def read_stream(client: redis.Redis, request_id: str = REQUEST_ID) -> list[Entry]:
    """All entries of a request's stream."""
    return [parsed(entry_id, fields) for entry_id, fields in rows(client, keys.stream(request_id))]
