"""The choices of one completion, each a request of its own: streamed interleaved, or whole."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from tokenrelay.gateway.http.problems import Problem
from tokenrelay.gateway.streams.event_stream import EventStream, Source, closing_error, stream_view
from tokenrelay.gateway.streams.positions import START
from tokenrelay.gateway.views.chat import (
    DONE,
    ChatEncoder,
    failure_error,
    shown_end,
    total_usage,
    usage_chunk,
    whole_completion,
)
from tokenrelay.gateway.views.sse import encode
from tokenrelay.shared.wire.answer import assemble

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tokenrelay.gateway.records.record import Record
    from tokenrelay.gateway.streams.attachments import Attachment
    from tokenrelay.gateway.streams.event_stream import Delivery
    from tokenrelay.gateway.views.chat import Api, UsageChunks
    from tokenrelay.gateway.views.logprobs import Echo
    from tokenrelay.shared.wire.entries import EntryId


def check_position(after: EntryId, choices: int) -> None:
    """Raises Problem 400 for a position in the stream of several choices, which would need one in each."""
    if choices > 1 and after != START:
        message = (
            "Last-Event-ID: a stream of several choices can't be resumed in the middle; leave it out (a repeat with "
            "the same Idempotency-Key gives the same choices), or resume each choice at /requests/ID/events"
        )
        raise Problem(400, message, "unsupported_parameter", "Last-Event-ID")


@dataclass(frozen=True, slots=True)
class Completion:
    """A completion of the choices, `n` for each prompt, in order. `record`: the first choice's. `echoes`: of each
    choice the prompt that is shown before it, if any."""

    record: Record
    api: Api
    n: int
    attachments: Sequence[Attachment]
    echoes: Sequence[Echo | None]

    def whole(self) -> dict[str, Any]:
        """The completion object, once all choices have an answer."""
        feeds = [attachment.feed for attachment in self.attachments]
        answers = [assemble(feed.request_id, feed.entries) for feed in feeds]
        return whole_completion(self.record, self.api, answers, self.echoes, self.n)

    def stream(self, usage_chunks: UsageChunks, after: EntryId, delivery: Delivery) -> EventStream:
        """Its chunks, after `after` where there is one choice. On an error, releases the attachments."""
        name = f"{self.api} {usage_chunks}"
        encoder = partial(ChatEncoder, self.record, self.api, usage_chunks)
        if len(self.attachments) == 1:
            return stream_view(self.attachments[0], name, partial(encoder, echo=self.echoes[0]), after, delivery)
        try:
            sources = [
                Source(attachment, attachment.feed.view(f"{name} {index}", partial(encoder, index, echo)))
                for index, (attachment, echo) in enumerate(zip(self.attachments, self.echoes, strict=True))
            ]
            return EventStream(sources, delivery, partial(self._closing, usage_chunks))
        except BaseException:
            for attachment in self.attachments:
                attachment.leave()
            raise

    def _closing(self, usage_chunks: UsageChunks, sources: Sequence[Source]) -> bytes:
        """The events behind those of all choices: the usage, or why one of them has no answer. An error comes last,
        since clients stop reading at it."""
        if error := closing_error(sources):
            return error
        ends = [(source.feed.record, source.feed.ended) for source in sources]
        failed = [failure_error(record, end) for record, end in ends if end is not None and not end.state.is_answer]
        if failed:
            return encode({"error": failed[0]}) + encode(DONE)
        if usage_chunks == "none":
            return encode(DONE)
        shown = [shown_end(record, end) for record, end in ends if end is not None]
        used = total_usage([end.usage for end in shown], self.n)
        return encode(usage_chunk(self.record, self.api, used)) + encode(DONE)
