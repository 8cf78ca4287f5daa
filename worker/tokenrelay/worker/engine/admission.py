"""How many tokens a request may have, so that it fits into an engine by itself."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Overflow:
    """A prompt that leaves no room for one token of an answer."""

    prompt_tokens: int
    context_tokens: int


def admit(prompt_tokens: int, emitted_tokens: int, max_new_tokens: int | None, context_tokens: int) -> int | Overflow:
    """The request's token budget over all attempts, cut to what the context holds; None asks for all of that.

    A request that outgrows the KV cache would kill the engine and all its neighbours, so its budget is cut first. A
    request that a worker with a larger context continued beyond this context gets its emitted tokens as budget: it ends
    as `length`.
    """
    room = context_tokens - prompt_tokens
    if room < 1:
        return Overflow(prompt_tokens, context_tokens)
    fitting = max(room, emitted_tokens)
    return fitting if max_new_tokens is None else min(max_new_tokens, fitting)
