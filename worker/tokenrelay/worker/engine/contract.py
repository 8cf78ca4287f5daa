"""The contract between the worker and an engine: token IDs in, token IDs out.

Knows no Redis, no RQ, no text and no torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

from tokenrelay.shared.errors import EngineError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from transformers import PreTrainedTokenizerBase

    from tokenrelay.worker.sampling.logprobs import Logprobs
    from tokenrelay.worker.sampling.params import SamplingParams
    from tokenrelay.worker.sampling.row import TokenMask

FinishReason = Literal["stop", "length"]


class ModelError(EngineError):
    """The model can't be loaded, or doesn't fit the device; the message says which and why."""


@dataclass(frozen=True, slots=True)
class EngineRequest:
    """One attempt at a request.

    `engine_id` is the attempt's fence: it must never be used twice, or two attempts' tokens mix. The engine
    prefills `prompt_ids` + `emitted_ids` and continues with token `len(emitted_ids) + 1`.
    """

    engine_id: str
    prompt_ids: tuple[int, ...]
    emitted_ids: tuple[int, ...]  # by earlier attempts
    max_new_tokens: int  # over all attempts; at most what `admit` gives
    sampling: SamplingParams
    ignore_eos: bool = False  # an end-of-sequence token is then a token like any other, and is emitted
    kept_end_ids: frozenset[int] = frozenset()  # such a token is emitted where it ends the request
    top_logprobs: int | None = None  # report log-probabilities, of so many likeliest tokens too; None: none
    prompt_logprobs: int | None = None  # the same of the prompt's tokens
    token_mask: TokenMask | None = None  # the tokens that may follow, as of a grammar
    shares_prompt: bool = False  # other requests have the same prompt: prefill it once for all, if you can


@dataclass(frozen=True, slots=True)
class RequestFailure:
    """Why the engine failed one request. The others continue."""

    code: str
    message: str


INVALID_LOGITS = RequestFailure(
    "invalid_logits", "the model's scores for the next token hold NaN or infinity, so there is none to draw"
)
NO_TOKEN_LEFT = RequestFailure(
    "no_token_left", "bad_words and min_tokens exclude every token of the model, so there is none to draw"
)
GRAMMAR_DEAD_END = RequestFailure(
    "grammar_dead_end", "no token of the model may follow in the grammar, bad_words and min_tokens considered"
)


@dataclass(frozen=True, slots=True)
class EngineOutput:
    """The tokens of one request since its last output, and how it ended if it did.

    The token that ends a request isn't among them, unless it's one of its `kept_end_ids`: it is the finish reason
    `stop`. A request with an `error` has left the engine; the tokens before the error are valid.
    """

    engine_id: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason | None
    error: RequestFailure | None = None
    logprobs: tuple[Logprobs, ...] = ()
    """One for each token, where the request asks for them."""
    prompt_logprobs: tuple[Logprobs, ...] | None = None
    """One for each token of the prompt but the first: in the first output of a request that asks for them."""

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


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What an engine offers for its model."""

    slots: int
    """Requests that generate at the same time; further ones wait inside."""
    context_tokens: int
    """Prompt and answer of one request together."""
    vocabulary: int
    """Token IDs are below this."""
    options: frozenset[str]
    """Options of a request that affect its tokens and that the engine supports, by name."""
    device: str
    dtype: str
    """The number format of its arithmetic. Engines with different formats don't continue each other's requests."""


@dataclass(frozen=True, slots=True)
class CacheUse:
    """How full a KV cache is: the tokens for which it has room, and the share of it that requests have."""

    capacity_tokens: int
    used_ratio: float


class Engine(Protocol):
    """Generates for many requests at once, in a thread of its own.

    `prepare`, then `start`, then requests. `add` and `cancel` may be called from different threads.
    """

    @property
    def capabilities(self) -> Capabilities:
        """Final after `prepare`."""

    @property
    def progress(self) -> int:
        """Grows while the engine computes, also within a prefill of minutes. An engine that holds requests and makes no
        progress is hung."""

    def prepare(self) -> None:
        """Allocate the memory, warm up and check the model. Raises ModelError where the model can't be served."""

    def start(self, deliver: Deliver) -> None:
        """Deliver from now on: the outputs of a request in order, and the engine's death once, after all outputs; at
        once where it died since `prepare`."""

    def stop(self) -> None:
        """End the engine's thread; requests that are still in it get no more outputs, and no death is delivered."""

    def add(self, request: EngineRequest) -> None:
        """Begin a request that fits: see `admit`. Raises EngineError if the engine is dead."""

    def cancel(self, engine_id: str) -> None:
        """Free the request's slot; a no-op for an unknown one. An output that is on its way may still be delivered: the
        receiver drops outputs of requests that it no longer knows."""

    def cache_use(self) -> CacheUse | None:
        """How full the KV cache is, for any thread; None where the engine can't tell."""


@dataclass(frozen=True, slots=True)
class LoadedEngine:
    """An engine before `prepare`, and the facts about its model that serving needs."""

    engine: Engine
    tokenizer: PreTrainedTokenizerBase
    fingerprint: str
    """Equal for workers that may continue each other's requests."""
    defaults: Mapping[str, Any]
    """The model's own defaults for sampling options that a request omits."""
    eos_token_ids: frozenset[int]
