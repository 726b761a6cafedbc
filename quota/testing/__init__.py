"""Quotas for an application's own tests: the same verbs and rules, in memory.

    quota = InMemoryQuota({"default_tier": "free", "tiers": {"free": {"limits": {…}}}})
    assert await quota.consume("user-1", "image_generation")

Under pytest the fixture `in_memory_quota` makes them.
"""

from __future__ import annotations

from quota.testing.memory import InMemoryQuota

__all__ = ["InMemoryQuota"]
