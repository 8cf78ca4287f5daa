"""The gateway object that all routes share: settings, tenants, Redis driver and hub; submit, look up and attach."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Final

from tokenrelay.gateway.core.tenants import Tenants, submit_as
from tokenrelay.gateway.http.problems import model_not_found
from tokenrelay.gateway.http.tasks import Background, insistent_timeout
from tokenrelay.gateway.records.record import ANNOTATION, Annotation, Record, new_record, read_record, with_annotation
from tokenrelay.gateway.records.served_models import ServedModels
from tokenrelay.gateway.streams.attachments import Attachment, Attachments
from tokenrelay.gateway.streams.counters import GatewayCounters
from tokenrelay.gateway.streams.hub import Hub
from tokenrelay.gateway.streams.positions import START
from tokenrelay.producer._core.drivers import AsyncDriver
from tokenrelay.producer._core.submission import Submitter
from tokenrelay.shared import options
from tokenrelay.shared.errors import RedisUnusable, RequestError, StreamExpired
from tokenrelay.shared.redis.servers import aclose, connect_async

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping, Sequence

    from tokenrelay.gateway.core.tenants import Tenant
    from tokenrelay.gateway.streams.feed import Feed
    from tokenrelay.producer._core.steps import Result, Steps
    from tokenrelay.producer._core.submission import Submitted
    from tokenrelay.shared.settings import GatewaySettings
    from tokenrelay.shared.wire.entries import EntryId

_REDIS_TIMEOUT_S: Final = 10.0
"""Time limit for Redis before a client gets 503. redis-py's own retries take minutes against a server that accepts
connections and never replies."""


class TimeoutDriver(AsyncDriver):
    """A driver with a time limit for each operation."""

    async def run(self, steps: Steps[Result]) -> Result:
        """As AsyncDriver.run. Also raises RedisUnusable after `_REDIS_TIMEOUT_S`."""
        try:
            with insistent_timeout(_REDIS_TIMEOUT_S):
                return await super().run(steps)
        except TimeoutError:
            raise RedisUnusable(f"Redis at {self.servers.address} didn't reply within {_REDIS_TIMEOUT_S:g} s") from None


def _annotated(submission: Mapping[str, Any], annotation: Annotation | None) -> Mapping[str, Any]:
    """The submission with the annotation in its metadata. Raises RequestError."""
    metadata = submission.get("metadata", {})
    if not isinstance(metadata, dict):
        return submission
    if ANNOTATION in metadata:
        raise RequestError(f"metadata.{ANNOTATION}: is reserved for the gateway; use another name", field="metadata")
    return {**submission, "metadata": with_annotation(metadata, annotation or Annotation())}


class Gateway:
    """One gateway process. Enter `running` in the event loop that serves requests."""

    def __init__(self, settings: GatewaySettings, *, demo: bool = False) -> None:
        """Raises SettingsError."""
        self.settings = settings
        self.demo = demo
        self.tenants = Tenants(settings)
        self.counters = GatewayCounters()
        self.driver = TimeoutDriver(*connect_async(settings.urls))
        self.hub = Hub(self.driver, self.counters)
        self.attachments = Attachments(self.hub, self.driver, settings.disconnect_grace_s)
        self.models = ServedModels(self.driver, settings.model)
        self.background = Background()
        self._submitter = Submitter(settings, self.driver.servers.planes)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Run the background tasks while the block is active."""
        self.hub.start(self.background)
        self.background.run_forever("readers", self.attachments.run)
        try:
            yield
        finally:
            await self.attachments.close()
            await self.background.stop()
            await aclose(self.driver.servers)

    async def submit(
        self,
        submissions: Sequence[Mapping[str, Any]],
        tenant: Tenant,
        annotation: Annotation | None = None,
        n: int = 1,
    ) -> list[Record]:
        """Queue `n` requests for each of a call's submissions, or none. Raises RequestError, QueueFull, Problem 429."""
        annotated = [_annotated(each, annotation) for each in submissions]
        await self._check_workers(annotated[0])
        submitted = await self.driver.run(submit_as(tenant, annotated, n, self._submitter))
        records = [await self._record_of(each, tenant, annotation) for each in submitted]
        for record in records:
            self.counters.count_submitted(record)
        return records

    async def _record_of(self, submitted: Submitted, tenant: Tenant, annotation: Annotation | None) -> Record:
        """The submitted request's record, read from Redis only if the request already existed."""
        if submitted.deadline_us is not None:
            return new_record(submitted.plan, submitted.deadline_us)
        try:
            return await self.record(submitted.request_id, tenant)
        except Exception:
            if annotation and annotation.fleeting:
                # The client gets the error, and no ID to resume with.
                self.attachments.start_grace(submitted.request_id)
            raise

    async def _check_workers(self, submission: Mapping[str, Any]) -> None:
        """Raises RequestError for an option that all live workers of the model lack."""
        asked = options.asked(submission)
        model = submission.get("model", self.settings.model)
        lacking = await self.models.lacking(model, asked) if asked and isinstance(model, str) else set()
        if lacking:
            name = min(lacking)
            message = f"{name}: no live worker of the model {ascii(model)[:140]} supports it; leave it out"
            raise RequestError(message, field=name, code="unsupported_parameter")

    async def check_model(self, name: str) -> None:
        """Raises Problem 404 for a model that no worker serves or has served since this gateway started."""
        if not await self.models.is_known(name):
            raise model_not_found(name, await self.models.served())

    async def record(self, request_id: str, tenant: Tenant) -> Record:
        """Read one of the tenant's requests. Raises RequestNotFound."""
        return await self.driver.run(read_record(request_id, tenant.owner))

    async def attach_all(self, records: Sequence[Record], after: EntryId = START) -> list[Attachment]:
        """`attach` the client that the requests were submitted for to each of them. Raises as `attach`."""
        attachments: list[Attachment] = []
        failed = False
        try:
            for record in records:
                attachments.append(await self.attach(record, after, fresh=True))
        except Exception:
            failed = True
            raise
        finally:
            if len(attachments) < len(records):
                for attachment in attachments:
                    attachment.leave(disconnected=failed)
        return attachments

    async def attach(self, record: Record, after: EntryId = START, *, fresh: bool = False) -> Attachment:
        """Attach a reader to the request's feed, loaded up to now. The caller must call `leave` on it.

        `after`: the entry to resume after. `fresh`: the request was submitted for this client, so a failure leaves it
        without readers. Raises StreamExpired, RangeGone if `after` isn't in the stream, ProtocolError, RedisUnusable.
        """
        attachment = await self.peek(record, after, fresh=fresh)
        attachment.follow()
        return attachment

    async def peek(self, record: Record, after: EntryId = START, *, fresh: bool = False) -> Attachment:
        """As `attach`, but not counted as a reader, so leaving never cancels the request."""
        if not record.has_stream:
            raise StreamExpired(f"the stream of request {record.request_id} is gone", request_id=record.request_id)
        attachment = self.attachments.attach(record)
        try:
            await self._load(attachment.feed, after, ended=record.ended is not None)
        except Exception:
            attachment.leave(disconnected=fresh)
            raise
        except BaseException:
            attachment.leave()
            raise
        return attachment

    async def _load(self, feed: Feed, after: EntryId, *, ended: bool) -> None:
        try:
            async with asyncio.timeout(_REDIS_TIMEOUT_S):
                await feed.loaded.wait()
                if feed.last_id is not None and (feed.last_id < after or (ended and not feed.over)):
                    await self.hub.catch_up(feed)  # the client may have seen more at another gateway
        except TimeoutError:
            raise RedisUnusable(f"Redis doesn't reply; request {feed.request_id} is unchanged") from None
        if feed.error is not None:
            raise feed.error
        feed.check_position(after)
