"""Runs one scenario from its first step to its last, and says what was not as expected."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from cli.replay.balances import Imbalance, imbalances
from cli.replay.compare import Difference, differences, shown
from cli.replay.fields import NOTHING
from cli.replay.format import Scenario, Step
from cli.replay.stage import Stage, World
from cli.replay.verbs import NotSupportedError, answer
from quota.errors import QuotaError
from quota.values import instant_ms, instant_text

__all__ = ["Mismatch", "Report", "run_scenario"]


@dataclass(frozen=True, slots=True)
class Mismatch:
    """A step that did not do what was expected of it."""

    step: Step
    message: str
    difference: Difference | None = None

    def as_dict(self) -> dict[str, Any]:
        """As JSON values; `got` is left out where there was nothing."""
        found: dict[str, Any] = {
            "step": self.step.number,
            "do": self.step.do,
            "message": self.message,
        }
        if self.difference is not None:
            found |= {k: v for k, v in self.difference._asdict().items() if v is not NOTHING}
        return found


@dataclass(slots=True)
class Report:
    """What every step of a file answered, and what of it was not as expected."""

    scenario: Scenario
    answers: list[dict[str, Any]] = field(default_factory=list)
    mismatches: list[Mismatch] = field(default_factory=list)
    imbalances: list[Imbalance] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        """Whether everything was as expected."""
        return not self.mismatches and not self.imbalances

    def lines(self) -> Iterator[str]:
        """Each mismatch as a line."""
        for found in self.mismatches:
            step = found.step
            yield f"{self.scenario.file}: step {step.number} ({step.do}): {found.message}"
        for one in self.imbalances:
            yield f"{self.scenario.file}: after the last step: {one}"

    def as_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "file": self.scenario.file,
            "name": self.scenario.name,
            "passed": self.passed,
            "mismatches": [found.as_dict() for found in self.mismatches],
            "imbalances": [one.as_dict() for one in self.imbalances],
            "steps": self.answers,
        }


async def run_scenario(stage: Stage, scenario: Scenario) -> Report:
    """Run *scenario* in a world of its own.

    A step that differs does not stop it; one that can not be done at all does, for what comes
    after it would only repeat the news. After the last one the credits of each user have to balance.
    """
    report = Report(scenario)
    async with stage.world(scenario) as world:
        for step in scenario.steps:
            try:
                await _run_step(world, step, report)
                if step is scenario.steps[-1]:
                    report.imbalances += await imbalances(world, scenario, at=step.at)
            except NotSupportedError as error:
                report.mismatches.append(Mismatch(step, str(error)))
                break
            except Exception as error:
                report.mismatches.append(Mismatch(step, f"{type(error).__name__}: {error}"))
                break
    return report


async def _run_step(world: World, step: Step, report: Report) -> None:
    refusal = None
    try:
        got = await answer(world, step)
    except QuotaError as error:
        refusal, got = error, {"error": error.code, "message": str(error)}
    at = instant_text(instant_ms(step.at))
    report.answers.append({"step": step.number, "do": step.do, "at": at, "answer": got})
    if refusal is not None and not step.expects_error:
        found = Difference("error", NOTHING, f"{refusal.code} ({refusal})")
        report.mismatches.append(_mismatch(step, found))
        return
    for found in differences(step.expect or {}, got):
        report.mismatches.append(_mismatch(step, found))


def _mismatch(step: Step, found: Difference) -> Mismatch:
    message = f"{found.field}: expected {shown(found.expected)}, got {shown(found.got)}"
    return Mismatch(step, message, found)
