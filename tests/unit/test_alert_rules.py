"""The alert rules name metrics and labels that a worker exports, can fire, and say what to do.

Only `promtool` evaluates a rule. Where it is not installed, the form of the rules is held to what is
known to work: a rule of two metrics with different labels says at its comparison how they match.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client import CollectorRegistry

from service.metrics import Metrics

DIRECTORY = Path(__file__).parents[2] / "ops" / "prometheus"
RULES: list[dict[str, Any]] = [
    rule
    for group in yaml.safe_load((DIRECTORY / "alerts.yml").read_text())["groups"]
    for rule in group["rules"]
]
CASES: list[dict[str, Any]] = yaml.safe_load((DIRECTORY / "alerts_test.yml").read_text())["tests"]
EACH_RULE = pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["alert"])
# Prometheus puts these on whatever it scrapes; a label of ours with such a name becomes `exported_…`.
OF_THE_TARGET = {"instance", "job"}
SELECTOR = re.compile(r"\b(?P<metric>allotment_\w+)(?:\{(?P<labels>[^}]*)\})?")
MATCHED = re.compile(
    r"(?P<one>\w+(?:\{[^}]*\})?|\w+\([^()]*\)) (?:[-+*/%^<>=!]+|and|or|unless) "
    r"(?:on|ignoring)\([^)]+\) (?:group_(?:left|right)\(\) )?(?P<other>\(.+\))"
)


def exported() -> dict[str, set[str]]:
    """The names of the samples that a worker exports, and the labels of each."""
    registry = CollectorRegistry()
    metrics = Metrics(registry)
    families = [one for one in vars(metrics).values() if one is not metrics.tallies]
    found = {}
    for family in [*families, *metrics.tallies.collect()]:
        for metric in family.collect() if hasattr(family, "collect") else [family]:
            total = "_total" if metric.type == "counter" else ""
            found[metric.name + total] = set(family._labelnames)
    return found


LABELS = exported()


def test_no_label_is_one_that_prometheus_sets_itself():
    assert len(LABELS) > 20
    assert [name for name, labels in LABELS.items() if labels & OF_THE_TARGET] == []


@EACH_RULE
def test_a_rule_is_of_metrics_and_labels_that_there_are(rule: dict[str, Any]):
    selectors = list(SELECTOR.finditer(rule["expr"]))

    assert selectors
    for selector in selectors:
        labels = LABELS[selector["metric"]] | OF_THE_TARGET
        assert set(re.findall(r"(\w+)\s*[=!]", selector["labels"] or "")) <= labels
    shown = re.findall(r"\$labels\.(\w+)", str(rule["annotations"]))
    assert set(shown) <= LABELS[selectors[0]["metric"]] | OF_THE_TARGET


def label_sets(expression: str) -> set[frozenset[str]]:
    return {frozenset(LABELS[found["metric"]]) for found in SELECTOR.finditer(expression)}


def can_match(expression: str) -> bool:
    """Whether the two sides of *expression* can have the same labels, as far as its form tells.

    What is not matched by `on` or `ignoring` is matched by all labels, and `on` binds to the operator
    beside it: in `log > 0.7 * on() (bound)` it is that of the multiplication.
    """
    if len(label_sets(expression)) == 1:
        return True
    found = MATCHED.fullmatch(expression)
    return (
        found is not None and len(label_sets(found["one"])) == len(label_sets(found["other"])) == 1
    )


@EACH_RULE
def test_metrics_of_different_labels_are_matched_where_they_are_compared(rule: dict[str, Any]):
    assert can_match(rule["expr"])


@pytest.mark.parametrize(
    ("expression", "can"),
    [
        ("allotment_log_bytes > 0.7 * on() group_left() (allotment_log_bytes_max > 0)", False),
        ("allotment_log_bytes > 0.7 * allotment_log_bytes_max", False),
        ("allotment_log_bytes > on(instance, job) group_left() (0.7 * allotment_log_bytes_max)", True),
        ("allotment_drift_units > 2 * allotment_drift_users", True),
    ],
)  # fmt: skip
def test_a_comparison_that_nothing_can_pass_is_told_from_one_that_something_can(
    expression: str, can: bool
):
    assert can_match(expression) == can


def test_each_alert_is_shown_to_fire_and_not_to_fire():
    shown = defaultdict(set)
    for case in CASES:
        for check in case["alert_rule_test"]:
            shown[check["alertname"]].add(bool(check.get("exp_alerts")))

    assert shown == {rule["alert"]: {True, False} for rule in RULES}


@pytest.mark.parametrize(
    "series", sorted({each["series"] for case in CASES for each in case["input_series"]})
)
def test_what_the_alerts_are_shown_on_has_the_labels_of_a_worker(series: str):
    selector = SELECTOR.fullmatch(series)

    assert selector is not None
    labels = re.findall(r"(\w+)=", selector["labels"])
    assert set(labels) == LABELS[selector["metric"]] | OF_THE_TARGET


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")
def test_promtool_finds_each_alert_to_fire_when_it_must():
    subprocess.run(["promtool", "check", "rules", "alerts.yml"], cwd=DIRECTORY, check=True)
    subprocess.run(["promtool", "test", "rules", "alerts_test.yml"], cwd=DIRECTORY, check=True)


@EACH_RULE
def test_a_rule_says_how_grave_it_is_and_what_to_do(rule: dict[str, Any]):
    assert rule["labels"]["severity"] in ("info", "warning", "critical")
    assert set(rule["annotations"]) >= {"summary"}
    assert rule["labels"]["severity"] == "info" or rule["annotations"]["action"]


def test_each_alert_has_one_rule():
    names = [rule["alert"] for rule in RULES]

    assert len(names) == len(set(names))
    assert {"AllotmentLogNearlyFull", "AllotmentRollupsBehind", "AllotmentFoldFails"} <= set(names)
    assert {"AllotmentSubscriptionsOverdue", "AllotmentRecordsMissing"} <= set(names)


def test_a_tally_that_was_not_read_yet_is_none_and_not_zero():
    tallies = Metrics(CollectorRegistry()).tallies
    assert [sample for family in tallies.collect() for sample in family.samples] == []

    tallies.set(0, {"outage": 500}, epochs=0)

    values = {sample.name: sample.value for one in tallies.collect() for sample in one.samples}
    assert values["allotment_outage_admitted_total"] == 500
    assert values["allotment_records_admitted_total"] == 0
