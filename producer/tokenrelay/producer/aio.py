"""`client` and `generation` for asyncio. A client belongs to one event loop."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from functools import cached_property
from typing import TYPE_CHECKING, Any, overload

from tokenrelay.producer._core import endings
from tokenrelay.producer._core.drivers import AsyncDriver
from tokenrelay.producer._core.planning import plan_choices, plan_many, plan_request
from tokenrelay.producer._core.prompts import read_prompt
from tokenrelay.producer._core.shared_waits import finish
from tokenrelay.producer._core.submission import Submitter
from tokenrelay.producer.client import settings_of, urls_of
from tokenrelay.producer.generation import AnyModel, Handle
from tokenrelay.shared.redis.servers import aclose, connect_async, servers_of
from tokenrelay.shared.wire.answer import DeltaReader
from tokenrelay.shared.wire.entries import Ended, Token, Unknown

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable
    from types import TracebackType
    from typing import Self, Unpack

    import redis.asyncio
    from pydantic import BaseModel

    from tokenrelay.producer._core.endings import Status
    from tokenrelay.producer._core.prompts import PromptToken
    from tokenrelay.shared.answers.deltas import AssistantMessage, Delta
    from tokenrelay.shared.options import Options, Submission
    from tokenrelay.shared.settings import ProducerSettings
    from tokenrelay.shared.wire.answer import Answer
    from tokenrelay.shared.wire.entries import Entry, Event


class AsyncReadOnlyGeneration(Handle[AsyncDriver]):
    """As ReadOnlyGeneration."""

    def __aiter__(self) -> AsyncIterator[Token]:
        return self.tokens()

    async def tokens(self, after: int = 0) -> AsyncIterator[Token]:
        """As ReadOnlyGeneration.tokens."""
        async for entry in self.entries(after):
            if isinstance(entry, Token):
                yield entry
            elif isinstance(entry, Ended):
                await self._driver.run(endings.raise_unless_answered(self.request_id, entry))

    async def events(self) -> AsyncIterator[Event]:
        """As ReadOnlyGeneration.events."""
        async for entry in self.entries():
            if not isinstance(entry, Token):
                yield entry

    async def entries(self, after: int = 0) -> AsyncIterator[Entry]:
        """As ReadOnlyGeneration.entries."""
        follower = self._follower(after)
        while not follower.ended:
            for entry in await self._driver.run(follower.read()):
                self._note(entry)
                if not isinstance(entry, Unknown):
                    yield entry

    async def result(self, timeout_s: float | None = None) -> Answer:
        """As ReadOnlyGeneration.result. Cancelling the task that awaits it cancels no request."""
        return await self._driver.run(self._read_answer(timeout_s))

    @overload
    async def parsed(self, model: type[AnyModel], *, timeout_s: float | None = None) -> AnyModel: ...
    @overload
    async def parsed(self, model: None = None, *, timeout_s: float | None = None) -> Any: ...
    async def parsed(self, model: type[BaseModel] | None = None, *, timeout_s: float | None = None) -> Any:
        """As ReadOnlyGeneration.parsed."""
        return self._parse(await self.result(timeout_s), model)

    async def prompt(self) -> tuple[PromptToken, ...]:
        """As ReadOnlyGeneration.prompt."""
        return await self._driver.run(read_prompt(self.request_id))

    async def message(self, timeout_s: float | None = None) -> AssistantMessage:
        """As ReadOnlyGeneration.message."""
        return (await self.result(timeout_s)).said

    async def deltas(self, after: int = 0) -> AsyncIterator[Delta]:
        """As ReadOnlyGeneration.deltas."""
        reader = DeltaReader(self.request_id)
        async for entry in self.entries():
            deltas = reader.receive(entry)
            if entry.entry_id.token > after or isinstance(entry, Ended):
                for delta in deltas:
                    yield delta
            if isinstance(entry, Ended):
                await self._driver.run(endings.raise_unless_answered(self.request_id, entry))

    async def status(self) -> Status:
        """As ReadOnlyGeneration.status."""
        return await self._driver.run(endings.status(self.request_id))


class AsyncGeneration(AsyncReadOnlyGeneration):
    """As Generation."""

    _expires = True

    async def cancel(self) -> bool:
        """As Generation.cancel."""
        return await self._driver.run(endings.cancel(self.request_id))


class AsyncConsumer:
    """As Consumer, for asyncio. Readers that are woken at the same time share a connection, up to 32 of them.

    It belongs to the event loop that it's first used on. On another one (a second thread's, the next asyncio.run's) all
    that it and its handles do raises WrongEventLoop at once: make a client for each.

    >>> import asyncio
    >>> from tokenrelay.producer import AsyncConsumer
    >>> async def read_again():
    ...     async with AsyncConsumer() as consumer:
    ...         generation = await consumer.get(request_id)
    ...         return [token.text async for token in generation.tokens(after=4)]
    >>> asyncio.run(read_again())
    [' warm', '.']
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        streams_url: str | None = None,
        connection: redis.asyncio.Redis | None = None,
        streams_connection: redis.asyncio.Redis | None = None,
        settings: ProducerSettings | None = None,
    ) -> None:
        given = servers_of(connection, streams_connection)
        self._settings = settings_of(url, streams_url, given, settings)
        self._owns_connection = given is None
        found = given or connect_async(urls_of(url, streams_url, self._settings))
        self._driver = AsyncDriver(*found)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """As Consumer.close. Raises WrongEventLoop."""
        self._driver.check_loop()
        if self._owns_connection:
            await aclose(self._driver.servers)

    async def get(self, request_id: str) -> AsyncReadOnlyGeneration:
        """As Consumer.get."""
        await self._driver.run(endings.status(endings.check_id(request_id)))
        return AsyncReadOnlyGeneration(request_id, self._driver)


class AsyncProducer(AsyncConsumer):
    """As Producer, for asyncio.

    >>> import asyncio
    >>> from tokenrelay.producer import AsyncProducer
    >>> async def ask():
    ...     async with AsyncProducer() as producer:
    ...         generation = await producer.submit("What is the weather today?")
    ...         async for token in generation:
    ...             print(token.text, end="")
    ...         answer = await generation.result(timeout_s=60)
    ...         print(" ->", answer.finish_reason)
    >>> asyncio.run(ask())
    It is sunny and warm. -> stop
    """

    @cached_property
    def _submitter(self) -> Submitter:
        return Submitter(self._settings, self._driver.servers.planes)

    async def get(self, request_id: str) -> AsyncGeneration:
        """As Producer.get."""
        await self._driver.run(endings.status(endings.check_id(request_id)))
        return AsyncGeneration(request_id, self._driver)

    async def submit(self, prompt: str | None = None, **options: Unpack[Options]) -> AsyncGeneration:
        """As Producer.submit."""
        plan = plan_request({"prompt": prompt, **options}, self._settings)
        submitted = await self._driver.run(self._submitter.submit(plan))
        return AsyncGeneration(submitted.request_id, self._driver, plan.response_model)

    async def submit_many(self, items: Iterable[str | Submission], **options: Unpack[Options]) -> list[AsyncGeneration]:
        """As Producer.submit_many."""
        plans = plan_many(items, options, self._settings)
        if plans:
            await self._driver.run(self._submitter.submit_many(plans))
        return [AsyncGeneration(plan.request_id, self._driver, plan.response_model) for plan in plans]

    async def submit_choices(
        self, prompt: str | None = None, *, n: int, **options: Unpack[Options]
    ) -> list[AsyncGeneration]:
        """As Producer.submit_choices."""
        plans = plan_choices([{"prompt": prompt, **options}], n, self._settings)
        submitted = await self._driver.run(self._submitter.submit_choices(plans))
        return [AsyncGeneration(each.request_id, self._driver, each.plan.response_model) for each in submitted]

    @asynccontextmanager
    async def stream(self, prompt: str | None = None, **options: Unpack[Options]) -> AsyncIterator[AsyncGeneration]:
        """As Producer.stream. A task that is cancelled inside it cancels the request before it goes."""
        generation = await self.submit(prompt, **options)
        try:
            yield generation
        finally:
            await finish(asyncio.ensure_future(generation.cancel()))
