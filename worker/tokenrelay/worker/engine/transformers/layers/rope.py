"""Rotary positions whose factors depend on the longest sequence of a step.

`longrope` has two sets of factors, and uses the long one for all requests of a step as soon as one exceeds the
length that the model was first trained on; `dynamic` grows with the longest. A request's factors then depend on its
neighbours, and on where it was taken over. Up to that length all have the same factors, so the context ends there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


def stable_length(config: PreTrainedConfig) -> int | None:
    """The number of tokens up to which no factor depends on a sequence's length; None where none ever does."""
    given: dict[str, Any] = getattr(config, "rope_parameters", None) or {}
    parameters = [given, *(part for part in given.values() if isinstance(part, dict))]
    lengths = [_stable_length(config, part) for part in parameters]
    return min((length for length in lengths if length), default=None)


def _stable_length(config: PreTrainedConfig, parameters: dict[str, Any]) -> int | None:
    kind = str(parameters.get("rope_type", ""))
    longest: int | None = getattr(config, "max_position_embeddings", None)
    if kind == "longrope":
        name = "original_max_position_embeddings"
        return parameters.get(name) or getattr(config, name, None) or longest
    return longest if "dynamic" in kind else None
