"""What any gateway needs to know about a request later, stored in the request's metadata."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, Final

from tokenrelay.producer._core.planning import dump_metadata
from tokenrelay.shared import options

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tokenrelay.producer._core.planning import Plan

NAME: Final = "tokenrelay.gateway"
"""The metadata field reserved for the gateway."""


@dataclass(frozen=True, slots=True)
class Annotation:
    """How a request was submitted. `fleeting`: not durable, so cancelled when all readers disconnect."""

    api: str = ""
    fleeting: bool = False
    background: bool = False
    store: bool = False
    instructions: bool = False
    """Whether the first message is the Responses API's `instructions`."""
    previous_response_id: str = ""
    unlimited: bool = False
    """Whether the caller gave no token limit; the stored limit is then the operator's."""


def with_annotation(metadata: Mapping[str, Any], annotation: Annotation) -> dict[str, Any]:
    """The metadata to store: the caller's, and our annotation."""
    default = Annotation()
    given = {name: value for name, value in asdict(annotation).items() if value != getattr(default, name)}
    return {**metadata, NAME: given} if given else dict(metadata)


def mark_unlimited(plan: Plan) -> Plan:
    """Set the annotation's `unlimited`. After planning: the idempotency hash covers the metadata without it."""
    metadata = plan.request["metadata"]
    annotation = metadata.get(NAME)
    if not isinstance(annotation, dict):
        return plan
    updated = {**metadata, NAME: {**annotation, "unlimited": True}}
    if len(dump_metadata(updated).encode()) > options.MAX_METADATA_BYTES:
        return plan  # no room beside the caller's metadata
    return replace(plan, request={**plan.request, "metadata": updated})


def split_annotation(metadata: Mapping[str, Any]) -> tuple[Annotation, dict[str, Any]]:
    """The annotation and the caller's metadata. A malformed annotation reads as the default one."""
    own = {name: value for name, value in metadata.items() if name != NAME}
    stored = metadata.get(NAME)
    if not isinstance(stored, dict):
        return Annotation(), own
    known = {name: value for name, value in stored.items() if name in Annotation.__slots__}
    return Annotation(**known), own
