"""Faults of servers and clocks, one at a time, on real servers: what FAULTS.md lists, and what is promised."""

from __future__ import annotations

import asyncio
import json
import struct
import time
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import asyncpg
import pytest
from pydantic import SecretStr
from redis.asyncio import Redis

from quota import Quota
from quota.errors import QuotaUnavailableError
from quota.keys import Keys
from quota.rules import Rules
from quota.values import instant_of, new_key, parse_user_id
from service.database import Database
from service.embedded import EmbeddedServers
from service.settings import Settings
from service.tiers import apply_rules
from worker.deps import Deps, open_deps

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

SECONDS_MAX = 30
USERS = [f"user-{number}" for number in range(5)]
TIERS: dict[str, Any] = {
    "default_tier": "free",
    "tiers": {"free": {"limits": {"tokens": {"max": 1000, "per": "lifetime"}}}},
}


@asynccontextmanager
async def alone(settings: Settings, directory: Path) -> AsyncIterator[Deps]:
    """An installation with a Redis of its own, which may be filled and broken."""
    async with EmbeddedServers(directory, with_postgres=False, durability="always") as servers:
        url = SecretStr(servers.redis_url)
        own = settings.model_copy(update={"quota_redis_url": url, "queue_redis_url": url})
        async with Database(own.sqlalchemy_url, pool_max=1) as database:
            await apply_rules(database, Rules.from_document(TIERS))
        async with open_deps(own) as deps:
            yield deps


async def logged(redis: Redis, keys: Keys, *, after: Sequence[str] = ()) -> dict[str, int]:
    """Units of each user in the logs: what reserves take, and what their ends give back."""
    units: dict[str, int] = {}
    held: dict[str, int] = {}
    for shard, last in zip(keys.shards, after or ["-"] * len(keys.shards), strict=True):
        for _, fields in await redis.xrange(shard.log, min=f"({last}" if after else last):
            lines = json.loads(fields.get(b"r", b"[]"))
            codes = fields[b"k"].decode().split(",") if b"k" in fields else [""] * len(lines)
            for (user, _, amount, key, *_), code in zip(lines, codes, strict=True):
                units[user] = units.get(user, 0) + amount - held.pop(key, 0)
                if code.startswith("h"):
                    held[key] = amount
    return units


async def counted(deps_redis: Redis, keys: Keys) -> dict[str, int]:
    """Units of each user that is in Redis, by the counter that decides: the last double is what is used."""
    found = {}
    for user in USERS:
        user_id = parse_user_id(user).id
        text = await deps_redis.hget(keys.shard_of(user_id).user_of(user_id.hex), "f:tokens")  # type: ignore[misc]
        if text is not None:
            found[user] = int(_double(text[-8:]))
    return found


def _double(text: bytes) -> float:
    value: float = struct.unpack("<d", text)[0]
    return value


async def units(deps: Deps) -> int:
    async with deps.database.connection() as connection:
        query = "SELECT coalesce(sum(amount), 0)::bigint FROM usage_logs"
        return int(await connection.fetchval(query))


async def use(deps: Deps, rounds: int) -> None:
    for number in range(rounds):
        for user in USERS:
            await deps.quota.consume(user, "tokens", 1 + number % 3)
        async with deps.quota.reserve(USERS[number % 5], "tokens", 4) as hold:
            if number % 2:
                await hold.commit(3)


async def test_at_every_cut_of_the_append_only_file_counters_are_what_the_log_has(
    settings: Settings, open_tmp_dir: Path
) -> None:
    keys = Keys(settings.key_prefix, settings.shards)
    async with alone(settings, open_tmp_dir / "whole") as deps:
        file = open_tmp_dir / "whole" / "redis" / "appendonly.aof"
        await use(deps, 2)
        await deps.drain.run(seconds_max=10)
        for user in USERS:  # they are loaded anew, on what PostgreSQL has of them
            user_id = parse_user_id(user).id
            await deps.redis.delete(keys.shard_of(user_id).user_of(user_id.hex))
            await deps.quota.check(user, "tokens")
        base = await counted(deps.redis, keys)
        after = [
            (await deps.redis.xinfo_stream(shard.log))["last-generated-id"].decode()
            if await deps.redis.exists(shard.log)
            else "0-0"
            for shard in keys.shards
        ]
        first = file.stat().st_size
        await use(deps, 6)
    written = file.read_bytes()

    seen = set()
    for number in range(6):
        cut = len(written) - 1 - (len(written) - first) * number**2 // 30
        directory = open_tmp_dir / f"cut-{number}"
        (directory / "redis").mkdir(parents=True)
        directory.chmod(0o711)
        (directory / "redis" / "appendonly.aof").write_bytes(written[:cut])
        async with (
            EmbeddedServers(directory, with_postgres=False) as servers,
            Redis.from_url(servers.redis_url) as redis,
        ):
            found, log = await counted(redis, keys), await logged(redis, keys, after=after)
        assert found == {user: base[user] + log.get(user, 0) for user in USERS}
        seen.add(sum(found.values()))

    assert sum(base.values()) > 0
    assert len(seen) > 3


async def test_a_redis_at_its_memory_limit_answers_unavailable_and_does_nothing_by_half(
    settings: Settings, open_tmp_dir: Path
) -> None:
    async with alone(settings, open_tmp_dir / "full") as deps:
        await use(deps, 3)
        before = await counted(deps.redis, deps.keys)
        await deps.redis.config_set("maxmemory", 1)

        decision = await deps.quota.consume("user-1", "tokens", 1)
        held = await deps.quota.reserve("user-2", "tokens", 1)
        with pytest.raises(QuotaUnavailableError):
            await deps.quota.record("user-3", "tokens", 1)
        applied = await deps.drain.run(seconds_max=10)

        assert (decision.code, held.decision.code) == ("unavailable", "unavailable")
        assert applied > 0
        assert await units(deps) == sum(before.values())
        assert await counted(deps.redis, deps.keys) == before
        assert await logged(deps.redis, deps.keys) == before
        await deps.redis.config_set("maxmemory", 0)
        assert await deps.quota.consume("user-1", "tokens", 1)
        assert (await deps.redis.info("stats"))["evicted_keys"] == 0


async def test_a_connection_that_is_cut_in_the_middle_of_a_transaction_applies_once(
    deps: Deps, database_url: str
) -> None:
    await deps.quota.record("user-1", "tokens", 5)
    await deps.drain.run(seconds_max=5)
    await deps.quota.record("user-1", "tokens", 7)
    other = await asyncpg.connect(database_url)
    try:
        async with other.transaction():
            await other.execute("LOCK TABLE usage_logs IN EXCLUSIVE MODE")
            drain = asyncio.create_task(deps.drain.run(seconds_max=5))
            async with asyncio.timeout(SECONDS_MAX):
                while not await other.fetchval(
                    "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity "
                    "WHERE datname = current_database() AND wait_event_type = 'Lock'"
                ):
                    pass
            with pytest.raises(ExceptionGroup):
                await drain
    finally:
        await other.close()

    await deps.drain.run(seconds_max=5)

    assert await units(deps) == 12
    assert (await deps.quota.check("user-1", "tokens")).used == 12


@pytest.mark.parametrize("off_s", [-3600, -30, 30, 3600])
async def test_the_clock_of_the_server_decides_whatever_that_of_the_caller_says(
    deps: Deps, off_s: int
) -> None:
    wrong_ms = time.time_ns() // 1_000_000 + off_s * 1000
    key = new_key(now_ms=wrong_ms)  # as a client makes it whose clock is off
    seconds, _ = await deps.redis.time()

    decision = await deps.quota.consume("user-1", "event", 1, key=key)
    again = await deps.quota.consume("user-1", "event", 1, key=key)
    await deps.drain.run(seconds_max=5)

    async with deps.database.connection() as connection:
        [row] = await connection.fetch("SELECT id, created_at FROM usage_logs")
    assert abs(decision.now_ms - int(seconds) * 1000) < SECONDS_MAX * 1000 / 2
    assert row["created_at"] == instant_of(decision.now_ms)
    assert str(row["id"]) == key
    assert (again.replayed, again.used) == (True, 1)
    assert decision.resets_at is not None
    assert decision.resets_at - instant_of(decision.now_ms) <= timedelta(days=31)


async def test_scripts_that_are_flushed_all_the_time_fail_no_call(deps: Deps) -> None:
    done = asyncio.Event()
    flushes = 0

    async def flush() -> None:
        nonlocal flushes
        while not done.is_set():
            await deps.redis.script_flush()
            flushes += 1

    async def consume(user: str) -> set[str]:
        return {(await deps.quota.consume(user, "tokens")).code for _ in range(40)}

    flushing = asyncio.create_task(flush())
    codes = await asyncio.gather(*(consume(user) for user in USERS * 4))
    done.set()
    await flushing
    while await deps.drain.run(seconds_max=5):
        pass

    assert set().union(*codes) == {"ok"}
    assert flushes > 10
    assert await units(deps) == 40 * 4 * len(USERS)


async def test_a_log_that_cannot_be_written_takes_no_units_from_anybody(deps: Deps) -> None:
    await deps.quota.consume("user-1", "tokens", 5)
    await deps.drain.run(seconds_max=5)
    shard = deps.keys.shard_of(parse_user_id("user-1").id)
    log = await deps.redis.dump(shard.log)
    await deps.redis.set(shard.log, "x")

    refused = [await deps.quota.consume("user-1", "tokens") for _ in range(3)]
    held = await deps.quota.reserve("user-1", "tokens")
    checked = await deps.quota.check("user-1", "tokens")
    await deps.redis.restore(shard.log, 0, log, replace=True)
    decision = await deps.quota.consume("user-1", "tokens")
    await deps.drain.run(seconds_max=5)

    assert {one.code for one in [*refused, held.decision]} == {"unavailable"}
    assert (checked.used, decision.used) == (5, 6)
    assert await units(deps) == 6


async def test_two_hundred_clients_whose_server_restarts_come_back_with_a_few_connections_each(
    settings: Settings, open_tmp_dir: Path
) -> None:
    clients = 200
    async with alone(settings, open_tmp_dir / "storm") as deps:
        url = deps.settings.quota_redis
        quotas = [
            Quota.from_url(url, prefix=settings.key_prefix, loader=deps.loader)
            for _ in range(clients)
        ]
        await asyncio.gather(*(quota.consume("user-1", "tokens") for quota in quotas))
    away = await asyncio.gather(*(quota.check("user-1", "tokens") for quota in quotas * 3))

    async with EmbeddedServers(open_tmp_dir / "storm", with_postgres=False) as servers:
        assert servers.redis_url == url
        back = await asyncio.gather(*(quota.consume("user-1", "tokens") for quota in quotas * 3))
        async with Redis.from_url(url) as redis:
            made = (await redis.info("stats"))["total_connections_received"]
        await asyncio.gather(*(quota.close() for quota in quotas))

    assert {decision.code for decision in away} == {"unavailable"}
    assert {decision.code for decision in back} == {"ok"}
    assert {decision.used for decision in back} == set(range(clients + 1, 4 * clients + 1))
    assert made <= 2 * clients + 10


async def test_a_log_that_waits_longer_than_any_key_lives_is_applied_whole(deps: Deps) -> None:
    await deps.quota.consume("user-1", "tokens", 3, key="k")
    held = await deps.quota.reserve("user-1", "tokens", 5, ttl=24 * 3600)
    await held.commit(4)
    open_ = await deps.quota.reserve("user-2", "tokens", 7, ttl=24 * 3600)

    expired = set()
    async for key in deps.redis.scan_iter(f"{deps.keys.prefix}:*", count=1000):
        if await deps.redis.pttl(key) > 0:  # its time comes all at once, with nothing applied yet
            await deps.redis.delete(key)
            expired.add(key.decode().split(":")[2])
    again = await deps.quota.consume("user-1", "tokens", 3, key="k")
    assert expired >= {"u", "g", "marks"}
    while await deps.drain.run(seconds_max=5):
        pass

    assert await units(deps) == 3 + 4
    assert not again.replayed  # the key is remembered by PostgreSQL, which takes it back
    assert (await deps.quota.check("user-1", "tokens")).used == 3 + 4
    assert (await open_.commit(6)).amount == 6
    assert (await deps.quota.check("user-2", "tokens")).used == 6


async def test_a_hot_user_is_one_write_of_a_row_for_each_run(deps: Deps) -> None:
    async with deps.database.connection() as connection:
        await connection.execute(
            "CREATE TABLE writes (feature text);"
            "CREATE FUNCTION note_write() RETURNS trigger LANGUAGE plpgsql AS"
            " $$ BEGIN INSERT INTO writes VALUES (NEW.feature); RETURN NULL; END $$;"
            "CREATE TRIGGER writes AFTER INSERT OR UPDATE ON usage_counters"
            " FOR EACH ROW EXECUTE FUNCTION note_write()"
        )
    calls = [{"user_id": "user-1", "feature": "tokens"}] * 900
    calls[::9] = [{"user_id": f"user-{number % 100}", "feature": "event"} for number in range(100)]

    decisions = await deps.quota.consume_many(calls)
    await deps.drain.run(seconds_max=10)

    assert {decision.code for decision in decisions} == {"ok"}
    async with deps.database.connection() as connection:
        [hot] = await connection.fetch("SELECT count(*) FROM writes WHERE feature = 'tokens'")
    assert hot["count"] == 1
