"""One request as read from Redis in one round trip: its hash, its first entry and its last. What any gateway needs to
know of it later, the annotation, is stored in its metadata."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final

from tokenrelay.producer._core.endings import check_id
from tokenrelay.producer._core.planning import dump_metadata
from tokenrelay.producer._core.steps import ask
from tokenrelay.shared import effective, options
from tokenrelay.shared.errors import ProtocolError, RequestError, RequestNotFound, unreadable
from tokenrelay.shared.glance import glance
from tokenrelay.shared.redis.commands import server_time, server_time_us
from tokenrelay.shared.request_fields import MAX_METADATA_BYTES
from tokenrelay.shared.store import request_view
from tokenrelay.shared.store.record import Field, RequestRecord, look
from tokenrelay.shared.store.request_view import RequestView
from tokenrelay.shared.wire import keys
from tokenrelay.shared.wire.entries import AnyEntry, Ended, State, parse_entry, text
from tokenrelay.shared.wire.keys import Plane

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tokenrelay.producer._core.planning import Plan
    from tokenrelay.producer._core.steps import Steps
    from tokenrelay.shared.options import StoredRequest

ANNOTATION: Final = "tokenrelay.gateway"
"""The metadata field reserved for the gateway."""
_FIELDS: Final = (
    *request_view.FIELDS,
    Field.WIRE,
    Field.ATTEMPT,
    Field.QUEUE,
    Field.OWNER,
    Field.CANCELLED_BY,
    Field.BODY,
    Field.EFFECTIVE,
)


@dataclass(frozen=True, slots=True)
class Annotation:
    """How a request was submitted. `fleeting`: not durable, so cancelled when all readers disconnect."""

    api: str = ""
    fleeting: bool = False
    background: bool = False
    store: bool = False
    instructions: bool = False
    """Whether the first message is the Responses API's `instructions`."""
    previous_response_id: str = ""
    format_name: str = ""
    """What the Responses API's `text.format` calls its schema."""
    prompt_only: bool = False
    """Whether the echoed prompt is shown without the answer, which has one token: OpenAI's `max_tokens: 0`."""
    unlimited: bool = False
    """Whether the caller gave no token limit; the stored limit is then the operator's."""


def with_annotation(metadata: Mapping[str, Any], annotation: Annotation) -> dict[str, Any]:
    """The metadata to store: the caller's, and our annotation."""
    default = Annotation()
    given = {name: value for name, value in asdict(annotation).items() if value != getattr(default, name)}
    return {**metadata, ANNOTATION: given} if given else dict(metadata)


def mark_unlimited(plan: Plan) -> Plan:
    """Set the annotation's `unlimited`. After planning: the idempotency hash covers the metadata without it."""
    metadata = plan.request["metadata"]
    annotation = metadata.get(ANNOTATION)
    if not isinstance(annotation, dict):
        return plan
    updated = {**metadata, ANNOTATION: {**annotation, "unlimited": True}}
    if len(dump_metadata(updated).encode()) > MAX_METADATA_BYTES:
        return plan  # no room beside the caller's metadata
    return replace(plan, request={**plan.request, "metadata": updated})


def split_annotation(metadata: Mapping[str, Any]) -> tuple[Annotation, dict[str, Any]]:
    """The annotation and the caller's metadata. A malformed annotation reads as the default one."""
    own = {name: value for name, value in metadata.items() if name != ANNOTATION}
    stored = metadata.get(ANNOTATION)
    if not isinstance(stored, dict):
        return Annotation(), own
    known = {name: value for name, value in stored.items() if name in Annotation.__slots__}
    return Annotation(**known), own


@dataclass(frozen=True, slots=True)
class Record:
    """A snapshot of one request. Times are microseconds since the epoch, on Redis's clock."""

    request_id: str
    state: State
    tokens: int
    attempts: int
    queue: str
    owner: str
    deadline_us: int
    created_us: int | None
    """None if the stream's first entry is gone."""
    ended: Ended | None
    cancelled_by: str | None
    options: StoredRequest = field(repr=False)
    annotation: Annotation
    metadata: Mapping[str, Any]
    """The caller's, without our mark."""

    has_stream: bool

    @property
    def model(self) -> str:
        return self.options["model"]

    @property
    def choice(self) -> int | None:
        """Which of its call's requests it is, from 0; None for the only one."""
        return self.options.get("choice", 0) if self.options.get("choices", 1) > 1 else None

    def status(self) -> dict[str, Any]:
        """The JSON of GET /requests/{id}."""
        ended = self.ended
        failed = ended is not None and ended.code is not None
        return {
            "request_id": self.request_id,
            "model": self.model,
            "state": self.state,
            "tokens": self.tokens,
            "attempts": self.attempts,
            "queue": self.queue,
            "created_us": self.created_us,
            "deadline_us": self.deadline_us,
            "finished_us": ended.at_us if ended else None,
            "finish_reason": ended.finish_reason if ended else None,
            "cancelled_by": self.cancelled_by,
            "error": {"code": ended.code, "message": ended.message} if ended and failed else None,
            "metadata": dict(self.metadata),
        }


def read_record(request_id: str, owner: str | None) -> Steps[Record]:
    """Read the request if `owner` owns it; an owner of None reads any request.

    Raises RequestNotFound, also for another owner's, so that IDs can't be probed; ProtocolError for an unreadable hash
    or entry.
    """
    try:
        check_id(request_id)
    except RequestError as error:
        raise RequestNotFound(error.message, field="request_id", request_id=request_id) from None
    stream = keys.stream(request_id)
    held, first, last, time = yield from ask(
        [
            look(request_id, _FIELDS),
            ("XRANGE", stream, "-", "+", "COUNT", 1),
            ("XREVRANGE", stream, "+", "-", "COUNT", 1),
            server_time(Plane.TOKEN),
        ]
    )
    found = RequestRecord(_FIELDS, held)
    if not found.exists or (owner is not None and found.owner != owner):
        raise RequestNotFound(f"no request {request_id}: unknown ID, or past its retention", request_id=request_id)
    try:
        return _record(request_id, found, _entry(first), _entry(last), server_time_us(time))
    except (ProtocolError, RequestError) as error:
        raise unreadable(request_id, ProtocolError(error.message)) from None


def new_record(plan: Plan, deadline_us: int) -> Record:
    """The record of a request that was just created, as `read_record` would return it."""
    annotation, metadata = split_annotation(plan.request["metadata"])
    return Record(
        request_id=plan.request_id,
        state=State.QUEUED,
        tokens=0,
        attempts=0,
        queue=plan.queue,
        owner=plan.owner,
        deadline_us=deadline_us,
        created_us=deadline_us - plan.deadline_ms * 1000,
        ended=None,
        cancelled_by=None,
        options=options.filled(plan.request),
        annotation=annotation,
        metadata=metadata,
        has_stream=True,
    )


def _entry(raw: list[Any]) -> AnyEntry | None:
    return parse_entry(*raw[0]) if raw else None


def _options(found: RequestRecord) -> StoredRequest:
    """What was asked, as far as it's shown. Raises RequestError.

    Of a request that asks for more than version 1 could, with what its first claim decided, where that can be read.
    """
    body = text(found.body or "")
    if found.wire == "1":
        return options.load(body)
    shown = glance(body)
    with suppress(RequestError):
        return effective.obeying(shown, effective.parse(found.effective))
    return shown


def _record(
    request_id: str, found: RequestRecord, first: AnyEntry | None, last: AnyEntry | None, now_us: int
) -> Record:
    view = RequestView.of(request_id, found, now_us)
    submission = _options(found)
    annotation, metadata = split_annotation(submission["metadata"])
    return Record(
        request_id=request_id,
        state=view.shown_state,
        tokens=view.tokens,
        attempts=found.attempts,
        queue=found.queue,
        owner=found.owner,
        deadline_us=view.deadline_us,
        created_us=first.at_us if first is not None and first.kind == "queued" else None,
        ended=last if isinstance(last, Ended) else None,
        cancelled_by=found.cancelled_by,
        options=submission,
        annotation=annotation,
        metadata=metadata,
        has_stream=first is not None,
    )
