"""What was set aside is put back once, however often it is tried, and what is still wrong stays with its reason."""

from __future__ import annotations

import json
from typing import Any

import pytest

from quota.values import instant_ms, new_key, parse_user_id
from service.quarantine import ALREADY, RECORDED, REFUSED, Quarantined, Retrier
from worker.deps import Deps

USER = parse_user_id("user-1")
ENTRY_MS = 1_700_000_000_000


async def set_aside(deps: Deps, raw: bytes, *, source: str = "log:0", place: str = "") -> int:
    async with deps.database.connection() as connection:
        found: int = await connection.fetchval(
            """INSERT INTO quarantined_records (source, place, raw, reason)
               VALUES ($1, $2, $3, 'was wrong') RETURNING id""",
            source, place or f"{ENTRY_MS}-0/0", raw,
        )  # fmt: skip
    return found


async def row_of(deps: Deps, record: int) -> Quarantined | None:
    async with deps.database.connection() as connection:
        row = await connection.fetchrow("SELECT * FROM quarantined_records WHERE id = $1", record)
    return None if row is None else Quarantined(**dict(row))


async def retry(deps: Deps, record: int) -> tuple[str, str | None]:
    row = await row_of(deps, record)
    assert row is not None
    retrier = Retrier(deps.database, deps.redis, deps.keys, deps.quota)
    tried = await retrier.retry(row)
    return tried.outcome, tried.reason


async def logged(deps: Deps) -> list[dict[str, Any]]:
    await deps.drain.run(seconds_max=30)
    async with deps.database.connection() as connection:
        rows = await connection.fetch("SELECT * FROM usage_logs ORDER BY action, amount")
    return [dict(row) for row in rows]


async def counted(deps: Deps, feature: str = "tokens") -> int:
    return (await deps.quota.balance("user-1")).limits[f"{feature}/lifetime"].used


def line(feature: str = "tokens", amount: int = 5, key: str = "k-1", number: int = 0) -> bytes:
    return json.dumps(["user-1", feature, amount, key, number]).encode()


async def test_a_line_of_the_log_is_recorded_as_of_when_it_was_admitted(deps: Deps):
    raw = json.dumps(
        ["user-1", "image", 2, "k-1", 0, "video", "high", {"a": [1]}, None, "e", "t", "1", "s"]
    )
    record = await set_aside(deps, raw.encode())

    assert await retry(deps, record) == (RECORDED, None)

    [row] = await logged(deps)
    assert await row_of(deps, record) is None
    assert (row["user_id"], row["action"], row["amount"], row["key"]) == (
        USER.id,
        "image",
        2,
        "k-1",
    )
    assert (row["format"], row["quality"], row["metadata"]) == ("video", "high", {"a": [1]})
    assert (row["event_id"], row["session_id"], row["credits_consumed"]) == ("e", "s", 20)
    assert instant_ms(row["created_at"]) == ENTRY_MS
    assert row["late"]


@pytest.mark.parametrize("own_key", [True, False])
async def test_a_record_whose_key_redis_remembers_is_recorded_all_the_same(
    deps: Deps, own_key: bool
):
    """It was admitted, and set aside when it was to be applied: PostgreSQL never had it."""
    key = "k-1" if own_key else new_key(now_ms=ENTRY_MS)
    await deps.quota.record("user-1", "tokens", 5, key=key)
    shard = deps.keys.shard_of(USER.id)
    [(entry_id, _)] = await deps.redis.xrange(shard.log)
    await deps.redis.xdel(shard.log, entry_id)  # as if it had been applied, but for this line
    record = await set_aside(deps, line(key=key), place=f"{ENTRY_MS}-0/{key}/0")

    assert await retry(deps, record) == (RECORDED, None)

    assert [row["amount"] for row in await logged(deps)] == [5]
    assert await counted(deps) == 5


@pytest.mark.parametrize("own_key", [True, False])
async def test_a_retry_that_died_before_it_deleted_counts_once(deps: Deps, own_key: bool):
    key = "k-1" if own_key else new_key(now_ms=ENTRY_MS)
    record = await set_aside(deps, line(key=key))
    row = await row_of(deps, record)
    assert row is not None
    retrier = Retrier(deps.database, deps.redis, deps.keys, deps.quota)

    tried = [(await retrier.retry(row)).outcome for _ in range(3)]  # nothing of it is applied yet
    after = [row["amount"] for row in await logged(deps)]
    tried.append((await retrier.retry(row)).outcome)
    await deps.redis.delete(*deps.keys.shard_of(USER.id).marks)
    tried.append((await retrier.retry(row)).outcome)

    assert tried == [RECORDED] * 3 + [ALREADY] * 2
    assert after == [5]
    assert [row["amount"] for row in await logged(deps)] == [5]
    assert await counted(deps) == 5


async def test_lines_of_a_record_of_several_are_recorded_beside_the_others(deps: Deps):
    await deps.quota.record("user-1", {"event": 1, "tokens": 2}, key="k-1")
    await deps.drain.run(seconds_max=5)
    second = await set_aside(deps, line("image", 3, number=2), place=f"{ENTRY_MS}-0/k-1/2")
    third = await set_aside(deps, line("unit", 4, number=3), place=f"{ENTRY_MS}-0/k-1/3")
    again = await row_of(deps, second)
    assert again is not None

    assert await retry(deps, second) == (RECORDED, None)
    assert await retry(deps, third) == (RECORDED, None)
    await logged(deps)
    retrier = Retrier(deps.database, deps.redis, deps.keys, deps.quota)

    assert (await retrier.retry(again)).outcome == ALREADY
    assert [(row["action"], row["amount"]) for row in await logged(deps)] == [
        ("event", 1), ("image", 3), ("tokens", 2), ("unit", 4),
    ]  # fmt: skip


async def test_an_entry_that_can_be_read_by_now_is_recorded_whole(deps: Deps):
    lines = [["user-1", "tokens", 5, "k-1", 0], ["user-2", "tokens", 6, "k-2", 0]]
    fields = {"v": "1", "e": "1", "t": str(ENTRY_MS), "c": "0,0,", "r": json.dumps(lines)}
    record = await set_aside(deps, json.dumps(fields).encode(), place=f"{ENTRY_MS}-0")

    assert await retry(deps, record) == (RECORDED, None)
    assert [row["amount"] for row in await logged(deps)] == [5, 6]


HOLD = ["user-1", "tokens", 5, "k", 0, *[None] * 9, ["h", 1, "0/1"]]
REFUSALS = [
    (b"garbage", "malformed"),
    (b'["user-1","tokens"]', "length"),
    (b'["user-1","tokens",-5,"k",0]', "amount"),
    (b'["user-1","Bad Name",5,"k",0]', "feature"),
    (b'["user-1","tokens",5,"nul-\\u0000",0]', "NUL"),
    (b'["user-1","tokens",5,"k",0,null,null,{"a":"\\u0000"}]', "metadata"),
    (b'["user-1","tokens",5,"k",0,null,null,' + b"[" * 5000 + b"]" * 5000 + b"]", ""),
    (json.dumps(HOLD).encode(), "part of a hold"),
]


async def test_what_is_still_wrong_stays_with_its_reason(deps: Deps):
    records = [
        (await set_aside(deps, raw, place=f"{ENTRY_MS}-{number}/0"), reason)
        for number, (raw, reason) in enumerate(REFUSALS)
    ]
    records.append((await set_aside(deps, b'{"v":"1"}', place=f"{ENTRY_MS}-0"), "field"))
    records.append((await set_aside(deps, b'{"v":"9"}', place=f"{ENTRY_MS}-1"), "version 9"))

    for record, part in records:
        outcome, reason = await retry(deps, record)
        row = await row_of(deps, record)
        assert (outcome, row and row.reason, row and row.retries) == (REFUSED, reason, 1)
        assert part in (reason or "")

    assert await logged(deps) == []


def job(*args: Any, **named: Any) -> bytes:
    return json.dumps({"f": "record_usage", "a": args, "k": named, "et": 1, "t": None}).encode()


async def test_a_job_is_recorded_by_its_key_or_its_id(deps: Deps):
    keyed = job("user-1", "tokens", 5, key="k-1")
    first = await set_aside(deps, keyed, source="job", place="j-1 2024-01-01T00:00:00+00:00")
    second = await set_aside(
        deps, job(user_id="user-1", feature="tokens"), source="job", place="a b"
    )
    again = await row_of(deps, second)
    assert again is not None

    assert await retry(deps, first) == (RECORDED, None)
    assert await retry(deps, second) == (RECORDED, None)
    retrier = Retrier(deps.database, deps.redis, deps.keys, deps.quota)
    assert (await retrier.retry(again)).outcome == ALREADY

    assert [(row["key"], row["amount"]) for row in await logged(deps)] == [("arq:a", 1), ("k-1", 5)]
    assert await counted(deps) == 6


async def test_jobs_that_are_no_records_stay(deps: Deps):
    raws = [
        (b"\x80\x04K\x01.", "pickled"),
        (b"\xff\xfe", "not a job"),
        (json.dumps({"f": "other", "a": [], "k": {}, "et": 1}).encode(), "other"),
        (job("user-1", "tokens", "many"), "amount"),
        (job("user-1", "tokens", 1, colour="red"), "colour"),
        (b'{"f":"cron:x","a":[],"k":{},"et":1}', "cron:x"),
    ]
    for number, (raw, part) in enumerate(raws):
        record = await set_aside(deps, raw, source="job", place=f"j-{number} then")
        outcome, reason = await retry(deps, record)
        assert outcome == REFUSED
        assert part in (reason or "")
