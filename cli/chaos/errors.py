"""Why a chaos run can not tell how it ended."""

from __future__ import annotations

__all__ = ["ChaosError"]


class ChaosError(Exception):
    """The run did not settle, or something ended that must not end; the message says what."""
