"""A log that nobody applies is bounded: what cannot be kept is refused, and nothing is lost."""

from __future__ import annotations

from dataclasses import replace

import pytest

from quota import KeyConflictError, QuotaUnavailableError
from quota.decision import Decision
from quota.values import parse_user_id
from service.database import Database
from worker.deps import Deps
from worker.drain import Drain
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


async def test_a_full_log_keeps_no_answer_back_that_logs_nothing(deps: Deps):
    await bounded(deps, 200_000)
    first = await deps.quota.consume("u", "tokens", key="k")
    held = await deps.quota.reserve("u", "tokens", 2, key="h")
    ended = await deps.quota.reserve("u", "tokens", 3, key="e")
    await ended.commit()
    await deps.quota.consume("u", "event", 100)
    admitted = await filled(deps)

    again, denied, refused = await deps.quota.consume_many(
        [
            {"user_id": "u", "feature": "tokens", "key": "k"},
            {"user_id": "u", "feature": "event"},
            {"user_id": "u", "feature": "tokens", "key": "new"},
        ]
    )
    with pytest.raises(KeyConflictError):
        await deps.quota.consume("u", "tokens", 2, key="k")
    with pytest.raises(QuotaUnavailableError, match="LOG_BYTES_MAX"):
        await held.commit()
    reserved_again = await deps.quota.reserve("u", "tokens", 2, key="h")
    ended_again = await ended.commit()
    with pytest.raises(QuotaUnavailableError, match="LOG_BYTES_MAX"):
        await deps.quota.record("u", {"tokens": 1, "image": 1})

    assert isinstance(again, Decision)
    assert (again.code, again.replayed, again.used) == ("ok", True, first.used)
    assert (denied.code, refused.code) == ("limit_exceeded", "unavailable")
    assert (reserved_again.decision.code, reserved_again.decision.replayed) == ("ok", True)
    assert (ended_again.status, ended_again.amount, ended_again.replayed) == ("committed", 3, True)
    assert (await deps.quota.check("u", "tokens")).used == 1 + 2 + 3 + admitted
    for shard in deps.keys.shards:
        await deps.redis.hset(shard.meta, "log_max", 0)
    assert not (await deps.quota.consume("u", "tokens", key="new")).replayed
    assert (await held.commit(1)).amount == 1


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


async def test_while_postgresql_is_away_the_gauges_show_how_the_log_grows(deps: Deps):
    await drain_log({"deps": deps, "job_id": "tick"})
    for _ in range(3):
        await deps.quota.consume("u", "tokens", metadata=METADATA)
    nowhere = "postgresql+asyncpg://nobody@127.0.0.1:1/nothing"

    async with Database(nowhere, pool_max=1) as database:
        terms = {"lines_max": 100, "dedupe_ms": 1_000, "late_grace_ms": 0}
        drain = Drain(database, deps.redis, deps.keys, deps.metrics, **terms)
        away = replace(deps, database=database, drain=drain)
        applied = await drain_log({"deps": away, "job_id": "tick"})

    shard = str(deps.keys.shard_of(parse_user_id("u").id).index)
    assert applied == 0
    assert gauge(deps, "allotment_log_backlog_records", shard=shard) == 3
    assert gauge(deps, "allotment_log_bytes", shard=shard) > 3 * 4_000
    assert gauge(deps, "allotment_log_oldest_seconds", shard=shard) > 0


def gauge(deps: Deps, name: str, **labels: str) -> float:
    value = deps.registry.get_sample_value(name, labels)
    assert value is not None
    return value
