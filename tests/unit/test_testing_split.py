"""Looking changes nothing: a run that is split at any instants by reads answers as one that is not."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from quota.testing import InMemoryQuota
from tests.integration.stacks import Memory, answer, plain
from tests.integration.steps import (
    START,
    asked,
    changing,
    deciding,
    documents,
    holding,
    paying,
)

_ANY = st.lists(st.one_of(deciding, holding, paying, changing), min_size=1, max_size=20)


async def answers(
    document: dict[str, Any], steps: list[dict[str, Any]], cuts: list[float]
) -> list[Any]:
    """What *steps* answer when the balance is read at *cuts*, parts of the time before each step."""
    memory, now, found = Memory(InMemoryQuota(document)), START, []
    await memory.set_user("user", now=now, anchor=START)
    for number, one in enumerate(steps):
        passing = timedelta(minutes=one["minutes"] or 0, milliseconds=1)
        if one["minutes"] is None:
            passing = memory.next_change("user", now + passing) - now
        for cut in sorted(cuts):
            await memory.balance("user", now=now + passing * cut)
        now += passing
        fields = asked(one, number, now)
        found.append(await answer(lambda: getattr(memory, one["verb"])("user", now=now, **fields)))  # noqa: B023
    found.append(plain(await memory.balance("user", now=now + timedelta(days=400))))
    return found


@given(
    document=documents,
    steps=_ANY,
    cuts=st.lists(st.floats(0, 1), min_size=1, max_size=3),
)
def test_a_run_split_by_reads_answers_as_one(
    document: dict[str, Any], steps: list[dict[str, Any]], cuts: list[float]
):
    split = asyncio.run(answers(document, steps, cuts))

    assert split == asyncio.run(answers(document, steps, []))
