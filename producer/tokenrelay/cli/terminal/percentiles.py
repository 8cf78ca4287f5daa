"""Percentiles of a sample, as all tables and JSON objects show them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable


@dataclass(frozen=True, slots=True)
class Percentiles:
    """Nearest-rank percentiles, so each is a measured value. In the sample's unit; None for an empty sample."""

    count: int
    p50: float | None = None
    p90: float | None = None
    p99: float | None = None
    max: float | None = None

    @classmethod
    def of(cls, sample: Iterable[float]) -> Percentiles:
        values = sorted(sample)
        if not values:
            return cls(0)
        p50, p90, p99 = (values[math.ceil(share * len(values)) - 1] for share in (0.5, 0.9, 0.99))
        return cls(len(values), p50, p90, p99, values[-1])

    def as_json(self) -> dict[str, float | int | None]:
        """As a JSON object, rounded to a thousandth."""
        values = {name: getattr(self, name) for name in ("p50", "p90", "p99", "max")}
        return {"count": self.count, **{name: v if v is None else round(v, 3) for name, v in values.items()}}
