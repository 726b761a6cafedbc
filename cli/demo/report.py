"""The result of a run: one object for machines, and tables with a verdict for people."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from quota.decision import FEATURE_NOT_IN_TIER, INSUFFICIENT_CREDITS, LIMIT_EXCEEDED
from quota.errors import KeyConflictError
from quota.values import credits_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from rich.console import Console

    from cli.demo.audit import Audit

__all__ = ["Report", "Use"]

_COLUMNS = {
    LIMIT_EXCEEDED: "over\nlimit",
    INSUFFICIENT_CREDITS: "no\ncredits",
    FEATURE_NOT_IN_TIER: "not in\ntier",
    "replayed": "re-\nplayed",
    KeyConflictError.code: "con-\nflicts",
}


@dataclass(frozen=True, slots=True)
class Use:
    """What a tier made of a feature: logged records, and what callers were told."""

    tier: str
    feature: str
    records: int
    micro: int
    outcomes: Counter[str]


@dataclass(frozen=True, slots=True)
class Report:
    """What the run came to: *tallies* are what the admit script counted in Redis, by outcome."""

    audit: Audit
    tallies: Mapping[str, int]
    applied: int
    quarantined: int
    users: int
    calls: int
    unanswered: int
    seconds: float
    total_seconds: float
    worker_restarts: int
    differences: list[str]  # of Redis from PostgreSQL, and of PostgreSQL from the seed documents
    use: list[Use]

    @property
    def sound(self) -> bool:
        """Whether everything is as it has to be."""
        return self.audit.sound and not self.differences

    def as_dict(self) -> dict[str, Any]:
        """As JSON; credits are decimals in strings."""
        seconds = max(self.seconds, 0.001)
        return {
            "admitted": self.tallies["lines"],
            "denied": sum(
                self.tallies[code]
                for code in (LIMIT_EXCEEDED, INSUFFICIENT_CREDITS, FEATURE_NOT_IN_TIER)
            ),
            "replayed": self.tallies["replayed"],
            "conflicts": self.tallies[KeyConflictError.code],
            "applied": self.applied,
            "lost": self.audit.lost,
            "double_counted": self.audit.double_counted,
            "over_admitted": self.audit.over_admitted,
            "records_per_second": round(self.applied / seconds),
            "seconds": round(self.seconds, 3),
            "total_seconds": round(self.total_seconds, 3),
            "users": self.users,
            "calls": self.calls,
            "unanswered": self.unanswered,
            "quarantined": self.quarantined,
            "worker_restarts": self.worker_restarts,
            "soft_limit": self.tallies["soft_limit"],
            "denied_by_code": {code: self.tallies[code] for code in list(_COLUMNS)[:3]},
            "credits_granted": _credits(self.audit.granted),
            "credits_burnt": _credits(self.audit.burnt),
            "credits_left": _credits(self.audit.remaining),
            "credits_overage": _credits(self.audit.overage),
            "credits_off": _credits(self.audit.credits_off),
            "differences": self.differences,
            "audit": self.audit.as_dict(),
            "sound": self.sound,
        }

    def show(self, console: Console) -> None:
        """Print the tables and the verdict."""
        console.print()
        console.print(_table("tier", [(one.tier, one) for one in self.use]))
        console.print()
        console.print(_table("feature", [(one.feature, one) for one in self.use]))
        console.print()
        found = self.as_dict()
        for line in self.differences:
            console.print(f"differs: {line}", markup=False, style="red")
        console.print(
            f"{found['admitted']:,} records admitted and {found['applied']:,} applied "
            f"in {self.seconds:.1f} s: {found['records_per_second']:,} a second. "
            f"Worker restarts: {self.worker_restarts}.",
            soft_wrap=True,
        )
        console.print(
            f"Credits: {found['credits_granted']} granted = {found['credits_burnt']} burnt "
            f"+ {found['credits_left']} left - {found['credits_overage']} overage, "
            f"off by {found['credits_off']}.",
            soft_wrap=True,
        )
        verdict = (
            f"lost {self.audit.lost}, double counted {self.audit.double_counted}, "
            f"over-admitted {self.audit.over_admitted}"
        )
        console.print(
            f"[bold green]Sound: {verdict}."
            if self.sound
            else f"[bold red]NOT sound: {verdict}; {self.audit}"
        )


def _table(heading: str, rows: Iterable[tuple[str, Use]]) -> Table:
    """One row a name, with the sum of its uses."""
    sums: dict[str, list[int]] = {}
    outcomes: dict[str, Counter[str]] = {}
    for name, one in rows:
        total = sums.setdefault(name, [0, 0])
        for place, number in enumerate((one.records, one.micro)):
            total[place] += number
        outcomes.setdefault(name, Counter()).update(one.outcomes)
    # Narrow enough for 80 columns: a number that is cut says nothing.
    table = Table(box=SIMPLE_HEAD, padding=0, show_edge=False)
    table.add_column(f"\n{heading}", no_wrap=True)
    for column in ("\nadmitted", *_COLUMNS.values(), "credits\nburnt"):
        table.add_column(column, justify="right", no_wrap=True)
    for name in sorted(sums, key=lambda name: -sums[name][0]):
        records, micro = sums[name]
        told = (f"{outcomes[name][code]:,}" for code in _COLUMNS)
        table.add_row(name, f"{records:,}", *told, f"{credits_of(micro):,.2f}")
    return table


def _credits(micro: int) -> str:
    return format(credits_of(micro), "f")
