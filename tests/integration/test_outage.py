"""Redis can not be reached: nothing is admitted, or what the rules allow, and that is recorded afterwards."""

from __future__ import annotations

import asyncio
import logging
import shutil
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import psutil
import pytest
from prometheus_client import generate_latest
from pydantic import SecretStr

from quota import KeyConflictError, Quota, QuotaError, QuotaUnavailableError
from quota.loading import RequestLoader
from quota.outage import TALLY
from quota.rules import Rules
from quota.values import instant_ms
from service.database import Database
from service.embedded import EmbeddedServers
from service.tiers import apply_rules
from worker.deps import Deps, open_deps
from worker.tidy import watch_logs

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence

    from service.settings import Settings

    ApplyTiers = Callable[[Deps, dict[str, Any]], Awaitable[Rules]]

TIMEOUT_S = 0.25  # of a call to Redis; what waits longer than a few of them hangs
HANGS_S = 10.0
ALLOWED: dict[str, Any] = {
    "default_tier": "free",
    "features": {
        "event": {"on_outage": {"policy": "allow", "max": 5}},
        "image": {"price": "1", "on_outage": {"policy": "allow", "max": 5}},
    },
    "tiers": {
        "free": {
            "credits": {"amount": "3", "every": "month"},
            "limits": {
                "event": {"max": 100, "per": "day"},
                "image": {"max": 2, "per": "day"},
                "tokens": {"max": "unlimited", "per": "month"},
            },
        },
        "pro": {
            "on_outage": {"policy": "allow", "max": 50},
            "limits": {"*": {"max": "unlimited", "per": "month"}},
        },
    },
}


class Line:
    """A way to Redis over TCP that can be cut: requests, or their answers, get lost without a word."""

    def __init__(self, upstream: str) -> None:
        self._upstream = upstream
        self.loses: str | None = None

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        redis_reader, redis_writer = await asyncio.open_unix_connection(self._upstream)
        ways = [
            asyncio.create_task(self._pass("requests", reader, redis_writer)),
            asyncio.create_task(self._pass("answers", redis_reader, writer)),
        ]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)
            for one in (redis_writer, writer):
                one.close()
                with suppress(OSError):
                    await one.wait_closed()

    async def _pass(
        self, what: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        while found := await reader.read(1 << 20):
            if self.loses != what:
                writer.write(found)


@asynccontextmanager
async def cable(deps: Deps) -> AsyncIterator[tuple[Line, str]]:
    line = Line(urlsplit(deps.settings.quota_redis).path)
    async with await asyncio.start_server(line.serve, "127.0.0.1", 0) as server:
        yield line, f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}/0"


def client(deps: Deps, url: str, **options: Any) -> Quota:
    options = {"loader": deps.loader, "timeout_s": TIMEOUT_S, **options}
    return Quota.from_url(url, prefix=deps.keys.prefix, **options)


Stage = tuple[Deps, Line, Quota]


@pytest.fixture
async def stage(deps: Deps, apply_tiers: ApplyTiers) -> AsyncIterator[Stage]:
    """A client whose way to Redis can be cut, on `ALLOWED`."""
    await apply_tiers(deps, ALLOWED)
    async with cable(deps) as (line, url), client(deps, url) as quota:
        yield deps, line, quota
        line.loses = None


async def known(quota: Quota, user: str) -> None:
    """Return once the client has seen a decision on this user; a machine at its limit may be slow."""
    async with asyncio.timeout(HANGS_S):
        while not await quota.check(user, "event"):
            pass


async def recorded(quota: Quota) -> None:
    """Return once everything that was admitted without Redis is recorded."""
    async with asyncio.timeout(HANGS_S):
        while quota.unrecorded:  # noqa: ASYNC110 -- nothing outside tells of it
            await asyncio.sleep(0.01)


async def stored(deps: Deps) -> list[tuple[str, int]]:
    """Every record of PostgreSQL: key and amount."""
    while await deps.drain.run(seconds_max=HANGS_S):
        pass
    async with deps.database.connection() as connection:
        rows = await connection.fetch("SELECT coalesce(key, id::text), amount FROM usage_logs")
    return sorted(map(tuple, rows))


async def counted(deps: Deps, user: str, feature: str) -> tuple[int | None, int]:
    """Units used by what Redis has, and by what PostgreSQL has."""
    decision = await deps.quota.check(user, feature)
    async with deps.database.connection() as connection:
        in_postgres = await connection.fetchval(
            """SELECT coalesce(sum(usage_count), 0)::bigint FROM feature_usage f
               JOIN users u ON u.id = f.user_id WHERE u.external_id = $1 AND feature_name = $2""",
            user,
            feature,
        )
    return decision.used, in_postgres


def codes(decisions: Sequence[Any]) -> list[tuple[str, bool]]:
    return [(decision.code, decision.local) for decision in decisions]


OK, AWAY = ("ok", True), ("unavailable", False)


async def test_nothing_is_admitted_unless_the_rules_say_so(deps: Deps) -> None:
    async with cable(deps) as (line, url), client(deps, url) as quota:
        await known(quota, "user-1")
        line.loses = "requests"

        async with asyncio.timeout(HANGS_S):
            answers: Sequence[Any] = await asyncio.gather(
                quota.consume("user-1", "event"),
                quota.check("user-1", "event"),
                quota.reserve("user-1", "event"),
                quota.record("user-1", "event"),
                return_exceptions=True,
            )

        *decisions, hold, refused = answers
        assert codes([*decisions, hold.decision]) == [AWAY] * 3
        assert isinstance(refused, QuotaUnavailableError)
        assert quota.unrecorded == 0


async def test_what_is_allowed_is_admitted_up_to_the_bound_and_recorded_once(stage: Stage) -> None:
    deps, line, quota = stage
    await known(quota, "user-1")
    await deps.quota.consume("user-1", "event", 10, key="before")
    line.loses = "requests"

    async with asyncio.timeout(HANGS_S):
        first = await quota.consume("user-1", "event", 3, key="a", metadata={"x": 1})
        decisions = await asyncio.gather(
            quota.consume("user-1", "event", 3, key="b"),
            quota.check("user-1", "event", 2),
            quota.check("user-1", "event", 3),
            quota.consume("user-2", "event", 5, key="a"),
        )
        receipt = await quota.record("user-1", "event", 2, key="c")
        with pytest.raises(QuotaUnavailableError):
            await quota.record("user-1", "event", key="d")

    assert codes([first, *decisions]) == [OK, AWAY, OK, AWAY, OK]
    assert (receipt.recorded, receipt.key) == (1, "c")
    assert codes(list(receipt.decisions)) == [OK]
    assert quota.unrecorded == 3

    line.loses = None
    await recorded(quota)

    assert await stored(deps) == [("a", 3), ("a", 5), ("before", 10), ("c", 2)]
    assert await counted(deps, "user-1", "event") == (15, 15)
    assert await counted(deps, "user-2", "event") == (5, 5)
    await watch_logs(deps)
    assert b"allotment_outage_admitted_total 3.0" in generate_latest(deps.registry)


async def test_the_bound_is_free_again_once_all_is_recorded(stage: Stage) -> None:
    deps, line, quota = stage
    for key in ("a", "b"):
        await known(quota, "user-1")
        line.loses = "requests"
        decision = await quota.consume("user-1", "event", 5, key=key)
        assert codes([decision]) == [OK]
        line.loses = None
        await recorded(quota)

    assert await stored(deps) == [("a", 5), ("b", 5)]


async def test_a_call_that_was_counted_though_its_answer_was_lost_is_counted_once(
    stage: Stage,
) -> None:
    deps, line, quota = stage
    await known(quota, "user-1")
    line.loses = "answers"

    decisions = [
        await quota.consume("user-1", "event", 4, key="own"),
        await quota.consume("user-1", "image"),
    ]
    receipt = await quota.record("user-2", {"event": 1, "image": 1}, key="several")
    reached = {await deps.redis.xlen(shard.log) for shard in deps.keys.shards}
    line.loses = None
    await recorded(quota)

    assert codes(decisions) == [OK, OK]
    assert receipt.recorded == 2
    assert reached != {0}  # Redis had carried them out
    assert [amount for _, amount in await stored(deps)] == [1, 4, 1, 1]
    assert await counted(deps, "user-1", "event") == (4, 4)
    assert await counted(deps, "user-1", "image") == (1, 1)
    assert await counted(deps, "user-2", "event") == (1, 1)
    repeat = await deps.quota.consume("user-1", "event", 4, key="own")
    assert (repeat.replayed, repeat.used) == (True, 4)


async def test_a_repeat_within_the_outage_is_answered_as_the_first_and_counted_once(
    stage: Stage,
) -> None:
    deps, line, quota = stage
    await known(quota, "user-1")
    line.loses = "requests"

    first = await quota.consume("user-1", "event", 5, key="k")
    again = await quota.consume("user-1", "event", 5, key="k")
    with pytest.raises(KeyConflictError):
        await quota.consume("user-1", "event", 1, key="k")
    line.loses = None
    await recorded(quota)

    assert (first.replayed, again.replayed) == (False, True)
    assert codes([first, again]) == [OK, OK]
    assert await stored(deps) == [("k", 5)]


async def test_holds_are_denied_and_many_calls_are_each_decided(stage: Stage) -> None:
    deps, line, quota = stage
    await known(quota, "user-1")
    line.loses = "requests"

    async with asyncio.timeout(HANGS_S):
        hold = await quota.reserve("user-1", "event")
        calls: list[dict[str, Any]] = [
            {"user_id": "user-1", "feature": "event", "amount": 3, "key": "a"},
            {"user_id": "user-1", "feature": "event", "amount": 3, "key": "b"},
            {"user_id": "user-1", "feature": "tokens", "key": "c"},
            {"user_id": "user-2", "feature": "event", "amount": 2, "key": "d"},
            {"user_id": "user-1", "feature": "event", "amount": 2, "key": "a"},
        ]
        answers = await quota.consume_many(calls)
    line.loses = None
    await recorded(quota)

    assert codes([hold.decision]) == [AWAY]
    assert isinstance(answers[4], KeyConflictError)
    decisions = [answer for answer in answers if not isinstance(answer, QuotaError)]
    assert codes(decisions) == [OK, AWAY, AWAY, OK]
    assert await stored(deps) == [("a", 3), ("d", 2)]


async def test_a_tier_has_its_own_word_and_who_was_never_seen_gets_the_strictest(
    stage: Stage,
) -> None:
    deps, line, quota = stage
    for user in ("pro-1", "free-1"):
        await known(quota, user)
    async with deps.database.connection() as connection:
        await connection.execute("UPDATE users SET tier = 'pro' WHERE external_id = 'pro-1'")
    await deps.redis.delete(
        *[key async for key in deps.redis.scan_iter(f"{deps.keys.prefix}:*:[ug]:*")]
    )
    for user in ("pro-1", "free-1"):
        await known(quota, user)
    line.loses = "requests"

    decisions = await asyncio.gather(
        quota.consume("pro-1", "event", 50),
        quota.consume("pro-1", "tokens", 50),
        quota.consume("free-1", "event", 5),
        quota.consume("free-1", "event", 1),
        quota.consume("free-1", "tokens"),
        quota.consume("never-seen", "event", 5),
        quota.consume("never-seen", "event", 1),
        quota.consume("never-seen", "tokens"),
        quota.consume("free-1", "image", 3),  # its hard limit is two
        quota.consume("free-1", "image", 2),
    )
    line.loses = None
    await recorded(quota)

    assert codes(decisions) == [OK, OK, OK, AWAY, AWAY, OK, AWAY, AWAY, AWAY, OK]
    assert sum(amount for _, amount in await stored(deps)) == 112


async def test_a_record_keeps_the_instant_at_which_it_was_admitted(stage: Stage) -> None:
    deps, line, quota = stage
    await known(quota, "user-1")
    line.loses = "requests"
    await quota.consume("user-1", "event", key="by the clock")
    earlier = datetime(2026, 1, 2, 3, tzinfo=UTC)
    await quota.consume("user-1", "event", key="told", occurred_at=earlier)
    seconds, micros = await deps.redis.time()
    returned_ms = seconds * 1000 + micros // 1000

    line.loses = None
    await recorded(quota)

    assert len(await stored(deps)) == 2
    async with deps.database.connection() as connection:
        rows = await connection.fetch("SELECT key, created_at, arrived_at FROM usage_logs")
    created = {row["key"]: row["created_at"] for row in rows}
    assert instant_ms(created["by the clock"]) <= returned_ms
    assert created["told"] == earlier
    assert all(instant_ms(row["arrived_at"]) >= returned_ms for row in rows)


async def test_credits_that_run_out_in_an_outage_are_overage_afterwards(stage: Stage) -> None:
    deps, line, quota = stage
    await known(quota, "user-1")
    await deps.quota.consume("user-1", "image", 2)
    line.loses = "requests"

    decision = await quota.consume("user-1", "image", 2, key="k")
    line.loses = None
    await recorded(quota)

    assert decision.as_dict()["local"] is True
    assert (await deps.quota.balance("user-1")).as_dict()["overage"] == "1"
    assert await counted(deps, "user-1", "image") == (4, 0)  # nothing is applied so far


async def test_each_process_has_a_bound_of_its_own(deps: Deps, apply_tiers: ApplyTiers) -> None:
    await apply_tiers(deps, ALLOWED)
    async with cable(deps) as (line, url), client(deps, url) as one, client(deps, url) as other:
        for quota in (one, other):
            await known(quota, "user-1")
        line.loses = "requests"

        decisions = await asyncio.gather(
            *(quota.consume("user-1", "event", n) for quota in (one, other) for n in (5, 1))
        )
        line.loses = None
        await recorded(one)
        await recorded(other)

    assert codes(decisions) == [OK, AWAY, OK, AWAY]
    assert [amount for _, amount in await stored(deps)] == [5, 5]


async def test_who_keeps_records_himself_admits_nothing(
    deps: Deps, apply_tiers: ApplyTiers
) -> None:
    await apply_tiers(deps, ALLOWED)
    async with cable(deps) as (line, url), client(deps, url, on_outage=False) as quota:
        await known(quota, "user-1")
        line.loses = "requests"

        with pytest.raises(QuotaUnavailableError):
            await quota.record("user-1", "event")


async def test_a_user_who_can_not_be_loaded_is_no_outage_of_redis(
    deps: Deps, apply_tiers: ApplyTiers
) -> None:
    await apply_tiers(deps, ALLOWED)
    nobody_answers = RequestLoader(deps.redis, timeout_s=0.05)
    async with Quota(deps.redis, prefix=deps.keys.prefix, loader=nobody_answers) as quota:
        await deps.quota.check("user-1", "event")
        await known(quota, "user-1")

        assert codes([await quota.consume("cold", "event")]) == [AWAY]


async def test_closing_records_what_waits(deps: Deps, apply_tiers: ApplyTiers) -> None:
    await apply_tiers(deps, ALLOWED)
    async with cable(deps) as (line, url):
        quota = client(deps, url)
        await known(quota, "user-1")
        line.loses = "requests"
        await quota.consume("user-1", "event", 2, key="k")
        line.loses = None

        await quota.close()

    assert await stored(deps) == [("k", 2)]


async def test_closing_without_redis_ends_in_time_and_names_what_is_lost(
    deps: Deps, apply_tiers: ApplyTiers, caplog: pytest.LogCaptureFixture
) -> None:
    await apply_tiers(deps, ALLOWED)
    async with cable(deps) as (line, url):
        quota = client(deps, url)
        await known(quota, "user-1")
        line.loses = "requests"
        await asyncio.gather(*(quota.consume("user-1", "event", key=f"key-{n}") for n in (1, 2)))

        with caplog.at_level(logging.ERROR, logger="quota"):
            async with asyncio.timeout(HANGS_S):
                await quota.close()

    assert "2 records that were admitted without Redis could not be recorded" in caplog.text
    assert "'key-1' 'key-2'" in caplog.text
    assert quota.unrecorded == 0


async def test_a_key_that_redis_knows_for_another_record_is_said_to_be_lost(
    stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    deps, line, quota = stage
    await known(quota, "user-1")
    await deps.quota.consume("user-1", "event", 1, key="taken")
    line.loses = "requests"
    assert codes([await quota.consume("user-1", "event", 2, key="taken")]) == [OK]
    await quota.consume("user-1", "event", 3, key="free")

    line.loses = None
    with caplog.at_level(logging.ERROR, logger="quota"):
        await recorded(quota)

    assert "can not be recorded: key 'taken'" in caplog.text
    assert await stored(deps) == [("free", 3), ("taken", 1)]


@pytest.fixture
def own_servers(open_tmp_dir: Path) -> Iterator[EmbeddedServers]:
    """A Redis of this test alone, which it may kill."""
    path = open_tmp_dir / "outage"
    with EmbeddedServers(path, durability="always", with_postgres=False) as servers:
        yield servers
    shutil.rmtree(path, ignore_errors=True)


def own_deps(settings: Settings, servers: EmbeddedServers) -> AbstractAsyncContextManager[Deps]:
    own = {"quota_redis_url": SecretStr(servers.redis_url)}
    return open_deps(settings.model_copy(update=own))


async def test_a_redis_that_is_killed_and_comes_back_gets_everything_once(
    settings: Settings, own_servers: EmbeddedServers
) -> None:
    async with Database(settings.sqlalchemy_url, pool_max=1) as database:
        await apply_rules(database, Rules.from_document(ALLOWED))
    redis = own_servers.redis
    assert redis is not None
    assert redis.process is not None
    async with (
        own_deps(settings, own_servers) as deps,
        client(deps, own_servers.redis_url, timeout_s=1.0) as quota,
    ):
        before = [await quota.consume(f"user-{n}", "event", 2) for n in range(20)]
        psutil.Process(redis.process.pid).kill()
        await asyncio.to_thread(redis.stop)  # which only waits for what is killed

        async with asyncio.timeout(HANGS_S):
            meanwhile = await asyncio.gather(
                *(quota.consume(f"user-{n % 20}", "event", 2) for n in range(60))
            )
        waits = quota.unrecorded
        await asyncio.to_thread(redis.prepare)
        redis.spawn()
        await asyncio.to_thread(redis.wait_ready)
        await recorded(quota)
        rows = await stored(deps)
        counts = [await counted(deps, f"user-{n}", "event") for n in range(20)]
        tallies = [await deps.redis.hget(shard.tallies, TALLY) for shard in deps.keys.shards]

    assert all(decision.code == "ok" and not decision.local for decision in before)
    # Of three calls for two units each, five units leave room for two.
    assert sorted(codes(meanwhile)) == [OK] * 40 + [AWAY] * 20
    assert waits == 40
    assert rows == sorted((one.key, 2) for one in [*before, *meanwhile] if one)
    assert counts == [(6, 6)] * 20
    assert sum(int(tally or 0) for tally in tallies) == 40
