"""`allotment chaos`: real processes that are killed, stopped, paused and started again, and what came of it."""

from __future__ import annotations

from cli.chaos.entry import EXAMPLES, command

__all__ = ["EXAMPLES", "command"]
