"""Every derived figure, rebuilt: after a day of everything, after each was falsified, and while a worker applies."""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from datetime import UTC, datetime, timedelta
from random import Random
from typing import Any

import pytest

from quota.values import parse_user_id
from service.staleness import drop_stale_users
from service.verify import Report, Verifier
from tests.integration.stacks import Real, answer
from worker.deps import Deps

SEEDS = range(1, 1 + int(os.environ.get("VERIFY_SEEDS", "1")))
START = datetime(2025, 3, 29, 20, 0, tzinfo=UTC)  # hours before clocks go forward in Berlin
USERS = {"anna": "UTC", "bert": "Europe/Berlin", "cleo": "Asia/Kathmandu"}
FEATURES = ("a", "b", "c")
LIMITS: dict[str, Any] = {
    "a": [{"max": 400, "per": "day"}, {"max": 30, "per": "window:5400"}],
    "b": [{"max": 60, "per": "hour", "mode": "soft"}, {"max": 300, "per": "cycle"}],
    "c": {"max": "unlimited", "per": "month"},
}
TIERS: dict[str, Any] = {
    "default_tier": "free",
    "features": {"a": {"price": "0.333333333333"}, "b": {"price": "1.5"}},
    "tiers": {
        "free": {"credits": {"amount": "70.25", "every": "day"}, "limits": LIMITS},
        "pro": {
            "overdraft": True,
            "credits": {"amount": "20", "every": "week"},
            "limits": {"*": {"max": 9_000, "per": "month"}},
        },
    },
}
VERBS = (
    *("consume",) * 6, *("late",) * 3, *("record",) * 2, *("reserve",) * 4, *("commit",) * 3,
    "release", *("refund",) * 3, *("grant",) * 2, "void", "reset", "tier", "zone", "expire",
)  # fmt: skip


class Day:
    """What some users do in a day, chosen by a seed."""

    def __init__(self, real: Real, seed: int) -> None:
        self.real = real
        self.random = Random(seed)
        self.now = START
        self.keys: dict[str, list[str]] = {user: [] for user in USERS}
        self.holds: dict[str, list[str]] = {user: [] for user in USERS}
        self.grants: dict[str, list[str]] = {user: [] for user in USERS}
        self.count = 0

    async def begin(self) -> None:
        """Put the users where they live, one of them on the tier with overdraft."""
        await self.real.put_tiers(TIERS, at=START)
        for user, zone in USERS.items():
            tier = "pro" if user == "bert" else "free"
            await self.ask("set_user", user, timezone=zone, tier=tier, anchor=START)

    async def ask(self, verb: str, user: str, **call: Any) -> Any:
        return await answer(lambda: getattr(self.real, verb)(user, now=self.now, **call))

    async def steps(self, count: int) -> None:
        for _ in range(count):
            minutes = self.random.choice([0, 0, 1, 7, 40, 90])
            self.now += timedelta(minutes=minutes, milliseconds=1)
            verb = self.random.choice(VERBS)
            await getattr(self, f"_{verb}")(self.random.choice([*USERS]))
            if self.random.random() < 0.1:
                await self.real.apply()

    async def _count(self, verb: str, user: str, **call: Any) -> None:
        self.count += 1
        key = f"{verb}-{self.count}"
        fields = {"feature": self.random.choice(FEATURES), "amount": self.random.randint(1, 9)}
        found = await self.ask(verb, user, key=key, **{**fields, **call})
        if found.get("allowed", found.get("recorded")):
            (self.holds if verb == "reserve" else self.keys)[user].append(key)

    async def _consume(self, user: str) -> None:
        await self._count("consume", user)

    async def _late(self, user: str) -> None:
        ago = timedelta(minutes=self.random.choice([-4, 5, 30, 59, 70, 600, 3_000]))
        verb = self.random.choice(["consume", "record"])
        await self._count(verb, user, occurred_at=self.now - ago)

    async def _record(self, user: str) -> None:
        await self._count("record", user)

    async def _reserve(self, user: str) -> None:
        await self._count("reserve", user, ttl=self.random.choice([60, 3_600, 86_400]))

    async def _commit(self, user: str) -> None:
        if self.holds[user]:
            key = self.random.choice(self.holds[user])
            amount = self.random.choice([None, 0, 2, 12])
            await self.ask("commit", user, key=key, amount=amount)
            self.keys[user].append(key)

    async def _release(self, user: str) -> None:
        if self.holds[user]:
            await self.ask("release", user, key=self.random.choice(self.holds[user]))

    async def _refund(self, user: str) -> None:
        if self.keys[user]:
            key, amount = self.random.choice(self.keys[user]), self.random.choice([None, 1, 3])
            await self.ask("refund", user, key=key, amount=amount)

    async def _grant(self, user: str) -> None:
        name = f"g{self.count}-{len(self.grants[user])}"
        begins = self.now + timedelta(minutes=self.random.choice([0, 60]))
        lasts = self.random.choice([None, 90, 2_000])
        await self.ask(
            "grant", user, id=name, amount=self.random.choice(["0.5", "3", "40.333333"]),
            priority=self.random.randint(0, 2), every=self.random.choice([None, None, "day"]),
            effective_at=begins, max_rollover=self.random.choice(["0", "25"]),
            expires_at=None if lasts is None else begins + timedelta(minutes=lasts),
        )  # fmt: skip
        self.grants[user].append(name)

    async def _void(self, user: str) -> None:
        if self.grants[user]:
            await self.ask("void", user, id=self.random.choice(self.grants[user]))

    async def _reset(self, user: str) -> None:
        await self.ask("reset", user, preserve_overage=self.random.random() < 0.5)

    async def _tier(self, user: str) -> None:
        # Away from a tier with windows and back within one, what is used in between counts in none.
        if user != "anna":
            await self.ask("set_user", user, tier=self.random.choice(["free", "pro"]))

    async def _zone(self, user: str) -> None:
        await self.ask("set_user", user, timezone=self.random.choice([*USERS.values()]))

    async def _expire(self, user: str) -> None:  # noqa: ARG002
        await self.real.expire(self.now)


def verifier(day: Day, *, fix: bool = False) -> Verifier:
    deps = day.real.deps
    return Verifier(
        deps.database, day.real.rules, shards=deps.settings.shards, grace_ms=3_600_000, fix=fix,
        at=day.now,
    )  # fmt: skip


def told(report: Report) -> list[Any]:
    return [(one.user, *one.difference[1:], one.mended) for one in report.findings]


@pytest.mark.parametrize("seed", SEEDS)
async def test_after_a_day_of_everything_nothing_is_found(deps: Deps, seed: int):
    day = Day(Real(deps), seed)
    await day.begin()

    for _ in range(3):
        await day.steps(45)
        report = await verifier(day).run()  # some is in the log still
        assert told(report) == []
    await day.real.apply()
    report = await verifier(day).run()

    assert told(report) == []
    assert report.users == len(USERS)
    counts = await stored(deps)
    assert all(counts.values()), counts  # there was something to compare


async def stored(deps: Deps) -> dict[str, int]:
    tables = ("usage_counters", "usage_windows", "feature_usage", "usage_refunds", "holds")
    queries = {
        **{table: f"SELECT count(*) FROM {table}" for table in tables},
        "late": "SELECT count(*) FROM usage_logs WHERE late",
        "arrived": "SELECT count(*) FROM usage_logs WHERE arrived_at IS NOT NULL AND NOT late",
        "kinds": "SELECT count(DISTINCT kind) >= 6 FROM credit_entries",
    }
    async with deps.database.connection() as connection:
        return {name: int(await connection.fetchval(sql)) for name, sql in queries.items()}


async def standing(deps: Deps) -> Day:
    """One user with something of everything: a window, an open hold, a grant, overage, a late record."""
    day = Day(Real(deps), 0)
    await day.begin()
    for user in ("bert", "anna"):  # whose window runs still
        await day.ask("grant", user, id="gift", amount="5")
        await day.ask("consume", user, feature="a", amount=4, key="one")
        await day.ask("reserve", user, feature="a", amount=2, ttl=86_400, key="held")
        await day.ask("record", user, feature="b", amount=40, key="many")
        day.now += timedelta(hours=1)
        ago = day.now - timedelta(minutes=70)
        await day.ask("consume", user, feature="c", amount=3, key="late", occurred_at=ago)
        await day.ask("refund", user, key="one", amount=1)
    await day.real.apply()
    assert told(await verifier(day).run()) == []
    return day


PERIODS = ("hour", "day", "week", "month", "year", "cycle")
OF_BERT = "user_id = (SELECT id FROM users WHERE external_id = 'bert')"
COUNTER = f"UPDATE usage_counters SET {{}} WHERE {OF_BERT} AND feature = 'a'"
USAGE = f"UPDATE feature_usage SET {{}} WHERE {OF_BERT} AND feature_name = 'a'"
# What is falsified, and the figures that are found wrong.
TAMPERED: list[tuple[str, set[str]]] = [
    *(
        (COUNTER.format(f"{per}_used = {per}_used + 1"), {f"usage_counters.{per}_used"})
        for per in (*PERIODS, "lifetime")
    ),
    *(
        (
            COUNTER.format(f"{per}_start = {per}_start - interval '{off}'"),
            {f"usage_counters.{per}_start"},
        )
        for per in PERIODS
        for off in ("1 second", "1 microsecond")
    ),
    # As if it had missed the next period, or were ahead of time.
    (
        COUNTER.format("hour_start = hour_start - interval '1 hour', hour_used = 0"),
        {"usage_counters.hour_start", "usage_counters.hour_used"},
    ),
    (COUNTER.format("day_start = 'infinity'"), {"usage_counters.day_start"}),
    (COUNTER.format("year_start = '2031-01-01Z'"), {"usage_counters.year_start"}),
    (f"DELETE FROM usage_counters WHERE {OF_BERT} AND feature = 'a'", {"usage_counters"}),
    (
        f"UPDATE usage_counters SET feature = 'd' WHERE {OF_BERT} AND feature = 'c'",
        {"usage_counters"} | {f"usage_counters.{per}_used" for per in (*PERIODS, "lifetime")},
    ),
    (f"UPDATE usage_windows SET used = used + 1 WHERE {OF_BERT.replace('bert', 'anna')}", {"usage_windows.used"}),
    (f"UPDATE usage_windows SET used = used - 1 WHERE {OF_BERT.replace('bert', 'anna')}", {"usage_windows.used"}),
    (USAGE.format("usage_count = usage_count + 1"), {"feature_usage.usage_count"}),
    (USAGE.format("usage_count = NULL"), {"feature_usage.usage_count"}),
    (USAGE.format("last_used = last_used - interval '1 second'"), {"feature_usage.last_used"}),
    (f"DELETE FROM feature_usage WHERE {OF_BERT} AND feature_name = 'a'", {"feature_usage.usage_count"}),
    ("UPDATE credit_grants SET left_micro = left_micro + 1 WHERE name = 'gift'", {"credit_grants.left_micro"}),
    (
        f"UPDATE credit_grants SET left_micro = left_micro + 7 WHERE {OF_BERT} AND name IS NULL",
        {"credit_grants.left_micro"},
    ),
    (
        "UPDATE users SET overage_micro = overage_micro + 1 WHERE external_id = 'bert'",
        {"users.overage_micro"},
    ),
]  # fmt: skip


async def test_every_figure_that_is_falsified_is_found_named_and_mended(deps: Deps):
    day = await standing(deps)
    balances = {user: await day.ask("balance", user) for user in USERS}
    before = await rows(deps)

    for tampering, figures in TAMPERED:
        async with deps.database.connection() as connection, connection.transaction():
            # Or a count by hand would be a use of now, and move the last use too.
            await connection.execute("SET LOCAL allotment.gives_last_used = on")
            await connection.execute(tampering)
        found = await verifier(day).run()
        mended = await verifier(day, fix=True).run()
        again = await verifier(day).run()

        assert set(found.by_figure) == figures, tampering
        assert (found.mended, found.remaining) == (0, found.found)
        assert {one.user for one in found.findings} <= {"anna", "bert"}
        assert mended.by_figure == found.by_figure, tampering
        assert mended.remaining == 0
        assert told(again) == []
        async with deps.database.connection() as connection:
            await connection.execute("DELETE FROM usage_counters WHERE feature = 'd'")
        await drop_stale_users(deps.database, deps.redis, deps.keys)
        for user, balance in balances.items():
            assert await day.ask("balance", user) == balance, tampering

    assert await rows(deps) == before


async def rows(deps: Deps) -> list[Any]:
    """The tables that are mended."""
    tables = {
        "usage_counters": "*", "usage_windows": "*", "credit_grants": "*", "users": "*",
        "feature_usage": "user_id, feature_name, usage_count, last_used",
    }  # fmt: skip
    async with deps.database.connection() as connection:
        return [
            await connection.fetch(f"SELECT {columns} FROM {table} ORDER BY 1, 2, 3")
            for table, columns in tables.items()
        ]


LOST: list[tuple[str, set[str]]] = [
    (
        f"DELETE FROM credit_entries WHERE {OF_BERT} AND kind = 'burn'",
        {"credit_entries.burn", "credit_grants.left_micro", "users.overage_micro"},
    ),
    (
        "DELETE FROM credit_entries WHERE kind = 'refund'",
        {"credit_entries.refund", "credit_grants.left_micro", "users.overage_micro"},
    ),
    (
        "DELETE FROM credit_entries WHERE kind = 'granted'",
        {"credit_entries.granted", "credit_grants.left_micro"},
    ),
    (
        "UPDATE holds SET payments = '[]' WHERE user_id IN (SELECT id FROM users)",
        {"holds.payments", "credit_grants.left_micro", "users.overage_micro"},
    ),
    (
        f"DELETE FROM credit_grants WHERE {OF_BERT} AND name = 'gift'",
        {"credit_grants"},
    ),
]  # fmt: skip


@pytest.mark.parametrize(("tampering", "figures"), LOST)
async def test_what_can_not_be_rebuilt_is_listed_and_left(deps: Deps, tampering, figures):
    day = await standing(deps)
    async with deps.database.connection() as connection:
        await connection.execute(tampering)
    before = await rows(deps)

    found = await verifier(day).run()
    mended = await verifier(day, fix=True).run()

    assert set(found.by_figure) <= figures
    assert found.found == mended.remaining > 0
    assert not any(one.difference.mendable for one in found.findings)
    assert told(found) == told(mended)
    assert await rows(deps) == before


async def test_one_user_can_be_looked_at_alone(deps: Deps):
    day = await standing(deps)
    async with deps.database.connection() as connection:
        await connection.execute("UPDATE feature_usage SET usage_count = usage_count + 1")

    report = await verifier(day, fix=True).run(user_id=parse_user_id("bert").id)
    rest = await verifier(day).run()

    assert (report.users, {one.user for one in report.findings}) == (1, {"bert"})
    assert {one.user for one in rest.findings} == {"anna"}


async def test_many_users_are_compared_a_batch_at_a_time(deps: Deps, monkeypatch):
    monkeypatch.setattr("service.verify._USERS_MAX", 2)
    monkeypatch.setattr("service.verify._MENDED_MAX", 1)
    day = await standing(deps)
    async with deps.database.connection() as connection:
        await connection.execute("UPDATE feature_usage SET usage_count = usage_count + 1")
    seen: list[tuple[int, int]] = []

    report = await verifier(day, fix=True).run(tell=lambda *done: seen.append(done))

    assert seen == [(2, 3), (3, 3)]
    assert (report.users, report.found, report.remaining) == (3, 6, 0)


async def test_nothing_is_found_while_a_worker_applies(deps: Deps):
    """Nor is anything lost that is applied while figures are mended."""
    real = Real(deps)
    await real.put_tiers(TIERS, at=START)
    users = [f"busy-{number}" for number in range(8)]
    done = asyncio.Event()

    async def use() -> None:
        for number in range(25):
            await asyncio.gather(*(
                deps.quota.consume(user, "a", 1, key=f"{user}-{number}") for user in users
            ))  # fmt: skip
            await asyncio.gather(*(deps.quota.record(user, {"b": 1, "c": 2}) for user in users))
            if number % 5 == 0:
                hold = await deps.quota.reserve(users[0], "c", 2)
                await hold.commit(1)
        done.set()

    async def work() -> None:
        while not done.is_set():
            await deps.drain.run(seconds_max=0.2)
            await asyncio.sleep(0)

    async def verify() -> Counter[str]:
        seen: Counter[str] = Counter()
        check = Verifier(deps.database, real.rules, shards=deps.settings.shards, grace_ms=3_600_000)
        mend = Verifier(
            deps.database, real.rules, shards=deps.settings.shards, grace_ms=3_600_000, fix=True
        )
        while not done.is_set():
            seen["looks"] += 1
            assert told(await check.run()) == []
            async with deps.database.connection() as connection:
                await connection.execute("UPDATE usage_counters SET lifetime_used = 0")
            mended = await mend.run()
            assert mended.remaining == 0
            seen["mended"] += mended.mended
        return seen

    *_, seen = await asyncio.gather(use(), work(), verify())
    await real.apply()

    assert seen["looks"] > 1
    assert seen["mended"]
    final = Verifier(deps.database, real.rules, shards=deps.settings.shards, grace_ms=3_600_000)
    assert told(await final.run()) == []
    async with deps.database.connection() as connection:
        units = await connection.fetchval("SELECT sum(amount) FROM usage_logs")
        counted = await connection.fetchval("SELECT sum(lifetime_used) FROM usage_counters")
    assert units == counted == len(users) * 25 * 4 + 5
