"""Every scenario that this version supports, on the session's servers."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

import asyncpg
import pytest
from pydantic import SecretStr
from redis import Redis

from cli.replay.balances import imbalances
from cli.replay.format import parse_scenario, read_scenario
from cli.replay.run import Report, run_scenario
from cli.replay.stage import Stage, open_stage
from cli.replay.verbs import answer
from service.settings import Settings

_HERE = Path(__file__).parent

# Verbs of a later version: until then a file that has them fails in words.
UNSUPPORTED = ("alert_",)
SCENARIOS = sorted(_HERE.glob("*.json"))
SUPPORTED = [path for path in SCENARIOS if not path.stem.startswith(UNSUPPORTED)]

TIERS = {
    "default_tier": "free",
    "features": {"image": {"price": "2"}},
    "tiers": {
        "free": {"limits": {"event": {"max": 3, "per": "day"}}},
        "pro": {"overdraft": True, "limits": {"*": {"max": 1000, "per": "month"}}},
    },
}
AT = "2024-01-01T00:00:00Z"


@pytest.fixture(scope="module")
async def stage(postgres_url: str, redis_url: str) -> AsyncIterator[Stage]:
    redis = SecretStr(redis_url)
    settings = Settings(
        database_url=SecretStr(postgres_url),
        redis_url=redis,
        quota_redis_url=redis,
        queue_redis_url=redis,
    )
    async with open_stage(settings) as opened:
        yield opened


@pytest.fixture
def environment(postgres_url: str, redis_url: str) -> dict[str, str]:
    return {**os.environ, "DATABASE_URL": postgres_url, "REDIS_URL": redis_url}


def command(*words: str, environment: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    """`allotment replay` with *words*, as a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "cli.replay", *words],
        cwd=_HERE.parents[1],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


async def replay(stage: Stage, *steps: Mapping[str, object], users: object = None) -> Report:
    """The report of *steps*, the first of which is at `AT`."""
    first, *others = steps
    document = {
        "name": "a test",
        "tiers": TIERS,
        "users": users or {"u": {}},
        "steps": [{"at": AT, **first}, *others],
    }
    return await run_scenario(stage, parse_scenario(document, file="test.json"))


def said(report: Report) -> list[str]:
    return list(report.lines())


@pytest.mark.parametrize("path", SUPPORTED, ids=lambda path: path.stem)
async def test_everything_is_as_the_file_expects(stage: Stage, path: Path):
    report = await run_scenario(stage, read_scenario(path))

    assert said(report) == []


@pytest.mark.parametrize("path", SCENARIOS, ids=lambda path: path.stem)
def test_every_file_is_a_scenario(path: Path):
    assert read_scenario(path).steps


async def test_each_difference_is_told_with_its_step_and_field(stage: Stage):
    wrong = {"allowed": False, "remaining": 1, "code": "ok", "no_such_field": 1}

    report = await replay(
        stage,
        {"do": "consume", "feature": "event", "expect": wrong},
        {"do": "usage", "feature": "event", "expect": {"used": 1}},
    )

    assert said(report) == [
        "test.json: step 1 (consume): allowed: expected false, got true",
        "test.json: step 1 (consume): remaining: expected 1, got 2",
        "test.json: step 1 (consume): no_such_field: expected 1, got nothing",
    ]


async def test_a_refusal_that_nobody_expected_is_told_and_the_file_goes_on(stage: Stage):
    report = await replay(
        stage,
        {"do": "consume", "feature": "event", "key": "k"},
        {"do": "consume", "feature": "event", "key": "k", "amount": 2, "expect": {"used": 1}},
        {"do": "usage", "feature": "event", "expect": {"used": 2}},
    )

    refused, different = said(report)
    assert refused.startswith("test.json: step 2 (consume): error: expected nothing, got key_conf")
    assert different == "test.json: step 3 (usage): used: expected 2, got 1"


async def test_a_refusal_that_did_not_come_is_told(stage: Stage):
    step = {"do": "consume", "feature": "event", "expect": {"error": "key_conflict"}}

    report = await replay(stage, step)

    line = "test.json: step 1 (consume): error: expected key_conflict, got nothing"
    assert said(report) == [line]


@pytest.mark.parametrize(
    "step",
    [
        {"do": "consume", "feature": "event", "amount": 0},
        {"do": "consume", "feature": "event", "amount": 1.5},
        {"do": "check", "feature": "Event"},
        {"do": "record", "features": {}},
        {"do": "record", "features": {"event": "1"}},
        {"do": "consume", "feature": "event", "key": ""},
        {"do": "consume", "feature": "event", "occurred_at": "2024-01-01T00:06:00Z"},
        {"do": "grant", "id": "g", "amount": "-1"},
        {"do": "grant", "id": "g", "amount": "0"},
        {"do": "grant", "id": "g", "amount": "1", "kind": "gift"},
        {"do": "grant", "id": "g", "amount": "1", "expires_at": AT},
        {"do": "grant", "id": "g", "amount": "1", "every": "year"},
        {"do": "grant", "id": "g", "amount": "1", "every": None},
        {"do": "grant", "id": "g", "amount": "1", "min_rollover": "-1"},
        {"do": "grant", "id": "g", "amount": "1", "min_rollover": "2", "max_rollover": "1"},
        {"do": "grant", "id": "g", "amount": "1", "expires_at": "9999-01-01T00:00:00Z"},
        {"do": "grant", "id": "g", "amount": "1", "effective_at": "1969-12-31T23:59:59Z"},
        {"do": "reserve", "hold": "h", "feature": "event", "ttl": 0},
        {"do": "reserve", "hold": "h", "feature": "event", "ttl": 86_401},
        {"do": "reset", "preserve_overage": "yes"},
        {"do": "refund", "key": "k", "amount": 0},
        {"do": "set_tier", "tier": "gold"},
    ],
)
async def test_a_step_may_expect_that_its_values_are_refused(stage: Stage, step: dict[str, object]):
    report = await replay(stage, {**step, "expect": {"error": "invalid_value"}}, {"do": "balance"})

    assert said(report) == []


@pytest.mark.parametrize(
    ("step", "code"),
    [
        ({"do": "refund", "key": "nothing"}, "unknown_key"),
        ({"do": "void", "id": "nothing"}, "unknown_grant"),
        ({"do": "commit", "hold": "nothing"}, "unknown_hold"),
        ({"do": "release", "hold": "nothing"}, "unknown_hold"),
    ],
)
async def test_a_step_may_expect_that_what_it_names_is_unknown(
    stage: Stage, step: dict[str, object], code: str
):
    report = await replay(stage, {**step, "expect": {"error": code}}, {"do": "balance"})

    assert said(report) == []


async def test_a_verb_of_a_later_version_fails_its_file_in_words(stage: Stage):
    report = await replay(
        stage,
        {"do": "alerts"},
        {"do": "usage", "feature": "event", "expect": {"used": 7}},
    )

    assert said(report) == ["test.json: step 1 (alerts): not supported by this version"]


async def test_credits_that_do_not_balance_fail_the_file(stage: Stage):
    document = {"name": "a test", "tiers": TIERS, "users": {"a": {}, "b": {}}}
    grant = {"at": AT, "do": "grant", "id": "g", "amount": "5", "user": "a"}
    scenario = parse_scenario({**document, "steps": [grant]}, file="test.json")
    report = Report(scenario)
    async with stage.world(scenario) as world:
        report.answers.append(await answer(world, scenario.steps[0]))
        assert await imbalances(world, scenario, at=scenario.steps[0].at) == []
        async with world.deps.database.connection() as connection:
            await connection.execute("UPDATE credit_grants SET left_micro = left_micro - 1500000")

        report.imbalances += await imbalances(world, scenario, at=scenario.steps[0].at)

    assert not report.passed
    [line] = said(report)
    assert line == (
        "test.json: after the last step: credits of a: granted 5, "
        "but burnt 0 + left 3.5 + held 0 + expired 0 + voided 0 - overage 0"
    )
    assert report.as_dict()["imbalances"][0]["left"] == "3.5"


async def test_each_user_has_limits_and_credits_of_its_own(stage: Stage):
    report = await replay(
        stage,
        {"do": "consume", "feature": "event", "amount": 3, "user": "a"},
        {"do": "consume", "feature": "event", "user": "b", "expect": {"remaining": 2}},
        {"do": "grant", "id": "g", "amount": "5", "user": "a", "expect": {"amount": "5.0"}},
        {"do": "consume", "feature": "image", "amount": 4, "user": "c", "expect": {"cost": "8"}},
        {"do": "balance", "user": "a", "expect": {"credits": "5", "grants": {"g": "5"}}},
        {"do": "balance", "user": "b", "expect": {"credits": "0", "grants": {}}},
        {"do": "balance", "user": "c", "expect": {"credits": "0", "overage": "8.00"}},
        {"do": "flush_redis"},
        {"do": "balance", "user": "a", "expect": {"credits": "5", "grants": {"g": "5"}}},
        users={"a": {}, "b": {}, "c": {"tier": "pro"}},
    )

    assert said(report) == []


async def test_calls_at_once_that_share_a_key_are_one(stage: Stage):
    call = {"do": "consume", "feature": "event", "parallel": 50, "key": "k"}

    report = await replay(
        stage,
        {**call, "expect": {"allowed": 50, "denied": 0}},
        {"do": "usage", "feature": "event", "expect": {"used": 1, "credits": "0"}},
    )

    assert said(report) == []


async def test_a_file_finds_nothing_of_the_one_before(stage: Stage):
    step = {"do": "consume", "feature": "event", "amount": 3, "key": "k"}

    reports = [await replay(stage, {**step, "expect": {"replayed": False}}) for _ in range(2)]

    assert [said(report) for report in reports] == [[], []]


async def test_the_report_has_what_every_step_answered(stage: Stage):
    report = await replay(
        stage,
        {"do": "consume", "feature": "event", "expect": {"used": 2}},
        {"at": "2024-01-01T00:00:01.5Z", "do": "usage", "feature": "event"},
    )

    found = report.as_dict()
    assert (found["file"], found["passed"]) == ("test.json", False)
    assert found["steps"][1] == {
        "step": 2,
        "do": "usage",
        "at": "2024-01-01T00:00:01.500Z",
        "answer": {"used": 1, "credits": "0"},
    }
    assert found["mismatches"] == [
        {
            "step": 1,
            "do": "consume",
            "message": "used: expected 2, got 1",
            "field": "used",
            "expected": 2,
            "got": 1,
        }
    ]


def test_the_command_says_what_differs_and_how_many_held(
    tmp_path: Path, environment: dict[str, str]
):
    good, bad = _HERE / "redis_lost.json", tmp_path / "bad.json"
    text = (_HERE / "limit_soft.json").read_text().replace("soft_limit", "ok")
    bad.write_text(text)

    ran = command(str(good), str(bad), environment=environment)

    line = f"{bad}: step 2 (consume): code: expected ok, got soft_limit"
    assert ran.stdout.splitlines() == [line, "1 passed, 1 failed"]
    assert (ran.returncode, ran.stderr) == (1, "")


def test_the_command_leaves_the_servers_as_it_found_them(environment: dict[str, str]):
    before = _names(environment)

    ran = command(str(_HERE / "key_repeat.json"), "--json", environment=environment)

    assert ran.returncode == 0
    found = json.loads(ran.stdout)
    assert (found["passed"], found["failed"], len(found["files"][0]["steps"])) == (1, 0, 5)
    assert _names(environment) == before


def _names(environment: Mapping[str, str]) -> tuple[set[str], set[bytes]]:
    """The databases, and the keys of replays, that the servers have."""

    async def databases() -> set[str]:
        connection = await asyncpg.connect(environment["DATABASE_URL"])
        try:
            rows = await connection.fetch("SELECT datname FROM pg_database")
        finally:
            await connection.close()
        return {row["datname"] for row in rows}

    with Redis.from_url(environment["REDIS_URL"]) as redis:
        return asyncio.run(databases()), set(redis.scan_iter("replay-*"))


def test_the_command_runs_nothing_when_one_file_is_malformed(tmp_path: Path):
    bad = tmp_path / "bad.json"
    bad.write_text((_HERE / "limit_soft.json").read_text().replace('"consume"', '"consumed"', 1))
    # A server that is not there: to run anything would fail otherwise.
    nowhere = {**os.environ, "DATABASE_URL": f"postgresql:///x?host={tmp_path}"}

    ran = command(str(_HERE / "limit_hard_month.json"), str(bad), environment=nowhere)

    assert ran.stderr.startswith(f"{bad}: steps[0].do: expected one of consume, check, record")
    assert (ran.returncode, ran.stdout) == (2, "")
