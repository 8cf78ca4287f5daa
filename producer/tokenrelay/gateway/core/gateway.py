"""What all routes share: settings, Redis, the hub, the keys; and what routes of every kind do with them."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Final

from tokenrelay.gateway.http.problems import Problem
from tokenrelay.gateway.http.tasks import Background
from tokenrelay.gateway.records.marks import NAME, Mark, marked
from tokenrelay.gateway.records.models import Models
from tokenrelay.gateway.records.record import Record, new_record, recorded
from tokenrelay.gateway.streams.attachments import Attachment, Attachments
from tokenrelay.gateway.streams.figures import Figures
from tokenrelay.gateway.streams.hub import Hub
from tokenrelay.gateway.streams.resuming import START
from tokenrelay.gateway.tenancy.quota import submit_as
from tokenrelay.gateway.tenancy.tenants import Tenants
from tokenrelay.producer._core.fitness import AsyncFitness
from tokenrelay.producer._core.rounds import AsyncDriver
from tokenrelay.producer._core.submission import Submitter
from tokenrelay.shared.errors import RedisUnusable, RequestError, StreamExpired
from tokenrelay.shared.redis.connections import address, connect_async

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    from tokenrelay.gateway.core.demo import Demo
    from tokenrelay.gateway.streams.feed import Feed
    from tokenrelay.gateway.tenancy.tenants import Tenant
    from tokenrelay.producer._core.rounds import Result, Steps
    from tokenrelay.producer._core.submission import Submitted
    from tokenrelay.shared.settings import GatewaySettings
    from tokenrelay.shared.wire.entries import EntryId

_ANSWER_S: Final = 10.0
"""How long a client waits for Redis before it's told to come back. redis-py's own retries take minutes where a Redis
takes connections and then says nothing."""


class PromptDriver(AsyncDriver):
    """A driver that gives up on a Redis which doesn't answer."""

    async def run(self, steps: Steps[Result]) -> Result:
        """As AsyncDriver.run. Raises RedisUnusable after `_ANSWER_S`, too."""
        try:
            async with asyncio.timeout(_ANSWER_S):
                return await super().run(steps)
        except TimeoutError:
            raise RedisUnusable(f"Redis at {address(self.redis)} hasn't answered in {_ANSWER_S:g} s") from None


class Gateway:
    """One gateway process. `running` must be entered in the event loop that serves."""

    def __init__(self, settings: GatewaySettings, demo: Demo | None = None) -> None:
        """Raises SettingsError."""
        self.settings = settings
        self.demo = demo
        self.tenants = Tenants(settings)
        self.figures = Figures()
        self.driver = PromptDriver(connect_async(settings.redis_url.get_secret_value()))
        self.hub = Hub(self.driver, self.figures)
        self.attachments = Attachments(self.hub, self.driver, settings.disconnect_grace_s)
        self.models = Models(self.driver, settings.model)
        self.background = Background()
        self._fitness = AsyncFitness(self.driver)
        self._submitter = Submitter(settings)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Follow streams for as long as the block lasts."""
        self.hub.start(self.background)
        self.background.keep("readers", self.attachments.run)
        try:
            yield
        finally:
            await self.attachments.close()
            await self.background.stop()
            await self.driver.redis.aclose()

    async def run(self, steps: Steps[Result]) -> Result:
        """What the steps end with. Raises RedisUnusable, and whatever the steps raise."""
        return await self.driver.run(steps)

    async def submit(self, submission: Mapping[str, Any], tenant: Tenant, mark: Mark | None = None) -> Record:
        """Queue a request, durably, as the tenant's. Raises RequestError, QueueFull, Problem 429."""
        await self._fitness.check()
        metadata = submission.get("metadata", {})
        if isinstance(metadata, dict):
            if NAME in metadata:
                raise RequestError(f"metadata.{NAME}: is the gateway's own; use another name", field="metadata")
            submission = {**submission, "metadata": marked(metadata, mark or Mark())}
        submitted = await self.run(submit_as(tenant, submission, self._submitter))
        record = await self._record_of(submitted, tenant, mark)
        self.figures.submitted(record)
        return record

    async def _record_of(self, submitted: Submitted, tenant: Tenant, mark: Mark | None) -> Record:
        """What a read would find. Only a request that was there before is read: what was just created is known."""
        if submitted.deadline_us is not None:
            return new_record(submitted.plan, submitted.deadline_us)
        try:
            return await self.record(submitted.request_id, tenant)
        except Exception:
            if mark and mark.fleeting:
                # Its client is told the error, and has no ID to come back with.
                self.attachments.abandon(submitted.request_id)
            raise

    async def check_model(self, name: str) -> None:
        """Raises Problem 404 for a model that nobody serves nor has lately: its requests would wait for nothing."""
        if not await self.models.is_known(name):
            live = ", ".join(await self.models.served()) or "none"
            told = f"no live worker serves the model {ascii(name)[:140]}; served are: {live}"
            raise Problem(404, told, "model_not_found", "model")

    async def record(self, request_id: str, tenant: Tenant) -> Record:
        """One of the tenant's requests. Raises RequestNotFound."""
        return await self.run(recorded(request_id, tenant.owner))

    async def attach(self, record: Record, after: EntryId = START, *, fresh: bool = False) -> Attachment:
        """A reader of the request's feed, which has all up to now at least; the caller must have it `leave`.

        `after`: where the client goes on. `fresh`: the request was submitted for this client, so that nobody reads it
        where this fails. Raises StreamExpired, RangeGone for a place that isn't in the stream, ProtocolError,
        RedisUnusable.
        """
        attachment = await self.look(record, after, fresh=fresh)
        attachment.follow()
        return attachment

    async def look(self, record: Record, after: EntryId = START, *, fresh: bool = False) -> Attachment:
        """As `attach`, for who doesn't stay to read: what becomes of the request doesn't depend on it."""
        if not record.has_stream:
            raise StreamExpired(f"the stream of request {record.request_id} is gone", request_id=record.request_id)
        attachment = self.attachments.attach(record)
        try:
            await self._load(attachment.feed, after, ended=record.ended is not None)
        except Exception:
            attachment.leave(departed=fresh)
            raise
        except BaseException:
            attachment.leave()
            raise
        return attachment

    async def _load(self, feed: Feed, after: EntryId, *, ended: bool) -> None:
        try:
            async with asyncio.timeout(_ANSWER_S):
                await feed.loaded.wait()
                if feed.last_id is not None and (feed.last_id < after or (ended and not feed.over)):
                    await self.hub.catch_up(feed)  # the client may have seen more at another gateway
        except TimeoutError:
            raise RedisUnusable(f"Redis doesn't answer; request {feed.request_id} is as it was") from None
        if feed.error is not None:
            raise feed.error
        feed.check_position(after)
