"""Handles of a request: tokens and events as they are written, answer, status. `aio` has them for asyncio."""

from __future__ import annotations

import inspect
import sys
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Final, Generic, TypeVar, overload

from tokenrelay.producer._core import endings
from tokenrelay.producer._core.drivers import AsyncDriver, Driver
from tokenrelay.producer._core.following import Follower, Reading
from tokenrelay.producer._core.parsing import parse
from tokenrelay.producer._core.prompts import read_prompt
from tokenrelay.shared.errors import RequestError
from tokenrelay.shared.wire.answer import Answer, Assembler, DeltaReader
from tokenrelay.shared.wire.entries import Ended, Token, Unknown

if TYPE_CHECKING:
    from collections.abc import Iterator

    import redis
    import redis.asyncio
    from pydantic import BaseModel

    from tokenrelay.producer._core.endings import Status
    from tokenrelay.producer._core.prompts import PromptToken
    from tokenrelay.producer._core.steps import Steps
    from tokenrelay.shared.answers.deltas import AssistantMessage, Delta
    from tokenrelay.shared.wire.entries import AnyEntry, Entry, Event

AnyModel = TypeVar("AnyModel", bound="BaseModel")
AnyDriver = TypeVar("AnyDriver", bound=Driver | AsyncDriver)
BLOCK_S: Final = 2.0
"""The longest blocking read. After it a reader checks deadline, timeout and workers."""
_OURS: Final = str(Path(__file__).parent)


class NoWorkerWarning(UserWarning):
    """A queued request's model is served by no live worker; it waits until one comes or its deadline passes."""


def warn_no_worker(request_id: str, queue: str) -> None:
    """Issue a NoWorkerWarning that points at the line which waits, outside this package."""
    model = queue.removeprefix("tokenrelay.").rpartition(".")[0].replace("--", "/")
    warnings.warn(
        f"request {request_id} waits in {queue}, but no live worker serves it; "
        f"start one that serves the model {model!r}, or check the name",
        NoWorkerWarning,
        stacklevel=_caller_level(),
    )


def _caller_level() -> int:
    frame, level = inspect.currentframe(), 0
    while frame is not None and frame.f_code.co_filename.startswith(_OURS):
        frame, level = frame.f_back, level + 1
    return max(level, 1)


class Handle(Generic[AnyDriver]):
    """What sync and asyncio handles share: how a request is read, what was read, its answer once known."""

    _expires: ClassVar[bool] = False

    def __init__(self, request_id: str, driver: AnyDriver, response_model: type[BaseModel] | None = None) -> None:
        self._request_id = request_id
        self._response_model = response_model
        self._driver = driver
        self._reading = Reading(self._expires, _block_s(driver.servers.token), self._warn)
        self._answer: Answer | None = None
        self._texts: dict[int, str] = {}
        self._warned = False

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.request_id}>"

    @property
    def request_id(self) -> str:
        return self._request_id

    @property
    def text(self) -> str:
        """The text that was read through this handle so far."""
        return "".join(self._texts[index] for index in sorted(self._texts))

    def _follower(self, after: int = 0) -> Follower:
        """A new follower behind token `after`. Raises RequestError for a negative index."""
        if not isinstance(after, int):
            raise RequestError(f"after: {after!r} is no whole number; give a token's index, such as 3", field="after")
        if after < 0:
            raise RequestError(f"after: {after}; tokens count from 1, so 0 is the least", field="after", limit=0)
        return Follower(self.request_id, self._reading, after=after)

    def _note(self, entry: AnyEntry) -> None:
        if isinstance(entry, Token):
            self._texts[entry.index] = entry.text
        elif isinstance(entry, Ended):
            self._texts[sys.maxsize] = entry.text

    def _read_answer(self, timeout_s: float | None) -> Steps[Answer]:
        """Read up to the request's end, once. Raises as `result`."""
        if self._answer is None:
            follower, assembler = self._follower(), Assembler(self.request_id)
            until = None if timeout_s is None else time.monotonic() + timeout_s
            while not follower.ended:
                for entry in (yield from follower.read(until)):
                    self._note(entry)
                    assembler.receive(entry)
            self._answer = assembler.answer()
        return endings.answer_or_raise(self._answer)

    def _parse(self, answer: Answer, model: type[BaseModel] | None) -> Any:
        return parse(answer, model or self._response_model)

    def _warn(self, queue: str) -> None:
        if not self._warned:
            self._warned = True
            warn_no_worker(self.request_id, queue)


class ReadOnlyGeneration(Handle[Driver]):
    """A Consumer's handle of a request.

    Every iteration reads independently, from the token that it starts behind. Any number may run at once, in any
    threads. Breaking out of one leaves the request running.
    """

    def __iter__(self) -> Iterator[Token]:
        return self.tokens()

    def tokens(self, after: int = 0) -> Iterator[Token]:
        """Iterate over the tokens from index `after` + 1, each as soon as it is written, until the request ends.

        Raises GenerationFailed, GenerationCancelled, GenerationExpired after the last token if it ended so;
        StreamExpired, StreamGap, StreamChanged if the stream can't be read further; RedisUnusable.
        """
        for entry in self.entries(after):
            if isinstance(entry, Token):
                yield entry
            elif isinstance(entry, Ended):
                self._driver.run(endings.raise_unless_answered(self.request_id, entry))

    def events(self) -> Iterator[Event]:
        """Iterate over `Queued`, `Started`, `Migrated` events, and `Ended` last. Doesn't raise for how it ended."""
        for entry in self.entries():
            if not isinstance(entry, Token):
                yield entry

    def entries(self, after: int = 0) -> Iterator[Entry]:
        """Iterate over tokens and events behind token `after`, in stream order. Doesn't raise for how it ended.

        Events that a later version adds are skipped.
        """
        follower = self._follower(after)
        while not follower.ended:
            for entry in self._driver.run(follower.read()):
                self._note(entry)
                if not isinstance(entry, Unknown):
                    yield entry

    def result(self, timeout_s: float | None = None) -> Answer:
        """Wait for the whole answer of a request that completes or ends incomplete.

        Raises GenerationFailed, GenerationCancelled, GenerationExpired; StreamTimeout after `timeout_s` seconds, which
        doesn't cancel the request; StreamExpired, StreamGap, StreamChanged, RedisUnusable. A Redis that hangs may delay
        it beyond `timeout_s`: a round trip times out after 5 s and is tried four times.
        """
        return self._driver.run(self._read_answer(timeout_s))

    @overload
    def parsed(self, model: type[AnyModel], *, timeout_s: float | None = None) -> AnyModel: ...
    @overload
    def parsed(self, model: None = None, *, timeout_s: float | None = None) -> Any: ...
    def parsed(self, model: type[BaseModel] | None = None, *, timeout_s: float | None = None) -> Any:
        """Wait for the answer, as an instance of `model` or of the model that was given as `response_format`; without
        one, as what its JSON says.

        Raises GenerationError where the answer isn't that, such as one that its token limit has cut off; otherwise as
        `result`.
        """
        return self._parse(self.result(timeout_s), model)

    def prompt(self) -> tuple[PromptToken, ...]:
        """The prompt's tokens, once a worker has claimed the request; before, none.

        From the first token of the answer on they have the log-probabilities that `prompt_logprobs` asks for. Raises
        RequestNotFound once its retention is over, RedisUnusable.
        """
        return self._driver.run(read_prompt(self.request_id))

    def message(self, timeout_s: float | None = None) -> AssistantMessage:
        """Wait for the answer as a message: content, reasoning and tool calls. Raises as `result`."""
        return self.result(timeout_s).said

    def deltas(self, after: int = 0) -> Iterator[Delta]:
        """Iterate over what the tokens from index `after` + 1 add to the message: content, reasoning, tool calls with
        their arguments in parts. The same at every reader. Raises as `tokens`."""
        reader = DeltaReader(self.request_id)
        for entry in self.entries():
            deltas = reader.receive(entry)
            if entry.entry_id.token > after or isinstance(entry, Ended):
                yield from deltas
            if isinstance(entry, Ended):
                self._driver.run(endings.raise_unless_answered(self.request_id, entry))

    def status(self) -> Status:
        """The request's status. Raises RequestNotFound once its retention is over, RedisUnusable."""
        return self._driver.run(endings.status(self.request_id))


class Generation(ReadOnlyGeneration):
    """A Producer's handle of a request. It can cancel, and reading expires the request past its deadline."""

    _expires = True

    def cancel(self) -> bool:
        """Cancel the request, queued or running. False if it had ended before or is gone. Raises RedisUnusable."""
        return self._driver.run(endings.cancel(self.request_id))


def _block_s(client: redis.Redis | redis.asyncio.Redis) -> float:
    """The longest blocking read in seconds: half of the client's own socket timeout, which would interrupt it."""
    timeout_s = client.connection_pool.connection_kwargs.get("socket_timeout")
    return min(BLOCK_S, timeout_s / 2) if timeout_s else BLOCK_S
