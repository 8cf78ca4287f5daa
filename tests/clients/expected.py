"""What the clients must get: the driver's own answers to their questions, asked without any client package."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import httpx

from tests.clients.session import DAYS, DAYS_QUESTION, JSON_QUESTIONS, QUESTIONS, SEED
from tests.clients.system import ENDLESS, KEY, MODEL

if TYPE_CHECKING:
    from collections.abc import Sequence

TOP: Final = 2
"""The alternatives that "logprobs" scenarios ask for."""
_TYPES: Final = {"place": "string", "weather": "string", "degrees": "integer", "rain": "boolean"}
_DAYS: Final = {"type": "array", "items": {"enum": ["sun", "rain", "snow"]}, "minItems": DAYS, "maxItems": DAYS}
_TIMEOUT_S: Final = 90.0


@dataclass(frozen=True, slots=True)
class Expected:
    """`texts` and `objects`, which are JSON texts, are the answers over the turns; `days` is that of a "killed" one.

    `logprobs` are the tokens of the first text, each with its log-probability.
    """

    texts: Sequence[str] = ()
    objects: Sequence[str] = ()
    days: str = ""
    logprobs: Sequence[tuple[str, float]] = ()


def expected_answers(url: str) -> Expected:
    """Ask the gateway at `url`."""
    weather = _schema({name: {"type": kind} for name, kind in _TYPES.items()})
    days = {"model": ENDLESS, "seed": SEED, "temperature": 1, "response_format": _schema({"days": _DAYS})}
    scored = _choice(url, [{"role": "user", "content": QUESTIONS[0]}], temperature=0, logprobs=True)
    return Expected(
        texts=_over_turns(url, QUESTIONS),
        objects=_over_turns(url, JSON_QUESTIONS, response_format=weather),
        days=_choice(url, [{"role": "user", "content": DAYS_QUESTION}], **days)["message"]["content"],
        logprobs=[(each["token"], each["logprob"]) for each in scored["logprobs"]["content"]],
    )


def _schema(properties: dict[str, Any]) -> dict[str, Any]:
    schema = {"type": "object", "properties": properties, "required": [*properties], "additionalProperties": False}
    return {"type": "json_schema", "json_schema": {"name": "answer", "strict": True, "schema": schema}}


def _over_turns(url: str, questions: Sequence[str], **options: Any) -> list[str]:
    messages: list[dict[str, str]] = []
    for question in questions:
        messages.append({"role": "user", "content": question})
        answer = _choice(url, messages, temperature=0, **options)["message"]["content"]
        messages.append({"role": "assistant", "content": answer})
    return [message["content"] for message in messages if message["role"] == "assistant"]


def _choice(url: str, messages: Sequence[dict[str, str]], **options: Any) -> dict[str, Any]:
    answer = httpx.post(
        f"{url}/v1/chat/completions",
        json={"model": MODEL, "messages": messages, **options},
        headers={"Authorization": f"Bearer {KEY}"},
        timeout=_TIMEOUT_S,
    )
    found: dict[str, Any] = answer.raise_for_status().json()["choices"][0]
    return found


def days_of(expected: Expected) -> list[str]:
    """The days of a "killed" scenario."""
    found: list[str] = json.loads(expected.days)["days"]
    return found
