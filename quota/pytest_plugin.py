"""The pytest fixture of `quota.testing`; pytest finds it by itself where this package is installed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

    from quota.testing import InMemoryQuota

__all__ = ["in_memory_quota"]


@pytest.fixture
def in_memory_quota() -> Callable[..., InMemoryQuota]:
    """Makes quotas in memory: `in_memory_quota(tiers, clock=…)`; see `quota.testing.InMemoryQuota`."""
    # Here, so that a run of tests that never asks for one does not import it.
    from quota.testing import InMemoryQuota  # noqa: PLC0415

    return InMemoryQuota
