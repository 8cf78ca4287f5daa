"""Log-probabilities in OpenAI's shapes: of chat completions, responses and completions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from tokenrelay.producer._core.prompts import PromptToken
    from tokenrelay.shared.options import Submission
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


def completion_logprobs(tokens: Iterable[Token | PromptToken], begin: int) -> dict[str, list[Any]] | None:
    """Of a completion's choice; None where they weren't asked for. `begin`: the characters before these tokens.

    A token whose text is held back has the place at which the next text is released.
    """
    found: dict[str, list[Any]] = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
    for token in tokens:
        if not token.logprobs:
            return None
        drawn, *likeliest = token.logprobs
        found["tokens"].append(_name(drawn))
        found["token_logprobs"].append(drawn.logprob)
        found["top_logprobs"].append(_by_name(drawn, likeliest))
        found["text_offset"].append(begin)
        begin += len(token.text)
    return found if found["tokens"] else None


def _by_name(drawn: TokenLogprob, likeliest: Sequence[TokenLogprob]) -> dict[str, float]:
    """The likeliest first, the drawn one in its place; of several with one name the drawn one, else the likeliest."""
    found: dict[str, float] = {}
    for each in sorted((drawn, *likeliest), key=lambda each: each.logprob, reverse=True):
        found.setdefault(_name(each), each.logprob)
    return {**found, _name(drawn): drawn.logprob}


@dataclass(frozen=True, slots=True)
class Echo:
    """A prompt that is shown before its answer."""

    text: str
    logprobs: dict[str, list[Any]] | None
    """Of a completion's choice; those of the first token are null."""

    @classmethod
    def of(cls, options: Submission, prompt: Sequence[PromptToken]) -> Echo:
        """The prompt of a request with these options, as its worker read it."""
        text = options["prompt"] or "".join(token.text for token in prompt)
        if options["prompt_logprobs"] is None or not prompt:
            return cls(text, None)
        first, *rest = prompt
        found: dict[str, list[Any]] = {
            "tokens": [first.text],
            "token_logprobs": [None],
            "top_logprobs": [None],
            "text_offset": [0],
        }
        return cls(text, _joined(found, completion_logprobs(rest, len(first.text))))

    def before(self, logprobs: dict[str, list[Any]] | None) -> dict[str, list[Any]] | None:
        """The prompt's and the answer's."""
        return logprobs if self.logprobs is None else _joined(self.logprobs, logprobs)


def _joined(first: dict[str, list[Any]], then: dict[str, list[Any]] | None) -> dict[str, list[Any]]:
    return first if then is None else {name: [*values, *then[name]] for name, values in first.items()}


def _name(each: TokenLogprob) -> str:
    """The token's text. Where that's a part of a character, its bytes as OpenAI writes them: alternatives are told
    apart by their names."""
    try:
        return each.bytes.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in each.bytes)


def _item(each: TokenLogprob) -> dict[str, Any]:
    return {"token": each.text, "logprob": each.logprob, "bytes": list(each.bytes)}
