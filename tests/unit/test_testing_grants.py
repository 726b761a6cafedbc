"""Grants in memory are refused for what the service refuses them for."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from quota import InvalidValueError
from quota.testing import InMemoryQuota

START = datetime(2025, 3, 1, tzinfo=UTC)
TIERS: dict[str, Any] = {"default_tier": "t", "features": {}, "tiers": {"t": {"limits": {}}}}


async def test_a_repeat_that_begins_at_another_instant_is_refused():
    quota = InMemoryQuota(TIERS)
    first = await quota.grant("u", 5, id="g", now=START)

    for begins in (None, START):
        again = await quota.grant("u", 5, id="g", effective_at=begins, now=START + timedelta(1))
        assert again.id == first.id
    with pytest.raises(InvalidValueError, match="another effective_at") as caught:
        await quota.grant("u", 5, id="g", effective_at=START + timedelta(1), now=START)
    assert caught.value.field == "id"


async def test_the_name_of_the_tiers_credits_is_taken():
    quota = InMemoryQuota(TIERS)

    with pytest.raises(InvalidValueError) as caught:
        await quota.grant("u", 5, id="allowance", now=START)
    assert caught.value.field == "id"
