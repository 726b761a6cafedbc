"""Producers that know only arq: two lines make their pool, and the worker's jobs do the rest."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any, cast

import msgspec
import pytest
from arq import Worker, create_pool, func
from arq.connections import ArqRedis, RedisSettings
from arq.constants import default_queue_name, job_key_prefix

from quota.client import Quota
from quota.values import parse_user_id
from service.jobs import QUARANTINE_JOB, RECORD_USAGE, deserialize_job, serialize_job
from service.loading import DatabaseLoader
from service.settings import Settings
from worker.deps import Deps
from worker.jobs import quarantine_job, record_usage

Enqueue = Callable[..., Awaitable[str]]
Work = Callable[[], Awaitable[Worker]]


def in_json(job: dict[str, Any]) -> bytes:
    return json.dumps(job).encode()


@pytest.fixture
async def pool(settings: Settings) -> AsyncIterator[ArqRedis]:
    """The pool of a producer that has read our two lines."""
    async with await pool_of(settings, job_serializer=in_json) as opened:
        yield opened


async def pool_of(settings: Settings, **options: Any) -> ArqRedis:
    return await create_pool(RedisSettings.from_dsn(settings.queue_redis), **options)


@pytest.fixture
async def work(settings: Settings, deps: Deps) -> AsyncIterator[Work]:
    """A function that runs what is in the queue, until it is empty, with the worker's jobs."""
    forms: dict[str, Any] = {"job_serializer": serialize_job, "job_deserializer": deserialize_job}
    queue = await pool_of(settings, **forms)

    async def run() -> Worker:
        worker = Worker(
            functions=[
                func(cast("Any", record_usage), name=RECORD_USAGE),
                func(cast("Any", quarantine_job), name=QUARANTINE_JOB),
            ],
            redis_pool=queue,
            ctx={"deps": deps},
            burst=True,
            handle_signals=False,
            keep_result=0,
            poll_delay=0.01,
            max_tries=3,
            **forms,
        )
        async with asyncio.timeout(30):
            await worker.main()
        return worker

    async with queue:
        yield run


async def enqueue(pool: ArqRedis, *args: Any, job_id: str | None = None, **named: Any) -> str:
    job = await pool.enqueue_job(RECORD_USAGE, *args, _job_id=job_id, **named)
    assert job is not None
    return job.job_id


async def logged(deps: Deps) -> list[dict[str, Any]]:
    await deps.drain.run(seconds_max=30)
    async with deps.database.connection() as connection:
        return [
            dict(row) for row in await connection.fetch("SELECT * FROM usage_logs ORDER BY key")
        ]


async def quarantine(deps: Deps) -> list[dict[str, Any]]:
    async with deps.database.connection() as connection:
        rows = await connection.fetch("SELECT * FROM quarantined_records ORDER BY id")
    return [dict(row) for row in rows]


async def test_a_job_of_a_stock_producer_is_recorded_with_all_its_fields(
    pool: ArqRedis, work: Work, deps: Deps
):
    occurred_at = datetime.now(UTC).replace(microsecond=0) - timedelta(hours=1)
    await enqueue(
        pool,
        user_id="user-1",
        feature="image",
        amount=2,
        key="k-1",
        format="video",
        quality="high",
        metadata={"model": "ü", "n": [1, 2.5]},
        occurred_at=occurred_at.isoformat(),
        event_id="e-1",
        event_type="made",
        product_version="1.2",
        session_id="s-1",
    )

    await work()

    [row] = await logged(deps)
    assert row["user_id"] == parse_user_id("user-1").id
    assert (row["action"], row["amount"], row["key"]) == ("image", 2, "k-1")
    assert (row["format"], row["quality"], row["credits_consumed"]) == ("video", "high", 20)
    assert row["metadata"] == {"model": "ü", "n": [1, 2.5]}
    assert row["created_at"] == occurred_at
    extras = [row[name] for name in ("event_id", "event_type", "product_version", "session_id")]
    assert extras == ["e-1", "made", "1.2", "s-1"]
    assert await quarantine(deps) == []


async def test_a_job_in_messagepack_and_by_position_is_recorded(
    settings: Settings, work: Work, deps: Deps
):
    async with await pool_of(settings, job_serializer=msgspec.msgpack.encode) as pool:
        await enqueue(pool, "user-1", "event", 3, "k-1")

    await work()

    [row] = await logged(deps)
    assert (row["action"], row["amount"], row["key"]) == ("event", 3, "k-1")


async def test_several_features_of_one_job_are_recorded_together(
    pool: ArqRedis, work: Work, deps: Deps
):
    await enqueue(pool, "user-1", {"event": 2, "unit": 5}, key="k-1")

    await work()

    rows = await logged(deps)
    assert {(row["action"], row["amount"], row["key"]) for row in rows} == {
        ("event", 2, "k-1"), ("unit", 5, "k-1"),
    }  # fmt: skip


async def test_what_has_happened_is_recorded_past_every_limit(
    pool: ArqRedis, work: Work, deps: Deps
):
    await enqueue(pool, "user-1", "unit", 11)
    await enqueue(pool, "user-1", "not_in_tier", 1)

    await work()

    assert {row["action"] for row in await logged(deps)} == {"unit", "not_in_tier"}


async def test_a_job_that_runs_twice_is_recorded_once(pool: ArqRedis, work: Work, deps: Deps):
    job_id = await enqueue(pool, "user-1", "event", 3)
    raw = await pool.get(job_key_prefix + job_id)
    await work()

    # As after a crash between the work and arq's note of it: the job is still in the queue.
    await pool.set(job_key_prefix + job_id, raw)
    await pool.zadd(default_queue_name, {job_id: 1})
    second = await work()

    assert second.jobs_complete == 1
    [row] = await logged(deps)
    assert (row["amount"], row["key"]) == (3, f"arq:{job_id}")
    decision = await deps.quota.check("user-1", "event")
    assert [state.used for state in decision.limits] == [3, 3]
    assert await quarantine(deps) == []


async def test_the_id_of_a_job_is_its_key_and_a_key_of_its_own_goes_before(
    pool: ArqRedis, work: Work, deps: Deps
):
    await enqueue(pool, "user-1", "event", job_id="order-7")
    await enqueue(pool, "user-1", "event", key="k-1", job_id="order-8")

    await work()

    assert [row["key"] for row in await logged(deps)] == ["arq:order-7", "k-1"]


async def test_a_pickled_job_is_set_aside_with_what_to_do(
    settings: Settings, pool: ArqRedis, work: Work, deps: Deps
):
    async with await pool_of(settings) as forgetful:
        job_id = await enqueue(forgetful, "user-1", "event", key="pickled")
        raw = await forgetful.get(job_key_prefix + job_id)
    await enqueue(pool, "user-1", "event", key="neighbour")

    await work()

    [kept] = await quarantine(deps)
    assert kept["source"] == "job"
    assert kept["place"].startswith(job_id)
    assert kept["raw"] == raw
    assert "job_serializer=" in kept["reason"]
    assert [row["key"] for row in await logged(deps)] == ["neighbour"]


GOOD: dict[str, Any] = {"user_id": "user-1", "feature": "event"}
BAD: list[tuple[str, list[Any], dict[str, Any]]] = [
    ("user_id", [], {"feature": "event"}),
    ("user_id", [], GOOD | {"user_id": ""}),
    ("user_id", [], GOOD | {"user_id": 7}),
    ("user_id", [], GOOD | {"user_id": "a\0b"}),
    ("feature", [], {"user_id": "user-1"}),
    ("feature", [], GOOD | {"feature": "Event"}),
    ("feature", [], GOOD | {"feature": ["event"]}),
    ("features", [], GOOD | {"feature": {}}),
    *(
        ("amount", [], GOOD | {"amount": amount})
        for amount in (0, -1, 2**53, 10**30, 1.5, True, "3", None)
    ),
    ("amount", [], {"user_id": "user-1", "feature": {"event": 1, "unit": 0}}),
    *(("key", [], GOOD | {"key": key}) for key in ("", 0, False, "x" * 201, "a\0b", ["k"])),
    ("format", [], GOOD | {"format": "x" * 201}),
    ("quality", [], GOOD | {"quality": 7}),
    ("metadata", [], GOOD | {"metadata": "text"}),
    ("metadata", [], GOOD | {"metadata": {"a": "x" * 17_000}}),
    ("metadata", [], GOOD | {"metadata": {"a": 10**30}}),
    ("occurred_at", [], GOOD | {"occurred_at": "2025-01-01T00:00:00"}),
    ("occurred_at", [], GOOD | {"occurred_at": "9999-01-01T00:00:00Z"}),
    ("session_id", [], GOOD | {"session_id": "a\0b"}),
    ("fetaure", [], GOOD | {"fetaure": "event"}),
    ("now", [], GOOD | {"now": "2020-01-01T00:00:00Z"}),  # the clock is not the producer's
    ("ctx", [], GOOD | {"ctx": {}}),
    ("user_id", ["user-1", "event"], {"user_id": "user-2"}),
    ("arguments", ["user-1", "event", 1, "k", "video"], {}),
]


@pytest.mark.parametrize(("field", "args", "named"), BAD)
async def test_a_bad_job_is_set_aside_with_its_field_and_its_neighbours_are_recorded(
    pool: ArqRedis, work: Work, deps: Deps, field: str, args: list[Any], named: dict[str, Any]
):
    await enqueue(pool, "user-1", "event", key="before")
    await enqueue(pool, *args, job_id="bad", **named)
    await enqueue(pool, "user-1", "event", key="behind")

    worker = await work()

    assert (worker.jobs_complete, worker.jobs_retried, worker.jobs_failed) == (3, 0, 0)
    [kept] = await quarantine(deps)
    assert kept["reason"].startswith(f"{field}: ")
    job = json.loads(kept["raw"])
    assert (job["a"], job["k"]) == (args, named)
    assert [row["key"] for row in await logged(deps)] == ["before", "behind"]


async def test_a_job_with_keys_that_json_has_not_is_set_aside(
    settings: Settings, work: Work, deps: Deps
):
    async with await pool_of(settings, job_serializer=msgspec.msgpack.encode) as pool:
        await enqueue(pool, "user-1", "event", metadata={None: 1, (1, 2): b"\xff"})

    await work()

    [kept] = await quarantine(deps)
    assert kept["reason"].startswith("metadata: ")


async def test_a_key_that_was_used_for_another_record_is_set_aside_each_time(
    pool: ArqRedis, work: Work, deps: Deps
):
    for amount in (1, 2, 3):  # a producer whose job id is not of one record alone
        await enqueue(pool, "user-1", "event", amount, job_id="daily")
        await work()

    assert [row["amount"] for row in await logged(deps)] == [1]
    kept = await quarantine(deps)
    assert [json.loads(one["raw"])["a"][2] for one in kept] == [2, 3]
    assert all("already used for a different record" in one["reason"] for one in kept)


async def test_a_job_with_an_id_that_is_no_key_is_set_aside(pool: ArqRedis, work: Work, deps: Deps):
    await enqueue(pool, "user-1", "event", job_id="a\0b")
    await enqueue(pool, "user-1", "event", job_id="x" * 200)

    worker = await work()

    assert worker.jobs_retried == 0
    kept = await quarantine(deps)
    assert {one["reason"].partition(":")[0] for one in kept} == {"key"}
    assert len(kept) == 2


async def test_a_job_that_the_worker_does_not_have_is_set_aside(
    pool: ArqRedis, work: Work, deps: Deps
):
    await pool.enqueue_job("recordusage", **GOOD)

    worker = await work()

    assert (worker.jobs_complete, worker.jobs_failed) == (1, 0)
    [kept] = await quarantine(deps)
    assert "record_usage" in kept["reason"]
    assert json.loads(kept["raw"])["k"] == GOOD


@pytest.mark.parametrize("enqueued_ms", [10**18, -(10**18), 10**30, "now"])
async def test_a_job_that_arq_would_die_of_is_set_aside(
    pool: ArqRedis, work: Work, deps: Deps, enqueued_ms: Any
):
    job_id = await enqueue(pool, "user-1", "event")
    raw = in_json({"f": RECORD_USAGE, "a": [], "k": GOOD, "t": None, "et": enqueued_ms})
    await pool.set(job_key_prefix + job_id, raw)

    await work()

    [kept] = await quarantine(deps)
    assert kept["raw"] == raw


async def test_an_unknown_user_is_set_aside_where_users_are_not_made_on_first_use(
    pool: ArqRedis, work: Work, deps: Deps, settings: Settings
):
    loader = DatabaseLoader(deps.database, deps.redis, auto_provision=False, dedupe_ms=60_000)
    async with Quota(deps.redis, prefix=settings.key_prefix, loader=loader) as strict:
        ctx = {
            "deps": replace(deps, quota=strict),
            "job_id": "j-1",
            "job_try": 1,
            "enqueue_time": datetime.now(UTC),
        }
        await record_usage(ctx, "stranger", "event")
        await record_usage(ctx, "stranger", "event")  # the same job once more

    [kept] = await quarantine(deps)
    assert "stranger" in kept["reason"]
    assert await logged(deps) == []
