"""Dashboard and alerts use only existing metrics."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from itertools import combinations
from typing import Any, Final

import pytest

from scripts import metrics_docs
from tests.observe.expressions import DASHBOARD, expressions, panels
from tokenrelay.gateway import metrics as gateway
from tokenrelay.shared.metrics.measures import names
from tokenrelay.worker import metrics as worker

KNOWN: Final = {*names(worker.METRICS), *names(gateway.METRICS)}
ALERTS: Final = metrics_docs.alerts()


def named_metrics(expression: str) -> set[str]:
    return set(re.findall(r"tokenrelay_\w+", expression))


def test_the_metrics_page_is_current() -> None:
    text = metrics_docs.PAGE.read_text("utf-8")
    assert metrics_docs.page(text) == text, "run: make format"


def test_the_dashboard_asks_for_what_there_is() -> None:
    asked = expressions()
    assert len(asked) > 50
    assert {expression: named_metrics(expression) - KNOWN for expression in asked} == dict.fromkeys(asked, set())


def test_the_dashboard_groups_by_labels_that_there_are() -> None:
    of = {name: set(metric.labels) for metric in (*worker.METRICS, *gateway.METRICS) for name in names([metric])}
    for expression in expressions():
        if asked := named_metrics(expression):
            grouped = re.findall(r"\w+", " ".join(re.findall(r"by \(([^)]*)\)", expression)))
            common = set.intersection(*(of[name] for name in asked))
            assert set(grouped) <= common | {"le", "job", "instance"}, expression


def test_the_dashboards_panels_keep_apart() -> None:
    places = [panel["gridPos"] for panel in panels()]
    assert len({panel["id"] for panel in panels()}) == len(places)
    for first, second in combinations(places, 2):
        apart = first["x"] + first["w"] <= second["x"] or second["x"] + second["w"] <= first["x"]
        assert apart or first["y"] + first["h"] <= second["y"] or second["y"] + second["h"] <= first["y"]


def test_alerts_ask_for_what_there_is() -> None:
    assert len(ALERTS) == metrics_docs.ALERTS.read_text("utf-8").count("- alert:") > 0
    for _, expression, _, _ in ALERTS:
        assert named_metrics(expression), expression
        assert named_metrics(expression) <= KNOWN, expression


def test_prometheus_takes_its_configuration() -> None:
    if (promtool := shutil.which("promtool")) is None:
        pytest.skip("promtool isn't installed")
    command = [promtool, "check", "config", str(metrics_docs.ROOT / "deploy" / "prometheus.yml")]
    checked = subprocess.run(command, capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_the_dashboard_finds_its_datasource() -> None:
    dashboard: dict[str, Any] = json.loads(DASHBOARD.read_text("utf-8"))
    provisioned = (DASHBOARD.parent.parent / "provisioning" / "datasources" / "prometheus.yml").read_text("utf-8")
    (chosen,) = [v["current"]["value"] for v in dashboard["templating"]["list"] if v["name"] == "datasource"]
    assert f"uid: {chosen}\n" in provisioned
