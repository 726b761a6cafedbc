"""The rows of DESIGN 12 that exist, what they must reach, and how they are shown."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from rich.console import Console
from rich.table import Table

__all__ = ["ROWS", "Numbers", "Row", "rounded", "show"]

Numbers = dict[str, float]
_DIGITS = 4  # more would be noise


@dataclass(frozen=True, slots=True)
class Row:
    """A number, what it is, and the bound that it has to keep."""

    key: str
    what: str
    bound: Literal["≥", "≤", ""]
    wanted: float = 0

    def met(self, measured: float) -> bool:
        """Whether the bound is kept; one that has none always is."""
        if self.bound == "≥":
            return measured >= self.wanted
        return self.bound == "" or measured <= self.wanted


ROWS = (
    Row("apply_vs_copy", "apply ÷ COPY of the same rows", "≥", 0.25),
    Row("apply_vs_copy_on_two", "… COPY on two connections, as apply has", ""),
    Row("fold_per_second", "folding into days, months, lifetimes, records/s", "≥", 20_000),
    Row("end_to_end_vs_naive", "end to end ÷ one arq job a record", "≥", 25),
    Row("end_to_end_per_second", "end to end, records/s", "≥", 20_000),
    Row("reconcile_vs_without", "… with users compared meanwhile ÷ without", "≥", 0.9),
    Row("admit_vs_ping", "admit ÷ PING, one caller", "≤", 1.8),
    Row("admit_concurrent_per_second", "admit, concurrent callers, records/s", "≥", 40_000),
    Row("redis_us_per_record", "Redis time, µs a record at 100 a call", "≤", 8),
    Row("redis_us_per_record_three_limits", "… with three limits, price, credits", "≤", 10),
    Row("redis_bytes_per_key", "Redis memory, bytes a remembered key", "≤", 160),
    Row("burn_of_1000_grants_ms", "a burn over 1 000 grants, ms", "≤", 2),
    Row("lag_p99_seconds", "committed lag at half load, p99, s", "≤", 1.5),
    Row("fail_over_seconds", "fail-over of a killed worker, s", "≤", 5),
    Row("cold_load_ms", "a cold load, ms", ""),
    Row("cold_load_10k_ms", "… with 10 000 lines not applied in the shard", "≤", 5),
    Row("cold_load_1m_ms", "… with a million", "≤", 100),
    Row("cold_load_first_1m_ms", "… the first of a process", ""),
    Row("folded_per_second", "folded into days, months and lifetimes, records/s", ""),
    *(
        Row(f"query_{name}_ms", f"{what}, 30 days, ms", "≤", 50)
        for name, what in (
            ("history", "a user's last 100 records"),
            ("credit_summary", "a user's credits"),
            ("by_action", "… by action"),
            ("by_format_and_quality", "… by format and quality"),
            ("daily", "… by day"),
            ("platform", "everybody's use by action"),
            ("ranking", "the 20 users of most credits"),
            ("weekly_trends", "everybody's use by week, 12 weeks"),
        )
    ),
)


def rounded(numbers: Mapping[str, float]) -> Numbers:
    """*numbers* with as many digits as mean something; whole ones stay whole."""
    return {key: float(f"{number:.{_DIGITS}g}") for key, number in numbers.items()}


def show(numbers: Numbers, *, console: Console) -> None:
    """Print the table, and what the machine did meanwhile, against which it can be read."""
    table = Table("what", "measured", "wanted", "met")
    for row in ROWS:
        measured = numbers.get(row.key)
        if measured is None:
            continue
        wanted = f"{row.bound} {row.wanted:,g}" if row.bound else ""
        met = ("yes" if row.met(measured) else "NO") if row.bound else ""
        table.add_row(row.what, f"{measured:,g}", wanted, met)
    console.print(table)
    if "ping_us" not in numbers:
        return
    console.print(
        f"This machine, meanwhile: PING {numbers['ping_us']:,.0f} µs, "
        f"COPY {numbers['copy_per_second']:,.0f} rows/s, "
        f"naive {numbers['naive_per_second']:,.0f} jobs/s, "
        f"a million turns of a Python loop {numbers['loop_ms']:,.0f} ms; "
        f"the run took {numbers['seconds']:,.0f} s."
    )
