"""The errors that tokenrelay raises on purpose, in one tree. The worker adds ModelError (an EngineError) and
TrainingError, which stand beside what raises them.

    TokenRelayError
    ├── RequestError            the caller's fault: names the field and the limit; nothing was enqueued
    │   ├── IdempotencyConflict the idempotency key belongs to a request with another body
    │   └── RequestNotFound     no request of that ID (never there, or its retention is over)
    ├── QueueFull               the queue's depth limit is reached: try again after `retry_after_s`
    ├── RedisUnusable           Redis can't be reached or isn't fit: says what to change
    ├── SettingsError           a setting is unknown or out of bounds: names it
    ├── WrongEventLoop          an asyncio client is used on a second event loop
    ├── StreamError             reading a request's stream
    │   ├── StreamGap           a token index is missing
    │   ├── StreamExpired       the stream is gone: its retention is over
    │   ├── StreamChanged       Redis lost writes in a failover and they came out differently
    │   └── StreamTimeout       the caller's own timeout expired; the generation continues
    ├── GenerationError         how the request ended, where that isn't an answer; carries the partial text
    │   ├── GenerationFailed
    │   ├── GenerationCancelled
    │   └── GenerationExpired
    ├── EngineError             the engine is dying: the process hands over and exits; no request fails by it
    └── ProtocolError           an entry that may not follow what came before, or can't be read

Each carries `request_id`, None where no request is concerned.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tokenrelay.shared.wire.answer import Answer


class TokenRelayError(Exception):
    """The root: catch it to catch everything that tokenrelay raises on purpose."""

    def __init__(self, message: str, *, request_id: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.request_id = request_id


class RequestError(TokenRelayError):
    """The request can't be accepted as it is; `field` and `limit` say where and why, `code` is for programs."""

    def __init__(
        self,
        message: str,
        *,
        field: str | None = None,
        limit: object = None,
        code: str = "invalid_request",
        request_id: str | None = None,
    ) -> None:
        super().__init__(message, request_id=request_id)
        self.field = field
        self.limit = limit
        self.code = code


class IdempotencyConflict(RequestError):
    """The idempotency key was used before with another body."""


class RequestNotFound(RequestError):
    """No request of that ID exists: it never did, or its retention is over."""


class QueueFull(TokenRelayError):
    """The queue holds `depth` requests and takes `limit`; try again after `retry_after_s` seconds."""

    def __init__(self, message: str, *, queue: str, depth: int, limit: int, retry_after_s: float) -> None:
        super().__init__(message)
        self.queue = queue
        self.depth = depth
        self.limit = limit
        self.retry_after_s = retry_after_s


class RedisUnusable(TokenRelayError):
    """Redis can't be reached or isn't fit for a durable queue; the message says what to do."""


class SettingsError(TokenRelayError):
    """A setting is unknown or out of its bounds; the message names it."""


class WrongEventLoop(TokenRelayError):
    """An asyncio client is used on another event loop than the one it was first used on."""


class StreamError(TokenRelayError):
    """A request's stream can't be read on."""


class StreamGap(StreamError):
    """A token index is missing from the stream."""


class StreamExpired(StreamError):
    """The stream is gone: its retention is over, or somebody deleted it."""


class StreamChanged(StreamError):
    """What was read before is no longer what Redis holds (writes lost in a failover)."""


class StreamTimeout(StreamError):
    """The caller's timeout expired before the end; the generation continues."""


class GenerationError(TokenRelayError):
    """The request ended without a full answer. `answer` holds how, with the text and tokens that there are."""

    def __init__(self, message: str, *, answer: Answer) -> None:
        super().__init__(message, request_id=answer.request_id)
        self.answer = answer

    @property
    def text(self) -> str:
        """The partial text: every `text` field of the stream, in order."""
        return self.answer.text


class GenerationFailed(GenerationError):
    """The request failed; `code` says how, for programs."""

    @property
    def code(self) -> str | None:
        return self.answer.code


class GenerationCancelled(GenerationError):
    """Somebody cancelled the request; `answer.cancelled_by` says who."""


class GenerationExpired(GenerationError):
    """The deadline passed before the first token."""


class EngineError(TokenRelayError):
    """The engine is dying. Never a reason to end a request: hand everything over and exit."""


class ProtocolError(TokenRelayError):
    """An entry or a request's hash can't be read, or an entry may not follow the entries before it."""


def unreadable(request_id: str, why: ProtocolError) -> ProtocolError:
    """The error for a request whose hash can't be read."""
    return ProtocolError(f"the hash of request {request_id} can't be read: {why.message}", request_id=request_id)
