"""Scenario files (DESIGN 11): read, run on the real stack, compared with what they expect."""

from cli.replay.main import EXAMPLES, command

__all__ = ["EXAMPLES", "command"]
