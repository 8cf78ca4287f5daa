"""What the first claim of a wire version 2 request decides, and every later one obeys: docs/wire.md, `effective`."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Final, cast

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from typing_extensions import TypedDict

from tokenrelay.shared.errors import RequestError
from tokenrelay.shared.options import MODELS_OWN, filled
from tokenrelay.shared.request_fields import MinP, RepetitionPenalty, Temperature, TopK, TopP  # noqa: TC001  pydantic reads them

if TYPE_CHECKING:
    from tokenrelay.shared.options import StoredRequest, Submission


class Grammar(TypedDict):
    """The library that compiled a request's grammar."""

    library: str
    version: str


class Effective(TypedDict):
    """The stored decisions. All members are always there: an unknown one is another release's."""

    __pydantic_config__ = ConfigDict(extra="forbid", strict=True)  # type: ignore[misc]

    budget: Annotated[int, Field(ge=0)]
    """Tokens of the answer, over all attempts."""
    temperature: Temperature
    top_k: TopK
    top_p: TopP
    min_p: MinP
    repetition_penalty: RepetitionPenalty
    draw: int
    """The version of the draw."""
    tool_parser: str | None
    reasoning_parser: str | None
    grammar: Grammar | None


_ADAPTER: Final = TypeAdapter(Effective)


def decide(
    chosen: Submission, budget: int, draw: int, grammar: Grammar | None = None, tool_parser: str | None = None
) -> Effective:
    """What a claim would store of a request whose every option is filled in."""
    sampling = {name: value for name, value in chosen.items() if name in MODELS_OWN}
    rest = {"draw": draw, "tool_parser": tool_parser, "reasoning_parser": None, "grammar": grammar}
    return cast("Effective", {"budget": budget, **sampling, **rest})


def dump(effective: Effective) -> str:
    """As the hash holds it."""
    return json.dumps(effective, sort_keys=True, separators=(",", ":"), allow_nan=False)


def parse(raw: str | bytes) -> Effective:
    """What a hash holds. Raises RequestError: what's in Redis needn't be ours."""
    try:
        return _ADAPTER.validate_json(raw)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(["effective", *map(str, first["loc"][:2])])
        raise RequestError(f"{where}: {first['msg']}", field="effective", code="unreadable_request") from None


def obeying(request: Submission, effective: Effective) -> StoredRequest:
    """The request with every option filled in, as `effective` decided those that it left open."""
    decided = {name: value for name, value in effective.items() if name in MODELS_OWN}
    return cast("StoredRequest", {**filled(request), **decided, "max_new_tokens": effective["budget"]})
