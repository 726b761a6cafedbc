"""What is seen while the day runs: a bar with live rates, or else a line each tenth."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from rich.console import Console

    from cli.demo.ledger import Ledger

__all__ = ["Live", "live"]

_LOOK_S = 0.1
_SPAN_LOOKS = 20  # rates are of the last two seconds


class Live:
    """The progress of the calls, and the rates of what is admitted and applied."""

    def __init__(
        self, ledger: Ledger, *, calls_max: int, console: Console, bar: Progress | None
    ) -> None:
        self._ledger = ledger
        self._calls_max = calls_max
        self._console = console
        self._bar = bar
        self._task = bar.add_task("a day of use", total=calls_max, rates="") if bar else None
        self._tenths = 0
        self._looks: deque[tuple[float, int, int]] = deque(maxlen=_SPAN_LOOKS)
        self._calls_before = ledger.calls

    def advanced(self) -> None:
        """Show how far the calls are."""
        calls = self._ledger.calls - self._calls_before
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=calls, rates=self._rates())
            return
        tenths = min(10, 10 * calls // self._calls_max)
        if tenths > self._tenths:
            self._tenths = tenths
            self._console.print(
                f"demo: {tenths * 10} % of the calls, {self._rates()}", highlight=False
            )

    async def watch(self, look: Callable[[], Awaitable[tuple[int, int]]]) -> None:
        """Ask *look* for the lines admitted and applied, again and again, until cancelled."""
        while True:
            admitted, applied = await look()
            self._looks.append((time.monotonic(), admitted, applied))
            if self._bar is not None:
                self.advanced()
            await asyncio.sleep(_LOOK_S)

    def _rates(self) -> str:
        if len(self._looks) < 2:
            return "starting"
        (since, admitted_before, applied_before), (now, admitted, applied) = (
            self._looks[0],
            self._looks[-1],
        )
        admitted_rate, applied_rate = (
            (admitted - admitted_before) / (now - since),
            (applied - applied_before) / (now - since),
        )
        backlog = max(0, admitted - applied)
        return (
            f"{admitted_rate:,.0f} admitted/s, {applied_rate:,.0f} applied/s, backlog {backlog:,}"
        )


@contextmanager
def live(ledger: Ledger, *, calls_max: int, console: Console) -> Iterator[Live]:
    """Show progress on *console* for as long as the block."""
    if not console.is_terminal:
        yield Live(ledger, calls_max=calls_max, console=console, bar=None)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("{task.fields[rates]}"),
    )
    with Progress(*columns, console=console, transient=True) as bar:
        yield Live(ledger, calls_max=calls_max, console=console, bar=bar)
