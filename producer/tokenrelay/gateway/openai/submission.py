"""Submits an OpenAI body and waits for its answer; reports errors and ignored fields by the caller's field names."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import Depends, Request
from starlette.responses import Response

from tokenrelay.gateway.core.dependencies import Durable, GatewayDep, IdempotencyKey, TenantDep
from tokenrelay.gateway.http.problems import Problem, json_response
from tokenrelay.gateway.openai.bodies import ignored
from tokenrelay.gateway.openai.bodies.request_bodies import Common
from tokenrelay.gateway.records.record import Annotation, Record
from tokenrelay.gateway.streams.attachments import Attachment
from tokenrelay.gateway.streams.event_stream import CLIENT_LEFT, raise_if_failed, wait_or_disconnect
from tokenrelay.gateway.views.logprobs import Echo
from tokenrelay.producer._core.prompts import read_prompt
from tokenrelay.shared.errors import RequestError, TokenRelayError


@dataclass(frozen=True, slots=True)
class Caller:
    """Who sends an OpenAI body, and what they send besides: a FastAPI dependency."""

    request: Request
    gateway: GatewayDep
    tenant: TenantDep
    key: IdempotencyKey
    durable: Durable = False

    @property
    def fleeting(self) -> bool:
        """Whether what they submit is cancelled when all readers disconnect."""
        return not (self.key or self.durable)

    async def submit(self, body: Common, annotation: Annotation, n: int = 1) -> list[Record]:
        """Queue the body's requests, `n` for each prompt. Raises as Gateway.submit; Problem 400 for an unknown field,
        404 for a model that isn't served."""
        if body.unknown and self.gateway.settings.unknown_fields == "refuse":
            name = ignored.listed(body.unknown[:1])
            raise Problem(400, f"{name}: unknown field", "unknown_parameter", name)
        await self.gateway.check_model(body.model)
        key = {"idempotency_key": self.key} if self.key else {}
        try:
            submissions = [{**options, **key} for options in body.submissions()]
            records = await self.gateway.submit(submissions, self.tenant, annotation, n)
        except RequestError as error:
            raise body.with_callers_field(error) from None
        ignored.report(records[0].request_id, body.ignored)
        return records

    async def echoes(self, attachments: Sequence[Attachment]) -> list[Echo | None] | None:
        """For each request the prompt to show before its answer, once that begins; None where it isn't echoed.

        None where the client disconnected before; that and an error release the attachments. Raises RequestNotFound,
        ProtocolError, RedisUnusable.
        """
        echoes: list[Echo | None] = []
        try:
            for attachment in attachments:
                if not attachment.feed.record.options.get("echo", False):
                    echoes.append(None)
                elif await wait_or_disconnect(attachment.feed.has_output, self.request.receive):
                    record = attachment.feed.record
                    prompt = await self.gateway.driver.run(read_prompt(record.request_id))
                    echoes.append(Echo.of(record.options, prompt))
                else:
                    return None
        finally:
            if len(echoes) < len(attachments):
                for attachment in attachments:
                    attachment.leave(disconnected=True)
        return echoes

    async def wait(
        self, attachments: Sequence[Attachment], whole: Callable[[], dict[str, Any]], headers: dict[str, str]
    ) -> Response:
        """The whole answer, once the requests have ended. Raises Problem if one of them has none, and StreamError: what
        still runs of the others has no reader then."""
        unread = False
        try:
            for attachment in attachments:
                if not await wait_or_disconnect(attachment.feed.finished, self.request.receive):
                    unread = True
                    return Response(status_code=CLIENT_LEFT)
                raise_if_failed(attachment.feed)
            return json_response(whole(), headers=headers)
        except (Problem, TokenRelayError):
            unread = True
            raise
        finally:
            for attachment in attachments:
                attachment.leave(disconnected=unread)


CallerDep = Annotated[Caller, Depends()]


def answer_headers(record: Record, body: Common) -> dict[str, str]:
    """Headers of every response to the body."""
    return {"X-Request-Id": record.request_id, **ignored.header(body.ignored)}
