"""Redis has no room on its disk, loses its place to a replica, or gives an application few rights."""

from __future__ import annotations

import asyncio
import resource
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from uuid import uuid4

import pytest
from pydantic import SecretStr
from redis.asyncio import Redis
from redis.exceptions import NoPermissionError

from quota import Quota
from quota.rules import Rules
from quota.values import parse_user_id
from service.database import Database
from service.embedded import EmbeddedServers
from service.settings import Settings
from service.tiers import apply_rules
from tests.integration.test_faults import counted, logged, units, use
from worker.deps import Deps, open_deps
from worker.load_server import LoadServer

SECONDS_MAX = 30
TIERS: dict[str, Any] = {
    "default_tier": "free",
    "tiers": {"free": {"limits": {"tokens": {"max": 1000, "per": "lifetime"}}}},
}


@asynccontextmanager
async def on(servers: EmbeddedServers, settings: Settings) -> AsyncIterator[Deps]:
    """An installation on the Redis of *servers* and the database of *settings*."""
    url = SecretStr(servers.redis_url)
    own = settings.model_copy(update={"quota_redis_url": url, "queue_redis_url": url})
    async with Database(own.sqlalchemy_url, pool_max=1) as database:
        await apply_rules(database, Rules.from_document(TIERS))
    async with open_deps(own) as deps:
        yield deps


def bound_files(servers: EmbeddedServers, size: int) -> None:
    """Let no file of this Redis grow past *size*: to it that is a disk without room."""
    assert servers.redis is not None
    assert servers.redis.process is not None
    _, most = resource.prlimit(servers.redis.process.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(servers.redis.process.pid, resource.RLIMIT_FSIZE, (size, most))


async def test_a_redis_whose_disk_is_full_admits_nothing_and_loses_nothing(
    settings: Settings, open_tmp_dir: Path
) -> None:
    directory = open_tmp_dir / "full-disk"
    async with (
        EmbeddedServers(directory, with_postgres=False) as servers,
        on(servers, settings) as deps,
    ):
        await use(deps, 3)
        bound_files(servers, (directory / "redis" / "appendonly.aof").stat().st_size)
        async with asyncio.timeout(SECONDS_MAX):
            # What it takes before it finds out, it has in memory and writes later.
            while await deps.quota.consume("user-1", "tokens", 1):
                pass
        admitted = await counted(deps.redis, deps.keys)
        denied = await deps.quota.consume("user-1", "tokens", 1)
        assert await deps.drain.run(seconds_max=10) > 0
        assert await units(deps) == sum(admitted.values())
        assert await counted(deps.redis, deps.keys) == admitted

        bound_files(servers, resource.RLIM_INFINITY)
        async with asyncio.timeout(SECONDS_MAX):
            while not await deps.quota.consume("user-1", "tokens", 1):
                pass
        await deps.drain.run(seconds_max=10)

        assert denied.code == "unavailable"
        assert await counted(deps.redis, deps.keys) == await logged(deps.redis, deps.keys)
        assert await units(deps) == sum(admitted.values()) + 1


@asynccontextmanager
async def two_servers(directory: Path) -> AsyncIterator[tuple[EmbeddedServers, EmbeddedServers]]:
    """A Redis, and a replica that has all of it."""
    async with (
        EmbeddedServers(directory / "1", with_postgres=False, tcp=True) as one,
        EmbeddedServers(directory / "2", with_postgres=False, tcp=True) as two,
        Redis.from_url(one.redis_url) as primary,
        Redis.from_url(two.redis_url) as replica,
    ):
        address = urlsplit(one.redis_url)
        await replica.config_set("masterauth", str(address.password))
        await replica.replicaof(str(address.hostname), address.port)
        async with asyncio.timeout(SECONDS_MAX):
            while (await replica.info("replication"))["master_link_status"] != "up":
                pass
        assert await primary.wait(1, SECONDS_MAX * 1000) == 1
        yield one, two


async def test_a_replica_that_is_promoted_while_the_old_primary_admits_costs_what_was_not_applied(
    settings: Settings, open_tmp_dir: Path
) -> None:
    """Both sides admit. Of a limit of 1000, 1050 units are admitted: 50 are lost with the old side."""
    async with (
        two_servers(open_tmp_dir / "promoted") as (one, two),
        on(one, settings) as old,
        Redis.from_url(two.redis_url) as replica,
    ):
        assert await old.quota.consume("user-1", "tokens", 400)
        await old.drain.run(seconds_max=5)
        assert await old.redis.wait(1, SECONDS_MAX * 1000) == 1
        await replica.replicaof("NO", "ONE")
        assert await old.quota.consume("user-1", "tokens", 100)
        await old.drain.run(seconds_max=5)
        assert await old.quota.consume("user-1", "tokens", 50)  # nobody applies these

        async with on(two, settings) as new:
            before_it_is_noticed = await new.quota.consume("user-1", "tokens", 4)
            await new.drain.run(seconds_max=5)
            rest = await new.quota.consume("user-1", "tokens", 496)
            beyond = await new.quota.consume("user-1", "tokens", 1)
            await new.drain.run(seconds_max=5)

            assert before_it_is_noticed.used == 404
            assert (rest.allowed, rest.used) == (True, 1000)
            assert beyond.code == "limit_exceeded"
            assert await units(new) == 1000


async def test_a_primary_that_lost_its_replica_stops_to_admit_where_it_is_set_to(
    settings: Settings, open_tmp_dir: Path
) -> None:
    async with (
        two_servers(open_tmp_dir / "parted") as (one, two),
        on(one, settings) as deps,
        Redis.from_url(two.redis_url) as replica,
    ):
        await deps.redis.config_set("min-replicas-max-lag", 1)
        await deps.redis.config_set("min-replicas-to-write", 1)
        async with asyncio.timeout(SECONDS_MAX):
            while not await deps.quota.consume("user-1", "tokens", 1):
                pass
        await replica.replicaof("NO", "ONE")

        async with asyncio.timeout(SECONDS_MAX):
            while (decision := await deps.quota.consume("user-1", "tokens", 1)).allowed:
                pass

        assert decision.code == "unavailable"
        assert await counted(deps.redis, deps.keys) == await logged(deps.redis, deps.keys)


@pytest.fixture
async def few_rights(deps: Deps, settings: Settings) -> AsyncIterator[Redis]:
    """A client of a Redis user that has the rights of docs/deployment.md."""
    name = f"app-{uuid4().hex[:8]}"
    rights = [f"~{deps.keys.prefix}:*", "+@all", "-@dangerous"]
    await deps.redis.execute_command("ACL", "SETUSER", name, "on", ">secret", *rights)
    path = urlsplit(settings.quota_redis).path
    async with Redis(unix_socket_path=path, username=name, password="secret") as redis:
        yield redis
    await deps.redis.execute_command("ACL", "DELUSER", name)


async def test_an_application_needs_no_right_to_empty_or_change_redis(
    deps: Deps, few_rights: Redis
) -> None:
    server = LoadServer(deps.redis, deps.keys, deps.loader, deps.metrics)
    serving = asyncio.create_task(server.serve())
    async with Quota(few_rights, prefix=deps.keys.prefix) as quota:
        decision = await quota.consume("user-1", "tokens", 5, key="one")
        async with quota.reserve("user-1", "tokens", 3) as hold:
            await hold.commit(2)
        await quota.record("user-1", {"tokens": 1, "event": 1})
        refund = await quota.refund("one", user_id="user-1")
        used = (await quota.check("user-1", "tokens")).used
        explained = await quota.explain("user-1", "tokens")
        balance = await quota.balance("user-1")
    serving.cancel()
    await asyncio.gather(serving, return_exceptions=True)

    assert decision
    assert (refund.amount, used) == (5, 3)
    assert explained.as_dict()
    assert balance.limits


@pytest.mark.parametrize(
    "words",
    [
        ["FLUSHALL"], ["FLUSHDB"], ["KEYS", "*"], ["CONFIG", "SET", "maxmemory-policy", "allkeys-lru"],
        ["DEBUG", "SLEEP", "1"], ["SHUTDOWN"], ["REPLICAOF", "NO", "ONE"], ["SWAPDB", "0", "1"],
        ["GET", "of-somebody-else"], ["EVAL", "return redis.call('FLUSHALL')", "0"],
    ],
    ids=lambda words: words[0],
)  # fmt: skip
async def test_what_an_application_must_not_do_redis_refuses(
    deps: Deps, few_rights: Redis, words: list[str]
) -> None:
    await deps.quota.consume("user-1", "tokens", 5)

    with pytest.raises(Exception, match=r"NOPERM|no permission|can't run|ACL") as refused:
        await few_rights.execute_command(*words)  # type: ignore[no-untyped-call]

    assert isinstance(refused.value, NoPermissionError) or words[0] == "EVAL"
    user_id = parse_user_id("user-1").id
    assert await deps.redis.exists(deps.keys.shard_of(user_id).user_of(user_id.hex))
