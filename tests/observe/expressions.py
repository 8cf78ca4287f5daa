"""The dashboard's panels and what they ask Prometheus."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

DASHBOARD: Final = Path(__file__).parents[2] / "deploy" / "grafana" / "dashboards" / "tokenrelay.json"


def panels() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(DASHBOARD.read_text("utf-8"))["panels"]
    return found


def expressions() -> list[str]:
    """Every PromQL expression, Grafana's variables still in it."""
    return [target["expr"] for panel in panels() for target in panel.get("targets", [])]


def resolved(expression: str, interval: str = "1m") -> str:
    """The expression as Grafana sends it, for all models."""
    return expression.replace("$__rate_interval", interval).replace("$model", ".*")
