"""A request's prompt as a worker read it: its tokens, their text, and their log-probabilities where they were asked."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from tokenrelay.producer._core.steps import ask
from tokenrelay.shared.errors import ProtocolError, RequestNotFound, unreadable
from tokenrelay.shared.store.record import Field, RequestRecord, look
from tokenrelay.shared.wire.entries import parse_logprobs

if TYPE_CHECKING:
    from tokenrelay.producer._core.steps import Steps
    from tokenrelay.shared.wire.entries import TokenLogprob

_FIELDS: Final = (Field.STATE, Field.PROMPT_IDS, Field.PROMPT_TEXTS, Field.PROMPT_LOGPROBS)


@dataclass(frozen=True, slots=True)
class PromptToken:
    """One token of a prompt."""

    token_id: int
    text: str
    """What it says. Of an echoed prompt, what it releases: together they are the prompt's text."""
    logprobs: tuple[TokenLogprob, ...] = ()
    """The token's own, then those of the likeliest tokens, falling. Empty for the first token, and where they weren't
    asked for."""

    def as_json(self) -> dict[str, Any]:
        """Its fields; without log-probabilities, none of them."""
        logprobs = {"logprobs": [each.as_json() for each in self.logprobs]} if self.logprobs else {}
        return {"token_id": self.token_id, "text": self.text, **logprobs}


def read_prompt(request_id: str) -> Steps[tuple[PromptToken, ...]]:
    """The prompt's tokens; none before a worker has claimed the request. Raises RequestNotFound, ProtocolError."""
    (held,) = yield from ask([look(request_id, _FIELDS)])
    record = RequestRecord(_FIELDS, held)
    if not record.exists:
        raise RequestNotFound(f"no request {request_id}: it never was, or its retention is over", request_id=request_id)
    try:
        return tuple(_tokens(record))
    except (ProtocolError, ValueError, TypeError) as error:
        raise unreadable(request_id, ProtocolError(f"its prompt can't be read: {error}")) from None


def _tokens(record: RequestRecord) -> list[PromptToken]:
    """Raises ProtocolError, ValueError and TypeError for what isn't a prompt's."""
    ids = json.loads(record.prompt_ids or b"[]")
    given = json.loads(record.prompt_logprobs or b"[]") or [None] * len(ids)
    logprobs = [() if items is None else parse_logprobs(items) for items in given]
    texts = json.loads(record.prompt_texts or b"[]") or [own[0].text if own else "" for own in logprobs]
    return [PromptToken(*each) for each in zip(ids, texts, logprobs, strict=True)]
