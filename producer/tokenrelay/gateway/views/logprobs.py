"""Log-probabilities in OpenAI's shapes: of chat completions, responses and completions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from tokenrelay.shared.wire.entries import Token, TokenLogprob


def text_logprobs(tokens: Iterable[Token]) -> list[dict[str, Any]]:
    """Of a response's text; empty where they weren't asked for."""
    return [
        {**_item(token.logprobs[0]), "top_logprobs": [_item(each) for each in token.logprobs[1:]]}
        for token in tokens
        if token.logprobs
    ]


def chat_logprobs(tokens: Iterable[Token]) -> dict[str, Any] | None:
    """Of a chat completion's choice; None where they weren't asked for."""
    content = text_logprobs(tokens)
    return {"content": content, "refusal": None} if content else None


def completion_logprobs(tokens: Iterable[Token], begin: int) -> dict[str, Any] | None:
    """Of a completion's choice; None where they weren't asked for. `begin`: the characters before these tokens.

    A token whose text is held back has the place at which the next text is released.
    """
    found: dict[str, list[Any]] = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
    for token in tokens:
        if not token.logprobs:
            return None
        drawn, *likeliest = token.logprobs
        found["tokens"].append(drawn.text)
        found["token_logprobs"].append(drawn.logprob)
        found["top_logprobs"].append(_by_text(drawn, likeliest))
        found["text_offset"].append(begin)
        begin += len(token.text)
    return found if found["tokens"] else None


def _by_text(drawn: TokenLogprob, likeliest: Sequence[TokenLogprob]) -> dict[str, float]:
    """The likeliest first, the drawn one in its place; of several with one text the drawn one, else the likeliest."""
    found: dict[str, float] = {}
    for each in sorted((drawn, *likeliest), key=lambda each: each.logprob, reverse=True):
        found.setdefault(each.text, each.logprob)
    return {**found, drawn.text: drawn.logprob}


def _item(each: TokenLogprob) -> dict[str, Any]:
    return {"token": each.text, "logprob": each.logprob, "bytes": list(each.bytes)}
