"""A token's log-probabilities as a stream's entry holds them: docs/wire.md, the field `logprobs`."""

from __future__ import annotations

import json
import math
from base64 import b64encode
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

IMPOSSIBLE: Final = -9999
"""Stands for the logarithm of 0."""


def encode_logprobs(logprobs: Iterable[tuple[int, float]], token_bytes: Callable[[int], bytes]) -> bytes:
    """(token ID, log-probability) of the drawn token and the likeliest ones as JSON, with each token's bytes."""
    items = [(token_id, _rounded(value), b64encode(token_bytes(token_id)).decode()) for token_id, value in logprobs]
    return json.dumps(items, separators=(",", ":")).encode()


def _rounded(value: float) -> float:
    """Six significant digits."""
    return float(f"{value:.6g}") if math.isfinite(value) else IMPOSSIBLE
