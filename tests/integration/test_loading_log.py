"""A loader that keeps an index of the log loads what one would that reads all of the log each time."""

from __future__ import annotations

import asyncio
import json
import random
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest
from redis.asyncio import Redis
from redis.asyncio.client import Pipeline

from quota.errors import QuotaUnavailableError
from quota.values import parse_user_id
from service.database import statement
from service.loading import DatabaseLoader
from service.log_index import LogIndex
from service.snapshot import take_snapshot
from service.usage_log import read_entries

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
    from uuid import UUID

    from quota.keys import ShardKeys
    from worker.deps import Deps

USER = parse_user_id("user-1")
AT_MS = 1_750_000_000_000


class StoppingRedis(Redis):
    """A real client that does something of ours after a read of the log, or before entries are fetched."""

    after_read: Callable[[], Awaitable[Any]] | None = None
    before_fetch: Callable[[], Awaitable[Any]] | None = None
    reads = 0
    stop_at = 0

    async def xrange(self, *args: Any, **kwargs: Any) -> Any:
        found = await super().xrange(*args, **kwargs)
        self.reads += 1
        if self.reads == self.stop_at:
            self.stopped.set()
            await asyncio.Event().wait()
        hook, self.after_read = self.after_read, None
        if hook is not None:
            await hook()
        return found

    def stop_after(self, reads: int) -> asyncio.Event:
        """Stop for ever after so many more reads; the event is set then."""
        self.stop_at, self.stopped = self.reads + reads, asyncio.Event()
        return self.stopped

    def pipeline(self, *_: Any, **__: Any) -> Any:
        return StoppingPipeline(self)


class StoppingPipeline(Pipeline):
    def __init__(self, redis: StoppingRedis) -> None:
        super().__init__(redis.connection_pool, redis.response_callbacks, False, None)
        self.redis = redis

    async def execute(self, *args: Any, **kwargs: Any) -> Any:
        hook, self.redis.before_fetch = self.redis.before_fetch, None
        if hook is not None:
            await hook()
        return await super().execute(*args, **kwargs)


@asynccontextmanager
async def stopping_loader(deps: Deps) -> AsyncIterator[tuple[StoppingRedis, DatabaseLoader]]:
    async with StoppingRedis.from_url(deps.settings.quota_redis) as redis:
        yield redis, DatabaseLoader(deps.database, redis, auto_provision=True, dedupe_ms=86_400_000)


def shard_of(deps: Deps) -> ShardKeys:
    return deps.keys.shard_of(USER.id)


async def forget(deps: Deps) -> None:
    shard = shard_of(deps)
    await deps.redis.delete(shard.user_of(USER.id.hex), shard.grants_of(USER.id.hex))


async def loaded(deps: Deps, loader: DatabaseLoader) -> int | None:
    """What the user used, as *loader* puts it into Redis."""
    await forget(deps)
    assert await loader.load(deps.keys, USER, now_ms=0)
    assert await deps.redis.exists(shard_of(deps).user_of(USER.id.hex))
    return (await deps.quota.check("user-1", "tokens")).used


async def apply(deps: Deps) -> None:
    assert await deps.drain.run(seconds_max=5)


async def position_of(deps: Deps) -> str:
    async with deps.database.connection() as connection:
        row = await connection.fetchrow(
            statement("service", "shard_position"), shard_of(deps).index
        )
    assert row is not None
    return str(row["last_entry_id"])


async def set_position(deps: Deps, entry_id: str) -> None:
    async with deps.database.connection() as connection:
        query = "UPDATE usage_shards SET last_entry_id = $2 WHERE shard = $1"
        await connection.execute(query, shard_of(deps).index, entry_id)


async def lose_redis(deps: Deps) -> None:
    keys = [key async for key in deps.redis.scan_iter(f"{deps.keys.prefix}:*", count=1000)]
    await deps.redis.delete(*keys)


async def log(deps: Deps, *lines: Any, **fields: Any) -> str:
    """Put an entry into the log as an application would that admitted these lines."""
    entry = {"v": "1", "e": "1", "t": AT_MS, "c": "0," * len(lines), "r": json.dumps(lines)}
    entry_id: bytes = await deps.redis.xadd(shard_of(deps).log, entry | fields)
    return entry_id.decode()


def line(user: str, amount: int = 1, key: str = "k", number: int = 0) -> list[Any]:
    return [user, "tokens", amount, key, number]


async def test_each_load_adds_what_the_log_got_since_the_last_one(deps: Deps) -> None:
    for count in range(1, 5):
        await deps.quota.record("user-1", "tokens", 10)
        assert await loaded(deps, deps.loader) == 10 * count
    await apply(deps)
    assert await loaded(deps, deps.loader) == 40
    await deps.quota.record("user-1", "tokens", 2)
    assert await loaded(deps, deps.loader) == 42


async def test_what_is_applied_and_trimmed_after_the_log_was_read_counts_once(deps: Deps) -> None:
    async def apply_and_trim() -> None:
        await apply(deps)
        await deps.redis.xtrim(shard_of(deps).log, maxlen=0, approximate=False)

    async with stopping_loader(deps) as (redis, loader):
        await deps.quota.record("user-1", "tokens", 5)
        assert await loaded(deps, loader) == 5
        redis.after_read = apply_and_trim
        assert await loaded(deps, loader) == 5
        await log(deps, line("user-1", 3))
        assert await loaded(deps, loader) == 8


async def test_an_entry_that_is_gone_when_it_is_fetched_makes_the_load_begin_again(
    deps: Deps,
) -> None:
    async def apply_and_trim() -> None:
        await apply(deps)
        await deps.redis.xtrim(shard_of(deps).log, maxlen=0, approximate=False)

    async with stopping_loader(deps) as (redis, loader):
        await deps.quota.record("user-1", "tokens", 5)
        redis.before_fetch = apply_and_trim
        assert await loaded(deps, loader) == 5


async def test_a_postgresql_that_was_set_back_has_its_log_read_from_further_back(
    deps: Deps,
) -> None:
    await deps.quota.record("user-1", "tokens", 5)
    await apply(deps)
    position = await position_of(deps)
    await deps.quota.record("user-1", "tokens", 3)
    assert await loaded(deps, deps.loader) == 8
    await apply(deps)
    await deps.quota.record("user-1", "tokens", 1)
    assert await loaded(deps, deps.loader) == 9

    await set_position(deps, position)
    async with deps.database.connection() as connection:
        await connection.execute("UPDATE usage_counters SET lifetime_used = 5")

    assert await loaded(deps, deps.loader) == 9


async def test_a_redis_that_was_emptied_takes_what_was_not_applied_with_it(deps: Deps) -> None:
    await deps.quota.record("user-1", "tokens", 5)
    await apply(deps)
    await deps.quota.record("user-1", "tokens", 3)
    assert await loaded(deps, deps.loader) == 8

    await lose_redis(deps)
    await deps.quota.record("user-1", "tokens", 1)

    assert await loaded(deps, deps.loader) == 6


async def test_a_log_that_lost_its_tail_is_looked_through_again(deps: Deps) -> None:
    first = await log(deps, line("user-1", 5))
    await log(deps, line("user-1", 3))
    assert await loaded(deps, deps.loader) == 8

    # As after a restart from an append-only file that was cut: nothing tells, but the log itself.
    shard = shard_of(deps)
    kept = await deps.redis.xrange(shard.log, max=first)
    await deps.redis.delete(shard.log)
    await deps.redis.xadd(shard.log, kept[0][1], id=kept[0][0])
    await log(deps, line("user-1", 1))

    assert await loaded(deps, deps.loader) == 6


async def test_entries_that_begin_anew_with_the_same_ids_are_not_taken_for_the_old_ones(
    deps: Deps,
) -> None:
    last = await log(deps, line("other", 5))
    assert await loaded(deps, deps.loader) == 0

    await deps.redis.delete(shard_of(deps).log)
    entry = {"v": "1", "e": "1", "t": AT_MS, "c": "0,", "r": json.dumps([line("user-1", 7)])}
    await deps.redis.xadd(shard_of(deps).log, entry, id=last)

    assert await loaded(deps, deps.loader) == 7


async def test_a_new_epoch_has_the_log_read_anew(deps: Deps) -> None:
    async with stopping_loader(deps) as (redis, loader):
        await log(deps, line("user-1", 5))
        assert await loaded(deps, loader) == 5
        async with deps.database.connection() as connection:
            await connection.execute("UPDATE usage_shards SET epoch = epoch + 1")
        reads = redis.reads

        await loaded(deps, loader)

    assert redis.reads - reads == 2, "once by the old index, once from the stored position"


async def test_the_names_of_one_user_are_all_found_in_whatever_line(deps: Deps) -> None:
    others = [line(f"other-{number}", key=f"o-{number}") for number in range(3)]
    await log(deps, *others, line("user-1", 5))
    await log(deps, *others, line(str(USER.id), 3), *others, line("user-1", 2, number=1))
    await log(deps, *others)

    assert await loaded(deps, deps.loader) == 10


async def test_what_nobody_can_read_leaves_its_neighbours_countable(deps: Deps) -> None:
    good = json.dumps(line("user-1", 5))
    await log(deps, line("user-1", 1))
    for poison in ("7", "[]", '["user-1"]', "[7, 7]", '["user-1", "tokens", -1, "k", 0]', "[[[["):
        await log(deps, 1, 1, r=f"[{poison},{good}]")
        await log(deps, r=poison)
    await deps.redis.xadd(shard_of(deps).log, {"v": "1", "x": "y"})
    await deps.redis.xadd(shard_of(deps).log, {"v": "1", "t": "", "c": "", "r": ""})
    await deps.redis.xadd(shard_of(deps).log, {"v": "", "r": f"[{good}]"})
    await deps.redis.xadd(shard_of(deps).log, {"": ""})
    await log(deps, line("user-1", 1, number=1), c=",")
    await log(deps, line("user-1", 1), line("user-1", 1), c="0,,")

    for _ in range(2):
        assert await loaded(deps, deps.loader) == 1 + 5 * 5
        await log(deps)


async def test_behind_an_entry_of_a_newer_version_nothing_is_guessed(deps: Deps) -> None:
    await deps.quota.record("user-1", "tokens", 5)
    assert await loaded(deps, deps.loader) == 5
    newer = await log(deps, line("user-1", 3), v="9")
    await log(deps, line("user-1", 1))

    for _ in range(2):
        await forget(deps)
        with pytest.raises(QuotaUnavailableError, match="version 9"):
            await deps.loader.load(deps.keys, USER, now_ms=0)
    await set_position(deps, newer)  # a newer worker has applied it

    assert await loaded(deps, deps.loader) == 1


async def test_a_newer_worker_may_apply_its_entry_during_a_load(deps: Deps) -> None:
    newer = await log(deps, line("user-1", 3), v="9")
    await log(deps, line("user-1", 1))
    async with stopping_loader(deps) as (redis, loader):
        redis.after_read = lambda: set_position(deps, newer)

        assert await loaded(deps, loader) == 1


async def test_loads_at_once_share_what_they_read_of_the_log(deps: Deps) -> None:
    shard = shard_of(deps)
    index_users = [parse_user_id(f"crowd-{number}") for number in range(40)]
    await log(deps, *(line(user.text, 5) for user in index_users))
    async with StoppingRedis.from_url(deps.settings.quota_redis) as redis:
        index = LogIndex(deps.database, redis, shard)

        views = await asyncio.gather(*(index.view([user.id]) for user in index_users))

        assert redis.reads == 2, "the first one's, and one that all who came meanwhile share"
    assert [view.lines[0][1] for view in views] == [[number] for number in range(40)]


async def test_a_load_sees_what_was_admitted_while_another_one_read_the_log(deps: Deps) -> None:
    reading, go_on = asyncio.Event(), asyncio.Event()

    async def stop() -> None:
        reading.set()
        await go_on.wait()

    async with StoppingRedis.from_url(deps.settings.quota_redis) as redis:
        index = LogIndex(deps.database, redis, shard_of(deps))
        redis.after_read = stop
        first = asyncio.create_task(index.view([USER.id]))
        await reading.wait()
        await log(deps, line("user-1", 5))
        second = asyncio.create_task(index.view([USER.id]))
        await asyncio.sleep(0)
        go_on.set()

        assert (await first).lines == []
        assert len((await second).lines) == 1


@pytest.mark.parametrize("read", [1, 2])
async def test_a_load_that_is_cancelled_half_way_leaves_nothing_half_known(
    deps: Deps, read: int
) -> None:
    for _ in range(25):  # more than a first read
        await log(deps, line("user-1", 1))
    async with StoppingRedis.from_url(deps.settings.quota_redis) as redis:
        index = LogIndex(deps.database, redis, shard_of(deps))
        stopped = redis.stop_after(read)
        cancelled = asyncio.create_task(index.view([USER.id]))
        await stopped.wait()
        waiting = asyncio.create_task(index.view([USER.id]))
        await asyncio.sleep(0)

        cancelled.cancel()

        assert len((await waiting).lines) == 25


async def test_an_index_that_begins_anew_owes_all_who_wait_a_whole_one(deps: Deps) -> None:
    for _ in range(25):
        await log(deps, line("user-1", 1))
    async with StoppingRedis.from_url(deps.settings.quota_redis) as redis:
        index = LogIndex(deps.database, redis, shard_of(deps))

        def forgetting() -> Iterator[UUID]:
            yield USER.id
            index.forget(index._generation)  # as another load does that found PostgreSQL set back
            stopped.append(redis.stop_after(1))

        stopped: list[asyncio.Event] = []
        views = [
            asyncio.create_task(index.view(users))
            for users in ([USER.id], forgetting(), [USER.id], [USER.id])
        ]
        await asyncio.wait(views[:2])
        async with asyncio.timeout(5):
            await stopped[0].wait()
        views[2].cancel()

        assert len((await views[3]).lines) == 25
        await asyncio.gather(*views, return_exceptions=True)


async def test_new_rules_and_new_users_are_seen_by_the_next_load(
    deps: Deps, apply_tiers: Callable[..., Awaitable[Any]]
) -> None:
    def tiers(most: int) -> dict[str, Any]:
        limits = {"tokens": {"max": most, "per": "month"}}
        return {"default_tier": "free", "tiers": {"free": {"limits": limits}}}

    await deps.quota.record("user-1", "tokens", 5)
    for most in (50, 70):
        await apply_tiers(deps, tiers(most))
        assert await loaded(deps, deps.loader) == 5
        decision = await deps.quota.check("user-1", "tokens")
        assert (decision.limit, decision.used) == (most, 5)
    assert await deps.loader.load(deps.keys, parse_user_id("new"), now_ms=0)
    assert (await deps.quota.balance("new")).tier == "free"


class Shard:
    """A shard's log and position, moved at random; *logged* are the ids of its entries."""

    users = tuple(f"user-{number}" for number in range(12))

    def __init__(self, deps: Deps, draw: random.Random) -> None:
        self.deps, self.draw = deps, draw
        self.name = shard_of(deps).log
        self.logged = ["0-0"]

    async def log(self) -> None:
        for _ in range(self.draw.choice((1, 3, 30))):
            chosen = self.draw.choices(self.users, k=self.draw.randint(0, 6))
            self.logged.append(await log(self.deps, *(line(user) for user in chosen)))

    async def apply(self) -> None:
        place = await self.place()
        await set_position(self.deps, self.draw.choice(self.logged[place : place + 20]))

    async def trim(self) -> None:
        position = await position_of(self.deps)
        await self.deps.redis.xtrim(self.name, minid=position, approximate=False)

    async def set_back(self) -> None:
        oldest = await self.deps.redis.xrange(self.name, count=1)
        if oldest:
            place = self.logged.index(oldest[0][0].decode())
            await set_position(self.deps, self.draw.choice(self.logged[place:]))

    async def lose_tail(self) -> None:
        kept = self.draw.randint(await self.place(), len(self.logged)) + 1
        for lost in self.logged[kept:]:
            await self.deps.redis.xdel(self.name, lost)
        del self.logged[kept:]

    async def place(self) -> int:
        return self.logged.index(await position_of(self.deps))


@pytest.mark.parametrize("seed", range(3))
async def test_an_index_that_is_kept_finds_what_reading_all_of_the_log_finds(
    deps: Deps, seed: int
) -> None:
    draw = random.Random(seed)
    moved = Shard(deps, draw)
    index = LogIndex(deps.database, deps.redis, shard_of(deps))
    ids = [parse_user_id(user).id for user in moved.users]
    steps = [moved.log] * 6 + [moved.apply] * 4 + [moved.trim, moved.set_back, moved.lose_tail]
    for _ in range(60):
        await draw.choice(steps)()
        wanted = draw.sample(ids, draw.choice((1, 2, 10)))

        snapshot = await take_snapshot(deps.database, index, shard_of(deps), wanted)

        position = await position_of(deps)
        run = await read_entries(deps.redis, shard_of(deps), after=position, lines_max=100_000)
        for user_id in wanted:
            found = [event.line for event in snapshot.tail[user_id]]
            assert found == [text for of, text, *_ in run.lines if of == user_id]
