"""What the client is given that it must not take, and what it meets that does not answer."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from redis.asyncio import Redis

from quota.client import Quota
from quota.decision import Decision
from quota.errors import (
    InvalidValueError,
    KeyConflictError,
    QuotaUnavailableError,
    UnknownUserError,
)
from quota.loading import RequestLoader
from quota.values import AMOUNT_MAX, parse_user_id
from service.loading import DatabaseLoader
from service.settings import Settings
from service.tiers import stored_rules
from service.users import put_user
from worker.deps import Deps

NAN = float("nan")
DEEP: dict[str, Any] = {}
for _ in range(8):
    DEEP = {"a": DEEP}
CYCLE: dict[str, Any] = {}
CYCLE["a"] = CYCLE

NO_TEXT: list[Any] = [
    0,
    7,
    1.5,
    NAN,
    True,
    b"bytes",
    ["a"],
    {"a": 1},
    "",
    "x" * 201,
    "a\0b",
    "\ud800",
]
NO_LABEL = [value for value in NO_TEXT if value is not None]
GOOD: dict[str, Any] = {"user_id": "user-1", "feature": "event", "amount": 1, "key": "k-1"}
BAD: list[tuple[str, Any]] = [
    *(("user_id", value) for value in [None, *NO_TEXT, "a\nb", "\x7f"]),
    *(("feature", value) for value in [None, *NO_TEXT, "Event", "1a", "a b", "ü", "event\n", "*"]),
    *(
        ("amount", value)
        for value in [None, 0, -1, 2**53, 10**30, 1.0, 1.5, NAN, True, "1", "", b"1", [1], {"a": 1}]
    ),
    *(("key", value) for value in NO_TEXT),
    *((name, value) for name in ("format", "quality") for value in NO_LABEL),
    *((name, value) for name in ("event_id", "event_type") for value in NO_LABEL),
    *((name, value) for name in ("product_version", "session_id") for value in NO_LABEL),
    *(
        ("metadata", value)
        for value in [
            "text", b"{}", 7, NAN, True, ["a"], {"a": NAN}, {"a": float("inf")}, {"a": "\0"},
            {"\0": 1}, {"a": "\ud800"}, {1: "a"}, {"a": b""}, {"a": {1, 2}}, {"a": 2**63},
            {"a": "x" * 16_384}, {"ü" * 8_192: 1}, DEEP, CYCLE, {"a": datetime.now(UTC)},
        ]
    ),
    *(
        ("occurred_at", value)
        for value in [
            0, 1_750_000_000, NAN, True, "", "now", "2025-01-01", "2025-01-01T00:00:00",
            "2025-02-30T00:00:00Z", "9999-01-01T00:00:00Z", "1969-12-31T23:59:59Z",
            datetime(2025, 1, 1), "2025-01-01T00:00:00Z\0",  # noqa: DTZ001 - it is what is refused
        ]
    ),
    *(("now", value) for value in [0, NAN, "now", "2025-01-01T00:00:00", b"", True]),
]  # fmt: skip


async def keyspace(settings: Settings) -> dict[bytes, tuple[bytes | None, bool]]:
    """Every key of this installation, whole; idle time is no part of a dump."""
    async with Redis.from_url(settings.quota_redis) as redis:
        names = [name async for name in redis.scan_iter(f"{settings.key_prefix}:*", count=1000)]
        return {name: (await redis.dump(name), await redis.pttl(name) > 0) for name in names}


async def start(deps: Deps) -> Decision:
    """Use something, so that there is a state that could be spoilt."""
    decision = await deps.quota.consume("user-1", "event", 3, key="first")
    assert decision
    return decision


@pytest.mark.parametrize("verb", ["consume", "check", "record"])
async def test_a_bad_value_is_refused_by_its_field_and_nothing_changes(
    deps: Deps, settings: Settings, verb: str
):
    await start(deps)
    before = await keyspace(settings)

    for field, value in BAD:
        if verb == "record" and field == "feature" and isinstance(value, dict):
            continue  # several features, and their amounts
        with pytest.raises(InvalidValueError) as caught:
            await getattr(deps.quota, verb)(**GOOD | {field: value})
        assert caught.value.field == field, value
        assert str(caught.value).startswith(f"{field}: expected ")
        assert len(str(caught.value)) < 400

    assert await keyspace(settings) == before
    assert await deps.drain.run(seconds_max=30) == 1


@pytest.mark.parametrize("features", [{}, {f"f{n}": 1 for n in range(101)}])
async def test_a_record_has_one_to_a_hundred_features(deps: Deps, features: dict[str, int]):
    with pytest.raises(InvalidValueError) as caught:
        await deps.quota.record("user-1", features)

    assert caught.value.field == "features"


@pytest.mark.parametrize(
    ("features", "field"),
    [
        ({"event": 1, "unit": 0}, "amount"),
        ({"event": 1, "Unit": 1}, "feature"),
        ({1: 1}, "feature"),
    ],
)
async def test_a_record_with_one_bad_line_changes_nothing(
    deps: Deps, settings: Settings, features: dict[Any, int], field: str
):
    await start(deps)
    before = await keyspace(settings)

    with pytest.raises(InvalidValueError) as caught:
        await deps.quota.record("user-1", features)

    assert caught.value.field == field
    assert await keyspace(settings) == before


@pytest.mark.parametrize("value", [None, *NO_TEXT, "a\nb"])
async def test_a_balance_of_nobody_is_refused(deps: Deps, value: Any):
    with pytest.raises(InvalidValueError) as caught:
        await deps.quota.balance(value)

    assert caught.value.field == "user_id"


@pytest.mark.parametrize("verb", ["consume", "check", "record"])
async def test_a_field_that_there_is_not_is_a_type_error(deps: Deps, verb: str):
    with pytest.raises(TypeError, match="colour"):
        await getattr(deps.quota, verb)("user-1", "event", colour="red")


async def test_good_neighbours_of_bad_calls_are_decided(deps: Deps):
    of_call: list[tuple[str, Any]] = [pair for pair in BAD if pair[0] != "now"]
    calls: list[Any] = []
    for number, (field, value) in enumerate(of_call):
        calls += [GOOD | {"key": f"k-{number}", "user_id": "user-2"}, GOOD | {field: value}]

    await deps.quota.check("user-2", "event")  # loaded: so the calls are decided in their order
    answers = await deps.quota.consume_many(calls)

    assert len(answers) == len(calls)
    for (field, _), good, bad in zip(of_call, answers[::2], answers[1::2], strict=True):
        assert isinstance(good, Decision)
        assert isinstance(bad, InvalidValueError)
        assert (bad.code, bad.field) == ("invalid_value", field)
    assert [bool(good) for good in answers[::2]] == [number < 100 for number in range(len(of_call))]
    assert await deps.drain.run(seconds_max=30) == min(100, len(of_call))


@pytest.mark.parametrize(
    "call",
    [
        None, 7, "user-1", ["user-1", "event"], {}, {1: 2}, {"feature": "event"},
        GOOD | {"colour": "red"}, GOOD | {"now_ms": 5}, GOOD | {"now": datetime.now(UTC)},
    ],
)  # fmt: skip
async def test_a_call_that_is_no_call_is_refused_in_its_place(deps: Deps, call: Any):
    answers = await deps.quota.consume_many([GOOD, call, GOOD | {"key": "k-2"}])

    assert isinstance(answers[1], InvalidValueError)
    assert answers[1].field in {"call", "user_id", "feature"}
    assert answers[0]
    assert answers[2]


async def test_a_key_conflict_among_many_calls_is_the_answer_of_its_call_alone(deps: Deps):
    await deps.quota.check("user-1", "event")  # loaded: so the calls are decided in their order

    answers = await deps.quota.consume_many([GOOD, GOOD | {"amount": 2}, GOOD])

    assert isinstance(answers[0], Decision)
    assert isinstance(answers[1], KeyConflictError)
    assert isinstance(answers[2], Decision)
    assert (answers[0].replayed, answers[2].replayed) == (False, True)


async def test_an_amount_that_no_balance_could_pay_is_refused_and_its_neighbours_are_not(
    deps: Deps,
):
    costly = GOOD | {"feature": "image", "amount": AMOUNT_MAX, "key": "costly"}

    with pytest.raises(InvalidValueError) as caught:
        await deps.quota.record(**costly)
    answers = await deps.quota.consume_many([GOOD, costly, GOOD | {"key": "k-2"}])

    assert caught.value.field == "amount"
    assert [answer.code for answer in answers] == ["ok", "invalid_value", "ok"]


async def test_a_record_that_no_counter_could_hold_is_refused_whole(deps: Deps, settings: Settings):
    await deps.quota.record("user-1", "event", AMOUNT_MAX)
    before = await keyspace(settings)

    with pytest.raises(InvalidValueError) as caught:
        await deps.quota.record("user-1", {"unit": 1, "event": 1})

    assert caught.value.field == "amount"
    after = await keyspace(settings)
    changed = {name for name in after if after[name] != before.get(name)}
    assert all(name.endswith(b":tallies") for name in changed)
    assert await deps.drain.run(seconds_max=30) == 1


async def test_the_largest_values_are_taken(deps: Deps):
    decision = await deps.quota.consume(
        "ü" * 200,
        "image",
        1,
        key="😀" * 200,
        format="\u2028" * 200,
        quality="'" * 200,
        metadata={"a": "x" * 16_360, "b": None},
        session_id="\\" * 200,
    )

    assert decision.code == "insufficient_credits"
    receipt = await deps.quota.record(
        "ü" * 200, "image", key="😀" * 200, metadata={"a": "x" * 16_360}
    )
    assert receipt.recorded == 1
    assert await deps.drain.run(seconds_max=30) == 1


@pytest.mark.parametrize(
    "key", ["ffffffff-ffff-7fff-bfff-ffffffffffff", "00000000-0000-7000-8000-000000000000"]
)
async def test_a_key_that_carries_a_time_nobody_lives_in_is_a_key(deps: Deps, key: str):
    first = await deps.quota.consume("user-1", "event", key=key)
    again = await deps.quota.consume("user-1", "event", key=key)

    assert (first.replayed, again.replayed, again.used) == (False, True, 1)
    assert await deps.drain.run(seconds_max=30) == 1
    async with deps.database.connection() as connection:
        assert await connection.fetchval("SELECT count(*) FROM quarantined_records") == 0
        assert str(await connection.fetchval("SELECT id FROM usage_logs")) == key


@pytest.fixture
async def strict(deps: Deps, settings: Settings) -> AsyncIterator[Quota]:
    """A client of an installation where users are not made on first use."""
    loader = DatabaseLoader(deps.database, deps.redis, auto_provision=False, dedupe_ms=60_000)
    async with Quota(deps.redis, prefix=settings.key_prefix, loader=loader) as quota:
        yield quota


async def test_an_unknown_user_is_denied_and_not_made(deps: Deps, strict: Quota):
    assert (await strict.consume("stranger", "event")).code == "unknown_user"
    assert (await strict.check("stranger", "event")).code == "unknown_user"
    for call in (strict.record("stranger", "event"), strict.balance("stranger")):
        with pytest.raises(UnknownUserError, match="stranger"):
            await call

    async with deps.database.connection() as connection:
        assert await connection.fetchval("SELECT count(*) FROM users") == 0
    assert await deps.drain.run(seconds_max=30) == 0


async def test_a_user_who_is_made_meanwhile_is_known_at_the_next_call(
    deps: Deps, strict: Quota, settings: Settings
):
    assert (await strict.consume("late", "event")).code == "unknown_user"
    rules = await stored_rules(deps.database)
    assert rules is not None
    async with deps.database.session() as session:
        await put_user(session, parse_user_id("late"), rules, at=datetime.now(UTC))

    assert (await strict.consume("late", "event")).code == "ok"


async def test_unknown_users_do_not_keep_their_neighbours_from_a_decision(
    deps: Deps, strict: Quota
):
    rules = await stored_rules(deps.database)
    assert rules is not None
    async with deps.database.session() as session:
        await put_user(session, parse_user_id("known"), rules, at=datetime.now(UTC))
    users = ["stranger", "known"] * 3

    answers = await strict.consume_many({"user_id": user, "feature": "event"} for user in users)

    assert [answer.code for answer in answers] == ["unknown_user", "ok"] * 3


@pytest.fixture
async def unreachable(open_tmp_dir: Path) -> AsyncIterator[Quota]:
    """A client of a Redis that is not there."""
    async with Quota.from_url(f"unix://{open_tmp_dir}/nobody.sock") as quota:
        yield quota


@pytest.fixture
async def silent(open_tmp_dir: Path) -> AsyncIterator[Quota]:
    """A client of a Redis that takes connections and never answers."""
    released = asyncio.Event()

    async def keep(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await released.wait()
        writer.close()

    path = open_tmp_dir / f"silent-{uuid4().hex[:8]}.sock"
    server = await asyncio.start_unix_server(keep, path)
    quota = Quota.from_url(f"unix://{path}", timeout_s=0.2)
    async with server, quota:
        yield quota
        released.set()


async def test_a_redis_that_is_not_there_is_told(unreachable: Quota):
    await assert_everything_is_unavailable(unreachable)


async def test_a_redis_that_never_answers_is_told(silent: Quota):
    await assert_everything_is_unavailable(silent)


async def assert_everything_is_unavailable(quota: Quota) -> None:
    async with asyncio.timeout(20):  # not for ever; how fast is measured by bench/
        decision = await quota.consume("user-1", "event", 2, key="k-1")
        checked = await quota.check("user-1", "event")
        with pytest.raises(QuotaUnavailableError):
            await quota.record("user-1", "event")
        with pytest.raises(QuotaUnavailableError):
            await quota.balance("user-1")
        many = await quota.consume_many([GOOD, GOOD | {"amount": 0}, GOOD | {"key": "k-2"}])

    assert (decision.allowed, decision.code, decision.key) == (False, "unavailable", "k-1")
    assert (decision.feature, decision.amount, decision.limits) == ("event", 2, ())
    assert decision.as_dict()["code"] == checked.code == "unavailable"
    assert [answer.code for answer in many] == ["unavailable", "invalid_value", "unavailable"]


async def test_bad_input_is_told_even_when_redis_is_not_there(unreachable: Quota):
    with pytest.raises(InvalidValueError, match="amount"):
        await unreachable.consume("user-1", "event", 0)


async def test_a_user_whom_no_worker_loads_is_unavailable(deps: Deps, settings: Settings):
    await start(deps)  # the shards are up, and one user is loaded
    async with Quota(deps.redis, prefix=settings.key_prefix, load_timeout_s=0.2) as quota:
        async with asyncio.timeout(20):
            denied = await quota.consume("user-2", "event")
            with pytest.raises(QuotaUnavailableError, match="python -m worker"):
                await quota.record("user-2", "event")
            with pytest.raises(QuotaUnavailableError, match="python -m worker"):
                await quota.balance("user-2")
        loaded = await quota.check("user-1", "event")

    assert denied.code == "unavailable"
    assert loaded.code == "ok"
    assert await deps.drain.run(seconds_max=30) == 1


async def test_a_shard_that_no_worker_opens_is_unavailable(settings: Settings):
    async with Redis.from_url(settings.quota_redis) as redis:
        loader = RequestLoader(redis, timeout_s=0.2)
        async with Quota(redis, prefix=settings.key_prefix, loader=loader) as quota:
            async with asyncio.timeout(20):
                decision = await quota.consume("user-1", "event")

    assert decision.code == "unavailable"
