"""Reserves and what becomes of them, and allowances, from the log into PostgreSQL; the entries are made by hand."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from quota.allowance import COUNTS_AFTER_MS, allowance_id
from quota.rules import Rules
from quota.values import MICRO, instant_ms, instant_of, new_key, parse_user_id
from service.grants import add_grant
from service.tiers import apply_rules, stored_rules
from service.usage_log import read_entries
from worker.apply import Applied, apply_run
from worker.deps import Deps

START = datetime(2025, 3, 1, 10, tzinfo=UTC)
START_MS = instant_ms(START)
MINUTE_MS = 60_000
USER = parse_user_id("user-1")
EXPIRES_MS = START_MS + 30 * MINUTE_MS

# What holds for everyone, whatever has happened (issue 3): 0 rows.
IDENTITY = """
    SELECT u.id FROM users u
    WHERE (SELECT coalesce(sum(amount_micro) FILTER (WHERE kind IN ('granted', 'renewed', 'forgiven')), 0)
                - coalesce(sum(amount_micro) FILTER (WHERE kind IN ('burn', 'lapsed', 'voided')), 0)
                + coalesce(sum(amount_micro) FILTER (WHERE kind = 'refund'), 0)
           FROM credit_entries e WHERE e.user_id = u.id)
       <> (SELECT coalesce(sum(left_micro), 0) FROM credit_grants g WHERE g.user_id = u.id) - u.overage_micro
        + (SELECT coalesce(sum((p ->> 1)::bigint), 0) FROM holds h CROSS JOIN jsonb_array_elements(h.payments) p
           WHERE h.user_id = u.id AND h.status = 'open')
"""


async def log(deps: Deps, minute: int, lines: Sequence[tuple[str, int, str, int]]) -> None:
    """Append an entry of lines: code, amount, key, cost in credits."""
    rows = [["user-1", "image", amount, key, 0] for _, amount, key, _ in lines]
    await deps.redis.xadd(
        deps.keys.shard_of(USER.id).log,
        {
            "v": "2",
            "e": "1",
            "t": str(START_MS + minute * MINUTE_MS),
            "c": "".join(f"{cost * MICRO}," for *_, cost in lines),
            "r": json.dumps(rows),
            "k": ",".join(code for code, *_ in lines),
            "w": ",".join(f"300:{EXPIRES_MS};" for _ in lines),
        },
    )


def reserve(amount: int, key: str, cost: int) -> tuple[str, int, str, int]:
    return f"h{EXPIRES_MS};{MICRO}/1", amount, key, cost


async def apply(deps: Deps) -> Applied:
    """Apply what the log has, past the gate's own bookkeeping, which these entries are strangers to."""
    shard = deps.keys.shard_of(USER.id)
    async with deps.database.connection() as connection:
        after = await connection.fetchval(
            "SELECT last_entry_id FROM usage_shards WHERE shard = $1", shard.index
        )
        run = await read_entries(deps.redis, shard, after=after, lines_max=1_000)
    applied = await apply_run(deps.database, shard.index, run)
    assert applied is not None
    assert await fetch(deps, IDENTITY) == []
    return applied


async def fetch(deps: Deps, query: str) -> list[tuple[Any, ...]]:
    async with deps.database.connection() as connection:
        return [tuple(row) for row in await connection.fetch(query)]


async def give(deps: Deps, credits: int, *, name: str, expires: datetime | None = None) -> None:
    rules = await stored_rules(deps.database)
    assert isinstance(rules, Rules)
    async with deps.database.session() as session:
        await add_grant(
            session,
            USER,
            rules,
            amount_micro=credits * MICRO,
            at=START,
            name=name,
            expires_at=expires,
        )


async def left(deps: Deps) -> dict[str, int]:
    return {
        name: micro // MICRO
        for name, micro in await fetch(
            deps, "SELECT coalesce(name, 'allowance'), left_micro FROM credit_grants ORDER BY 1"
        )
    }


COUNTED = "SELECT hour_used, day_used, lifetime_used FROM usage_counters"
WINDOW = "SELECT used FROM usage_windows"
USED = "SELECT usage_count, last_used FROM feature_usage"
LOGGED = (
    """SELECT amount, credits_consumed::int, created_at, line, key FROM usage_logs ORDER BY line"""
)
STATUS = "SELECT status, committed_amount, committed_micro, ended_at FROM holds ORDER BY key"
BURNT = """SELECT coalesce(g.name, '-'), e.amount_micro / 1000000, e.place
           FROM credit_entries e LEFT JOIN credit_grants g ON g.user_id = e.user_id AND g.id = e.grant_id
           WHERE e.kind = 'burn' ORDER BY e.id, e.place"""


async def test_a_reserve_counts_and_takes_but_is_not_yet_used(deps: Deps) -> None:
    await give(deps, 10, name="a", expires=START + timedelta(days=1))
    await give(deps, 10, name="b")
    await log(deps, 0, [reserve(12, "mine", 12)])

    await apply(deps)

    assert await left(deps) == {"a": 0, "b": 8}
    assert await fetch(deps, COUNTED) == [(12, 12, 12)]
    assert await fetch(deps, WINDOW) == [(12,)]
    assert await fetch(deps, USED) == await fetch(deps, LOGGED) == await fetch(deps, BURNT) == []
    [row] = await fetch(
        deps,
        """SELECT status, amount, cost_micro, price, record -> 3, jsonb_array_length(payments), windows::text,
                  reserved_at, expires_at, ended_at FROM holds""",
    )
    assert row == (
        *("open", 12, 12 * MICRO, f"{MICRO}/1", "mine", 2, f"[[300, {EXPIRES_MS}]]"),
        *(START, instant_of(EXPIRES_MS), None),
    )


@pytest.mark.parametrize("apart", [False, True])
@pytest.mark.parametrize(
    "key", ["mine", new_key(now_ms=START_MS)], ids=["a caller's", "a client's"]
)
async def test_a_commit_of_less_keeps_what_was_taken_first(
    deps: Deps, apart: bool, key: str
) -> None:
    await give(deps, 10, name="a", expires=START + timedelta(days=1))
    await give(deps, 10, name="b")
    await log(deps, 0, [reserve(12, key, 12)])
    if apart:
        await apply(deps)
    await log(deps, 5, [("c", 4, key, 4)])

    await apply(deps)

    assert await left(deps) == {"a": 6, "b": 10}
    assert await fetch(deps, COUNTED) == [(4, 4, 4)]
    assert await fetch(deps, WINDOW) == [(4,)]
    assert await fetch(deps, USED) == [(4, START)]
    assert await fetch(deps, LOGGED) == [(4, 4, START, 0, "mine" if key == "mine" else None)]
    assert await fetch(deps, BURNT) == [("a", 4, 0)]
    ended_at = START + timedelta(minutes=5)
    assert await fetch(deps, STATUS) == [("committed", 4, 4 * MICRO, ended_at)]
    [[usage]] = await fetch(deps, "SELECT id FROM usage_logs")
    assert await fetch(deps, "SELECT DISTINCT id FROM credit_entries WHERE kind = 'burn'") == [
        (usage,)
    ]


@pytest.mark.parametrize("apart", [False, True])
async def test_a_commit_of_more_is_a_second_line_at_the_instant_of_the_commit(
    deps: Deps, apart: bool
) -> None:
    await give(deps, 10, name="a")
    await log(deps, 0, [reserve(8, "mine", 8)])
    if apart:
        await apply(deps)
    await log(deps, 70, [("c", 11, "mine", 11)])

    await apply(deps)

    later = START + timedelta(minutes=70)
    assert await left(deps) == {"a": 0}
    assert await fetch(deps, COUNTED) == [(3, 11, 11)]
    assert await fetch(deps, USED) == [(11, later)]
    assert await fetch(deps, LOGGED) == [(8, 8, START, 0, "mine"), (3, 3, later, 1, "mine")]
    assert await fetch(deps, BURNT) == [("a", 8, 0), ("a", 2, 0), ("-", 1, 1)]
    assert await fetch(deps, STATUS) == [("committed", 11, 11 * MICRO, later)]
    assert await fetch(deps, "SELECT overage_micro, overage_at FROM users") == [(MICRO, later)]


@pytest.mark.parametrize("apart", [False, True])
@pytest.mark.parametrize(
    ("code", "status", "minute"),
    [("r", "released", 20), (f"x{EXPIRES_MS}", "expired", 30), ("c", "committed", 20)],
)
async def test_what_is_not_used_goes_back_whole(
    deps: Deps, apart: bool, code: str, status: str, minute: int
) -> None:
    await give(deps, 10, name="a")
    await log(deps, 0, [reserve(8, "mine", 8)])
    if apart:
        await apply(deps)
    await log(deps, 20, [(code, 0, "mine", 0)])

    await apply(deps)

    assert await left(deps) == {"a": 10}
    assert await fetch(deps, COUNTED) == [(0, 0, 0)]
    assert await fetch(deps, WINDOW) == [(0,)]
    assert await fetch(deps, USED) == await fetch(deps, LOGGED) == await fetch(deps, BURNT) == []
    units = 0 if status == "committed" else None
    ended_at = START + timedelta(minutes=minute)
    assert await fetch(deps, STATUS) == [(status, units, units, ended_at)]


async def test_units_do_not_come_back_to_a_period_that_has_begun_since(deps: Deps) -> None:
    await log(deps, 0, [reserve(8, "mine", 0)])
    await apply(deps)
    await log(deps, 65, [("", 1, "other", 0), ("r", 0, "mine", 0)])

    await apply(deps)

    assert await fetch(deps, COUNTED) == [(1, 1, 1)]


async def test_a_grant_that_is_over_gets_nothing_back(deps: Deps) -> None:
    await give(deps, 10, name="a", expires=START + timedelta(minutes=10))
    await log(deps, 0, [reserve(8, "mine", 8)])
    await apply(deps)
    await log(deps, 20, [("r", 0, "mine", 0)])

    await apply(deps)

    assert await left(deps) == {"a": 2}
    lapsed = "SELECT amount_micro FROM credit_entries WHERE kind = 'lapsed'"
    assert await fetch(deps, lapsed) == [(8 * MICRO,)]


@pytest.mark.parametrize("first", ["c", "r", f"x{EXPIRES_MS}"])
@pytest.mark.parametrize("second", ["c", "r", f"x{EXPIRES_MS}"])
@pytest.mark.parametrize("apart", [False, True])
async def test_a_hold_ends_once(deps: Deps, first: str, second: str, apart: bool) -> None:
    await give(deps, 10, name="a")
    await log(
        deps, 0, [reserve(8, "mine", 8), (first, 3 * (first == "c"), "mine", 3 * (first == "c"))]
    )
    before = 0
    if apart:
        await apply(deps)
        before = 1
    await log(deps, 20, [(second, 5 * (second == "c"), "mine", 5 * (second == "c"))])

    applied = await apply(deps)

    assert applied.duplicates == applied.stale_users == 1
    assert applied.applied == 2 * (1 - before)
    assert await left(deps) == {"a": 7 if first == "c" else 10}
    assert await fetch(deps, COUNTED) == [(3, 3, 3) if first == "c" else (0, 0, 0)]


async def test_the_end_of_an_unknown_hold_is_a_repeat(deps: Deps) -> None:
    await log(deps, 0, [("c", 3, "unknown", 3), ("", 2, "other", 0)])

    applied = await apply(deps)

    assert (applied.applied, applied.duplicates, applied.quarantined) == (1, 1, 0)
    assert await fetch(deps, "SELECT user_id FROM stale_users") == [(USER.id,)]


@pytest.mark.parametrize(
    "key", ["mine", new_key(now_ms=START_MS)], ids=["a caller's", "a client's"]
)
@pytest.mark.parametrize("code", ["c", None])
async def test_a_key_whose_hold_is_open_or_committed_reserves_once_for_ever(
    deps: Deps, key: str, code: str | None
) -> None:
    await log(deps, 0, [reserve(8, key, 0)])
    if code:
        await log(deps, 1, [(code, 8 * (code == "c"), key, 0)])
    await apply(deps)
    before = [await fetch(deps, COUNTED), await fetch(deps, STATUS)]
    await log(deps, 5, [reserve(9, key, 0)])

    applied = await apply(deps)

    assert (applied.applied, applied.duplicates, applied.stale_users) == (0, 1, 1)
    assert [await fetch(deps, COUNTED), await fetch(deps, STATUS)] == before


@pytest.mark.parametrize(
    "key", ["mine", new_key(now_ms=START_MS)], ids=["a caller's", "a client's"]
)
@pytest.mark.parametrize("code", ["r", f"x{EXPIRES_MS}"])
async def test_a_key_that_redis_forgot_after_nothing_was_used_counts_when_it_is_committed_anew(
    deps: Deps, key: str, code: str
) -> None:
    await give(deps, 10, name="a")
    await log(deps, 0, [reserve(8, key, 8), (code, 0, key, 0)])
    await apply(deps)
    await log(deps, 40, [reserve(8, key, 8)])
    await log(deps, 41, [("c", 5, key, 5)])

    applied = await apply(deps)

    assert (applied.applied, applied.duplicates) == (2, 0)
    assert [amount for amount, *_ in await fetch(deps, LOGGED)] == [5]
    assert [status for status, *_ in await fetch(deps, STATUS)] == ["committed"]
    assert await left(deps) == {"a": 5}
    assert [lifetime for *_, lifetime in await fetch(deps, COUNTED)] == [5]


@pytest.mark.parametrize(
    "key", ["mine", new_key(now_ms=START_MS)], ids=["a caller's", "a client's"]
)
async def test_a_committed_key_is_used_for_records_too(deps: Deps, key: str) -> None:
    await log(deps, 0, [reserve(8, key, 0), ("c", 8, key, 0)])
    await apply(deps)
    await log(deps, 5, [("", 9, key, 0)])

    applied = await apply(deps)

    assert (applied.applied, applied.duplicates) == (0, 1)
    assert await fetch(deps, COUNTED) == [(8, 8, 8)]


async def test_a_key_of_a_record_does_not_reserve(deps: Deps) -> None:
    await log(deps, 0, [("", 9, "mine", 0)])
    await apply(deps)
    await log(deps, 5, [reserve(8, "mine", 0), ("c", 8, "mine", 0)])

    applied = await apply(deps)

    assert (applied.applied, applied.duplicates) == (0, 2)
    assert await fetch(deps, COUNTED) == [(9, 9, 9)]


async def test_a_poisoned_reserve_is_set_aside_and_its_commit_with_the_repeats(deps: Deps) -> None:
    await log(deps, 0, [reserve(8, "good", 0)])
    shard, metadata = deps.keys.shard_of(USER.id), '{"a":"\\u0000"}'
    await deps.redis.xadd(
        shard.log,
        {
            "v": "2",
            "e": "1",
            "t": str(START_MS),
            "c": "0,",
            "r": f'[["user-1","image",3,"bad",0,null,null,{metadata}]]',
            "k": f"h{EXPIRES_MS};1/1",
        },
    )
    await log(deps, 1, [("c", 3, "bad", 0), ("c", 8, "good", 0), reserve(2, "last", 0)])

    applied = await apply(deps)

    assert (applied.applied, applied.duplicates, applied.quarantined) == (3, 1, 1)
    assert await fetch(deps, "SELECT key, status FROM holds ORDER BY key") == [
        ("good", "committed"),
        ("last", "open"),
    ]
    assert await fetch(deps, COUNTED) == [(10, 10, 10)]


async def test_a_record_of_a_hold_is_logged_with_all_that_the_reserve_said(deps: Deps) -> None:
    line = ["user-1", "image", 3, "mine", 0, "video", "high", {"a": 1}, None, "e", "t", "1", "s"]
    await deps.redis.xadd(
        deps.keys.shard_of(USER.id).log,
        {
            "v": "2",
            "e": "1",
            "t": str(START_MS),
            "c": "0,",
            "r": json.dumps([line]),
            "k": f"h{EXPIRES_MS};1/1",
        },
    )
    await apply(deps)
    await log(deps, 1, [("c", 3, "mine", 0)])

    await apply(deps)

    said = """SELECT format, quality, metadata, event_id, event_type, product_version, session_id, late, arrived_at
              FROM usage_logs"""
    assert await fetch(deps, said) == [("video", "high", {"a": 1}, "e", "t", "1", "s", False, None)]
    assert await fetch(deps, "SELECT metadata FROM feature_usage") == [({"a": 1},)]


async def test_overage_of_a_hold_is_repaid_by_whoever_becomes_active(deps: Deps) -> None:
    """A grant that begins while the hold is open has paid for it, and gets the rest back."""
    await log(deps, 0, [reserve(8, "mine", 8)])
    await apply(deps)
    async with deps.database.connection() as connection:
        await connection.execute("UPDATE users SET overage_at = $1", START)
    rules = await stored_rules(deps.database)
    assert rules is not None
    async with deps.database.session() as session:
        await add_grant(
            session,
            USER,
            rules,
            amount_micro=10 * MICRO,
            at=START,
            name="later",
            effective_at=START + timedelta(minutes=10),
        )
    await log(deps, 20, [("", 1, "other", 1)])
    await apply(deps)
    held = "SELECT payments -> 0 -> 0 <> 'null', payments -> 0 -> 1 FROM holds"
    assert await fetch(deps, held) == [(True, 8 * MICRO)]
    await log(deps, 25, [("c", 2, "mine", 2)])

    await apply(deps)

    assert await left(deps) == {"later": 7}
    assert await fetch(deps, "SELECT overage_micro FROM users") == [(0,)]


TIERS: dict[str, Any] = {
    "default_tier": "free",
    "features": {"image": {"price": "1"}},
    "tiers": {
        "free": {
            "credits": {"amount": "20", "every": "day"},
            "limits": {"image": {"max": "unlimited", "per": "month"}},
        }
    },
}
ALLOWANCE = """SELECT id, amount_micro / 1000000, left_micro / 1000000, every, effective_at, renewed_at, name
               FROM credit_grants"""
MOVES = """SELECT kind, amount_micro / 1000000, created_at FROM credit_entries
           WHERE kind <> 'burn' ORDER BY created_at, kind"""


@pytest.mark.parametrize("apart", [False, True])
async def test_an_allowance_gets_its_row_when_it_first_pays_and_is_set_back(
    deps: Deps, apart: bool
) -> None:
    await apply_rules(deps.database, Rules.from_document(TIERS), at=START - timedelta(days=9))
    async with deps.database.session() as session:
        rules = await stored_rules(deps.database)
        assert rules is not None
        await add_grant(session, USER, rules, amount_micro=MICRO, at=START, name="bought")
    anchored = "UPDATE users SET anchor = $1"
    async with deps.database.connection() as connection:
        await connection.execute(anchored, START - timedelta(hours=1))
    for day in range(3):
        await log(deps, day * 24 * 60, [("", 1, f"key-{day}", 7)])
        if apart:
            await apply(deps)

    if not apart:
        await apply(deps)

    first = START - timedelta(hours=1)
    last = first + timedelta(days=2)
    assert await fetch(deps, ALLOWANCE + " WHERE every IS NOT NULL") == [
        (allowance_id(USER.id), 20, 13, "day", first, last, None)
    ]
    moved = [(kind, at) for kind, _, at in await fetch(deps, MOVES)]
    assert ("granted", first) in moved
    assert ("renewed", last) in moved


async def test_a_smaller_allowance_keeps_what_was_used(deps: Deps) -> None:
    await apply_rules(deps.database, Rules.from_document(TIERS), at=START - timedelta(days=9))
    await log(deps, 0, [("", 1, "first", 7)])
    await apply(deps)
    document = json.loads(json.dumps(TIERS))
    document["tiers"]["free"]["credits"] = {"amount": "10", "every": "week"}
    changed_at = START + timedelta(minutes=5)
    await apply_rules(deps.database, Rules.from_document(document), at=changed_at)
    await log(deps, 10, [("", 1, "second", 2)])

    await apply(deps)

    assert [row[1:4] for row in await fetch(deps, ALLOWANCE)] == [(10, 1, "week")]
    counts_at = changed_at + timedelta(milliseconds=COUNTS_AFTER_MS)
    assert ("lapsed", 10, counts_at) in await fetch(deps, MOVES)
