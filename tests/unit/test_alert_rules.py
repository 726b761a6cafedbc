"""The alert rules name metrics that a worker exports, and say what to do."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client import CollectorRegistry, generate_latest

from service.metrics import Metrics

FILE = Path(__file__).parents[2] / "ops" / "prometheus" / "alerts.yml"
RULES: list[dict[str, Any]] = [
    rule for group in yaml.safe_load(FILE.read_text())["groups"] for rule in group["rules"]
]


@pytest.fixture(scope="module")
def exported() -> set[str]:
    registry = CollectorRegistry()
    Metrics(registry)
    return set(re.findall(r"^# TYPE (\S+)", generate_latest(registry).decode(), re.MULTILINE))


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["alert"])
def test_a_rule_is_of_metrics_that_there_are(rule: dict[str, Any], exported: set[str]):
    named = set(re.findall(r"allotment_\w+", rule["expr"]))

    assert named
    assert named <= exported


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["alert"])
def test_a_rule_says_how_grave_it_is_and_what_to_do(rule: dict[str, Any]):
    assert rule["labels"]["severity"] in ("info", "warning", "critical")
    assert set(rule["annotations"]) >= {"summary"}
    assert rule["labels"]["severity"] == "info" or rule["annotations"]["action"]


def test_each_alert_has_one_rule():
    names = [rule["alert"] for rule in RULES]

    assert len(names) == len(set(names))
    assert {"AllotmentLogNearlyFull", "AllotmentRollupsBehind", "AllotmentFoldFails"} <= set(names)
    assert {"AllotmentSubscriptionsOverdue", "AllotmentRecordsMissing"} <= set(names)
