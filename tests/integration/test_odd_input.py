"""What is odd and allowed stays as it is, whole and apart; what is huge in the log is set aside."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import quote

import pytest

from quota.values import parse_user_id
from service import analytics
from service.adoption import adoption_of
from service.identity import Identity
from service.rollups import fold_all
from worker.deps import Deps

ADMIN = Identity(None, admin=True)
TABLES = (
    "SELECT oid, relname FROM pg_class WHERE relnamespace = 'public'::regnamespace ORDER BY oid"
)
ODD = [
    "'; DROP TABLE users; --",
    '" OR "1"="1',
    "') UNION SELECT token_hash FROM api_tokens --",
    "$1",
    "%s %(name)s {0} {}",
    "{s00}",
    "{s00}:log",
    "*",
    "[a-z]?",
    "\\",
    "\\'; SELECT pg_sleep(60); --",
    "../../etc/passwd",
    "return redis.call('FLUSHALL')",
    "a.b:c;d,e\u2028f",
    "<script>alert(1)</script>",
]


async def odd_use(deps: Deps, text: str) -> None:
    """Everything that an application can say, with *text* in each field that takes one."""
    names = ("format", "quality", "event_id", "event_type", "product_version", "session_id")
    fields: dict[str, Any] = dict.fromkeys(names, text)
    await deps.quota.record(text, "image", 1, key=text, metadata={text: text}, **fields)
    async with deps.quota.reserve(text, "tokens", 2, key=f"hold {text}") as hold:
        await hold.commit(1)
    await deps.quota.record(text, "tokens", 1, key=f"refunded {text}")
    await deps.quota.refund(f"refunded {text}", user_id=text)
    await deps.quota.explain(text, "tokens")


async def test_text_that_means_something_elsewhere_means_nothing_here(deps: Deps) -> None:
    async with deps.database.connection() as connection:
        tables = await connection.fetch(TABLES)
    await deps.quota.record("bystander", "tokens", 7)

    for text in ODD:
        await odd_use(deps, text)
    await deps.drain.run(seconds_max=10)
    await fold_all(deps.database, seconds_max=10)

    async with deps.database.connection() as connection:
        assert await connection.fetch(TABLES) == tables
        users = await connection.fetch("SELECT external_id FROM users ORDER BY external_id")
        nobody = await adoption_of(connection, ODD[0], days=30)
        assert await connection.fetchval("SELECT count(*) FROM quarantined_records") == 0
    assert {name for (name,) in users} == {*ODD, "bystander"}
    assert (nobody[0].users, (await deps.quota.check("bystander", "tokens")).used) == (0, 7)
    for text in ODD:
        uses = await analytics.history(deps.database, ADMIN, parse_user_id(text).id)
        [image] = [use for use in uses if use.action == "image"]
        assert (image.format, image.quality, image.metadata) == (text, text, {text: text})
        assert (await deps.quota.check(text, "tokens")).used == 1


async def test_no_text_of_a_caller_gets_into_the_name_of_a_key(deps: Deps) -> None:
    for text in ODD:
        await odd_use(deps, text)

    async for key in deps.redis.scan_iter(f"{deps.keys.prefix}:*", count=1000):
        name = key.decode().removeprefix(f"{deps.keys.prefix}:")
        assert quote(name, safe=":{}") == name, "only letters, digits and our own marks"
        assert name.count("{") == name.startswith("{s")


async def test_the_order_of_metadata_makes_no_other_record(deps: Deps) -> None:
    one: dict[str, Any] = {"a": 1, "b": {"c": [1, 2], "d": None}}
    other = {"b": {"d": None, "c": [1, 2]}, "a": 1}
    assert json.dumps(one) != json.dumps(other)

    first = await deps.quota.consume("user-1", "tokens", 1, key="k", metadata=one)
    again = await deps.quota.consume("user-1", "tokens", 1, key="k", metadata=other)

    assert (first.replayed, again.replayed, again.used) == (False, True, 1)


@pytest.mark.parametrize(
    "lines",
    [
        b"[" * 1_000_000,
        b'["' + b"x" * 20_000_000 + b'"]',
        b'[["user-1","tokens",1,"k",0,null,null,' + b'{"a":' * 100_000 + b"1" + b"}" * 100_000 + b"]]",
        b"[" + b",".join([b"[]"] * 200_000) + b"]",
    ],
    ids=["deep", "long", "deep metadata", "many lines"],
)  # fmt: skip
async def test_an_entry_that_is_huge_is_set_aside_and_its_neighbours_are_applied(
    deps: Deps, lines: bytes
) -> None:
    shard = deps.keys.shard_of(parse_user_id("user-1").id)
    await deps.quota.record("user-1", "tokens", 1)
    [(_, entry)] = await deps.redis.xrange(shard.log)
    await deps.redis.xadd(shard.log, {**entry, b"r": lines})
    await deps.quota.record("user-1", "tokens", 2)

    await deps.drain.run(seconds_max=20)

    async with deps.database.connection() as connection:
        assert await connection.fetchval("SELECT sum(amount)::int FROM usage_logs") == 3
        assert await connection.fetchval("SELECT count(*) FROM quarantined_records") > 0
