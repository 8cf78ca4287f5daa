"""What a gateway must know of a request later, on any gateway: it travels in the request's own metadata."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, Final

from tokenrelay.producer._core.planning import dump_metadata
from tokenrelay.shared import options

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tokenrelay.producer._core.planning import Plan

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
    previous_response_id: str = ""
    unlimited: bool = False
    """Whether no limit of the answer's length was given; what is stored is the operator's."""


def marked(metadata: Mapping[str, Any], mark: Mark) -> dict[str, Any]:
    """The metadata that is stored: the caller's and our mark."""
    plain = Mark()
    told = {name: value for name, value in asdict(mark).items() if value != getattr(plain, name)}
    return {**metadata, NAME: told} if told else dict(metadata)


def unlimited(plan: Plan) -> Plan:
    """A marked request whose mark says that no limit was given. Only once it's planned: the hash that an idempotency
    key's repeats must share covers the metadata, and was taken without this."""
    metadata = plan.request["metadata"]
    mark = metadata.get(NAME)
    if not isinstance(mark, dict):
        return plan
    told = {**metadata, NAME: {**mark, "unlimited": True}}
    if len(dump_metadata(told).encode()) > options.MAX_METADATA_BYTES:
        return plan  # the caller's own fills it
    return replace(plan, request={**plan.request, "metadata": told})


def unmarked(metadata: Mapping[str, Any]) -> tuple[Mark, dict[str, Any]]:
    """The mark and the caller's own metadata. What isn't a mark of ours is none."""
    own = {name: value for name, value in metadata.items() if name != NAME}
    told = metadata.get(NAME)
    if not isinstance(told, dict):
        return Mark(), own
    known = {name: value for name, value in told.items() if name in Mark.__slots__}
    return Mark(**known), own
