"""What a gateway must know of a request later, on any gateway: it travels in the request's own metadata."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

NAME: Final = "tokenrelay.gateway"
"""The metadata field that is ours; callers can't set it."""


@dataclass(frozen=True, slots=True)
class Mark:
    """How a request came in. `fleeting`: it is cancelled once its readers have left for good."""

    api: str = ""
    fleeting: bool = False
    background: bool = False
    store: bool = False
    instructions: bool = False
    """Whether the first message is the Responses API's `instructions`."""


def marked(metadata: Mapping[str, Any], mark: Mark) -> dict[str, Any]:
    """The metadata that is stored: the caller's and our mark."""
    plain = Mark()
    told = {name: value for name, value in asdict(mark).items() if value != getattr(plain, name)}
    return {**metadata, NAME: told} if told else dict(metadata)


def unmarked(metadata: Mapping[str, Any]) -> tuple[Mark, dict[str, Any]]:
    """The mark and the caller's own metadata. What isn't a mark of ours is none."""
    own = {name: value for name, value in metadata.items() if name != NAME}
    told = metadata.get(NAME)
    if not isinstance(told, dict):
        return Mark(), own
    known = {name: value for name, value in told.items() if name in Mark.__slots__}
    return Mark(**known), own
