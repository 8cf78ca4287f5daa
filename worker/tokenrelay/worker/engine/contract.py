"""What the worker and an engine say to each other: token IDs in, token IDs out.

Knows no Redis, no RQ, no text and no torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

from tokenrelay.shared.errors import EngineError, RequestError

if TYPE_CHECKING:
    from collections.abc import Callable

    from tokenrelay.worker.sampling.params import SamplingParams

FinishReason = Literal["stop", "length"]


class ModelError(EngineError):
    """The model can't be loaded, or doesn't fit the device; the message says which and why."""


@dataclass(frozen=True, slots=True)
class EngineRequest:
    """One attempt at a request.

    `engine_id` is the attempt's fence: it must never be used twice, or two attempts' tokens mix. The engine
    prefills `prompt_ids` + `emitted_ids` and goes on at token `len(emitted_ids) + 1`.
    """

    engine_id: str
    prompt_ids: tuple[int, ...]
    emitted_ids: tuple[int, ...]  # by earlier attempts
    max_new_tokens: int  # over all attempts, cut by `admit`
    sampling: SamplingParams
    ignore_eos: bool = False  # an end-of-sequence token is then a token like any other, and is emitted


@dataclass(frozen=True, slots=True)
class RequestFailure:
    """Why the engine gave one request up. Its neighbours go on."""

    code: str
    message: str


INVALID_LOGITS = RequestFailure(
    "invalid_logits", "the model's scores for the next token hold NaN or infinity, so there is none to draw"
)


@dataclass(frozen=True, slots=True)
class EngineOutput:
    """The tokens of one request since its last output, and how it ended if it did.

    The end-of-sequence token that ends a request isn't among them: it is the finish reason `stop`. A request with an
    `error` has left the engine; the tokens before the error are valid.
    """

    engine_id: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason | None
    error: RequestFailure | None = None

    @property
    def is_last(self) -> bool:
        """Whether the request has left the engine."""
        return self.finish_reason is not None or self.error is not None


@dataclass(frozen=True, slots=True)
class EngineOutputs:
    """New tokens and ends of some requests, at most one output per request."""

    outputs: tuple[EngineOutput, ...]


@dataclass(frozen=True, slots=True)
class EngineDied:
    """The engine's last message. Its requests aren't at fault: they belong to other workers."""

    error: BaseException
    """What it died of; an EngineError unless the engine's own code is broken."""


if TYPE_CHECKING:
    EngineMessage = EngineOutputs | EngineDied
    Deliver = Callable[[EngineMessage], object]
    """Takes a message from any thread of the engine. Never blocks and never raises, as a queue's `put`."""


class Engine(Protocol):
    """Generates for many requests at once, in a thread of its own.

    `prepare`, then `start`, then requests. `add` and `cancel` may be called from different threads.
    """

    slots: int  # requests that generate at the same time; more of them wait inside
    context_tokens: int  # prompt and output of one request together; final after `prepare`

    @property
    def progress(self) -> int:
        """Grows while the engine computes, also within a prefill of minutes. An engine that holds requests and makes no
        progress is hung."""

    def prepare(self) -> None:
        """Allocate the memory, warm up and check the model. Raises ModelError where the model can't be served."""

    def start(self, deliver: Deliver) -> None:
        """Deliver from now on: the outputs of a request in order, and the engine's death once, after all outputs."""

    def stop(self) -> None:
        """End the engine's thread; requests that are still in it get no more outputs, and no death is delivered."""

    def add(self, request: EngineRequest) -> None:
        """Begin a request that `admit` let in. Raises EngineError if the engine is dead."""

    def cancel(self, engine_id: str) -> None:
        """Free the request's slot; a no-op for an unknown one. An output that is on its way may still be delivered: the
        receiver drops outputs of requests that it no longer knows."""


def admit(prompt_tokens: int, emitted_tokens: int, max_new_tokens: int | None, context_tokens: int) -> int:
    """The request's total token budget, cut to what an empty cache and the model's context hold; None asks for that.

    A request that outgrows the cache would kill the engine and all its neighbours, so it is cut before it gets in.
    Raises RequestError (`prompt_too_long`) when the prompt leaves no room for one token. A request that another
    worker, with a larger context, already took past this one's gets its emitted tokens as budget: it ends as `length`.
    """
    room = context_tokens - prompt_tokens
    if room < 1:
        raise RequestError(
            # Clients tell an overflow by its words: "prompt is too long", or "this model's maximum context length is".
            f"the prompt is too long: this model's maximum context length is {context_tokens} tokens, "
            f"and the prompt has {prompt_tokens}; one at least must be left for the answer",
            field="prompt",
            limit=context_tokens - 1,
            code="prompt_too_long",
        )
    fitting = max(room, emitted_tokens)
    return fitting if max_new_tokens is None else min(max_new_tokens, fitting)
