"""Why a demo can not go on."""

from __future__ import annotations

__all__ = ["DemoError"]


class DemoError(Exception):
    """The demo cannot be run, or did not come to its end; the message says what to do."""
