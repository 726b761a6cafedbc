"""A log that nobody applies is bounded: what cannot be kept is refused, and nothing is lost."""

from __future__ import annotations

from dataclasses import replace

import pytest

from quota import QuotaUnavailableError
from worker.deps import Deps
from worker.jobs import drain_log
from worker.tidy import trim_logs

METADATA = {"text": "x" * 4_000}


async def bounded(deps: Deps, log_max: int) -> None:
    """Let each shard's log have so many bytes."""
    await deps.quota.check("u", "tokens")  # the shard is begun
    for one in deps.keys.shards:
        await deps.redis.hset(one.meta, "log_max", log_max)


async def filled(deps: Deps) -> int:
    """Consume until the log is full; how many were admitted."""
    for admitted in range(1_000):
        decision = await deps.quota.consume("u", "tokens", metadata=METADATA)
        if not decision:
            assert decision.code == "unavailable"
            return admitted
    raise AssertionError("the log is never full")


async def test_past_its_bytes_the_log_takes_nothing_and_loses_nothing(deps: Deps):
    await bounded(deps, 200_000)

    admitted = await filled(deps)

    assert 10 < admitted < 100
    with pytest.raises(QuotaUnavailableError, match="LOG_BYTES_MAX"):
        await deps.quota.record("u", "tokens")
    assert (await deps.quota.check("u", "tokens")).used == admitted
    assert await deps.drain.run(seconds_max=10) == admitted


async def test_a_log_that_was_applied_and_cut_takes_records_again(deps: Deps):
    await bounded(deps, 200_000)
    await filled(deps)
    await deps.drain.run(seconds_max=10)
    settings = deps.settings.model_copy(update={"log_bytes_max": 200_000})
    await trim_logs(replace(deps, settings=settings))  # before REPLAY_SECONDS: it is crowded

    assert await deps.quota.consume("u", "tokens", metadata=METADATA)


async def test_a_tick_sets_the_bound_and_shows_the_bytes(deps: Deps):
    await deps.quota.consume("u", "tokens", metadata=METADATA)

    await drain_log({"deps": deps, "job_id": "tick"})

    for shard in deps.keys.shards:
        found = await deps.redis.hget(shard.meta, "log_max")
        assert found in (None, b"%d" % deps.settings.log_bytes_max)
    samples = [
        sample.value for family in deps.metrics.log_bytes.collect() for sample in family.samples
    ]
    assert max(samples) > 4_000
