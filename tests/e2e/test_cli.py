"""The commands as a user runs them: processes, on the servers of this session."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import asyncpg
import pytest
from redis.asyncio import Redis

from quota.client import Quota

ROOT = Path(__file__).parents[2]

# Each command is a process that begins with the imports done and ends without taking them down: either takes
# longer than all the rest.
FORKER = """
import json, os, sys, traceback
import cli.adoption, cli.balance, cli.grant, cli.main, cli.migrate, cli.quarantine, cli.rebuild, cli.reconcile
import cli.refund, cli.reset, cli.tiers, cli.user, cli.verify, cli.void
for line in sys.stdin:
    ask = json.loads(line)
    if not (child := os.fork()):
        for name, number in (("out", 1), ("err", 2)):
            path = os.path.join(sys.argv[1], name)
            os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), number)
        os.environ.update(ask["environment"])
        sys.argv = ["allotment", *ask["words"]]
        code = 1
        try:
            cli.main.main()
        except SystemExit as ended:
            code = ended.code or 0
        except BaseException:
            traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""

TIERS = """
default_tier = "free"
[features.image]
price = "1.5"
[tiers.free.limits]
image = { max = 10, per = "day" }
tokens = [ { max = 100, per = "month" }, { max = 50, per = "month", mode = "soft" } ]
[tiers.pro.limits]
image = { max = 1000, per = "day" }
"""


@dataclass(frozen=True)
class Ran:
    """How a command ended, and what it said."""

    code: int
    out: str
    err: str

    @property
    def answer(self) -> dict[str, Any]:
        """The one object on stdout; anything beside it is an error."""
        assert self.out.count("\n") == 1, self
        found: dict[str, Any] = json.loads(self.out)
        return found

    @property
    def error(self) -> dict[str, Any]:
        """What the command refused, and why."""
        assert self.code == 2, self
        assert "Traceback" not in self.err
        error: dict[str, Any] = self.answer["error"]
        return error


Allotment = Callable[..., Ran]


class Shell:
    """Runs commands, each in a process of its own."""

    def __init__(self, forker: subprocess.Popen[str], directory: Path) -> None:
        self._forker = forker
        self._directory = directory

    def run(self, *words: str | bytes, **environment: str) -> Ran:
        """Run `allotment` with *words*, and wait for its end."""
        assert self._forker.stdin is not None
        assert self._forker.stdout is not None
        ask = {"words": [os.fsdecode(word) for word in words], "environment": environment}
        print(json.dumps(ask), file=self._forker.stdin, flush=True)
        code = int(self._forker.stdout.readline())
        out, err = (self._directory / name for name in ("out", "err"))
        return Ran(code, out.read_text(), err.read_text())


@pytest.fixture(scope="session")
def shell(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shell]:
    directory = tmp_path_factory.mktemp("shell")
    with subprocess.Popen(
        [sys.executable, "-c", FORKER, str(directory)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as forker:
        yield Shell(forker, directory)
        assert forker.stdin is not None
        forker.stdin.close()


@pytest.fixture
async def prefix(redis_url: str) -> AsyncIterator[str]:
    """The key space of one test."""
    name = f"test-cli-{uuid4().hex[:12]}"
    yield name
    async with Redis.from_url(redis_url) as redis:
        async for key in redis.scan_iter(f"{name}:*", count=1000):
            await redis.unlink(key)


@pytest.fixture
def allotment(shell: Shell, database_url: str, redis_url: str, prefix: str) -> Allotment:
    """Runs a command on a migrated database and a key space of its own."""

    def call(*words: str | bytes, **environment: str) -> Ran:
        servers = {"DATABASE_URL": database_url, "REDIS_URL": redis_url, "KEY_PREFIX": prefix}
        return shell.run(*words, **(servers | environment))

    return call


@pytest.fixture
def psql(database_url: str) -> Callable[[str], None]:
    """Runs a statement on the database behind the commands' back."""

    async def execute(statement: str) -> None:
        connection = await asyncpg.connect(database_url)
        await connection.execute(statement)
        await connection.close()

    return lambda statement: asyncio.run(execute(statement))


@pytest.fixture
def tiers_file(tmp_path: Path) -> Path:
    path = tmp_path / "tiers.toml"
    path.write_text(TIERS)
    return path


@pytest.fixture
def with_tiers(allotment: Allotment, tiers_file: Path) -> Allotment:
    """The same, with tiers in force."""
    assert allotment("tiers", "apply", str(tiers_file)).code == 0
    return allotment


async def test_migrate_is_safe_to_repeat(shell, copy_of, redis_url):
    async with copy_of("template1") as url:
        first = shell.run("migrate", "--json", DATABASE_URL=url, REDIS_URL=redis_url)
        again = shell.run("migrate", "--json", DATABASE_URL=url, REDIS_URL=redis_url)
        shown = shell.run("migrate", DATABASE_URL=url, REDIS_URL=redis_url)

    assert first.answer["from"] is None
    assert first.answer["to"]
    assert len(first.answer["partitions"]) >= 4
    assert again.answer == {"from": first.answer["to"], "to": first.answer["to"], "partitions": []}
    assert "already current" in shown.out


async def test_a_database_without_the_schema_is_told_apart(shell, copy_of, redis_url):
    async with copy_of("template1") as url:
        ran = shell.run("balance", "u", "--json", DATABASE_URL=url, REDIS_URL=redis_url)

    assert ran.error["code"] == "schema_outdated"
    assert "allotment migrate" in ran.error["message"]


@pytest.mark.parametrize("words", [["balance", "u"], ["grant", "u", "5"], ["user", "set", "u"]])
def test_without_tiers_a_command_says_how_to_get_them(allotment, words):
    error = allotment(*words, "--json").error

    assert error["code"] == "no_tiers"
    assert "allotment tiers apply" in error["message"]


def test_a_dry_run_shows_the_changes_and_makes_none(allotment, tiers_file):
    dry = allotment("tiers", "apply", str(tiers_file), "--dry-run", "--json").answer

    assert dry["version"] == 0
    assert {"path": "features.image.price", "before": None, "after": "1.5"} in dry["changes"]
    assert allotment("tiers", "show", "--json").error["code"] == "no_tiers"


def test_tiers_are_applied_once_and_shown(allotment, tiers_file):
    first = allotment("tiers", "apply", str(tiers_file), "--json").answer
    again = allotment("tiers", "apply", str(tiers_file), "--json").answer
    tiers_file.write_text(TIERS.replace("max = 10,", "max = 11,"))
    changed = allotment("tiers", "apply", str(tiers_file), "--json").answer
    shown = allotment("tiers", "show", "--json").answer

    assert (first["version"], again["version"], changed["version"]) == (1, 1, 2)
    assert again["changes"] == []
    assert changed["changes"] == [
        {"path": "tiers.free.limits.image/day", "before": "10", "after": "11"}
    ]
    assert (shown["version"], shown["default_tier"]) == (2, "free")
    assert shown["tiers"]["free"]["limits"]["image"] == [{"max": 11, "per": "day", "mode": "hard"}]


def test_a_tier_with_users_stays_in_a_dry_run_too(with_tiers, tiers_file):
    with_tiers("user", "set", "u", "--tier", "pro")
    tiers_file.write_text(TIERS.partition("[tiers.pro")[0])

    dry = with_tiers("tiers", "apply", str(tiers_file), "--dry-run", "--json").error
    real = with_tiers("tiers", "apply", str(tiers_file), "--json").error

    assert dry["field"] == real["field"] == "tiers.pro"
    assert dry["message"] == real["message"]


def test_a_grant_with_a_name_is_given_once(with_tiers):
    words = ["grant", "user-1", "12.5", "--id", "order-1", "--kind", "purchased", "--json"]

    first, again = with_tiers(*words).answer, with_tiers(*words).answer
    other = with_tiers("grant", "user-1", "13", "--id", "order-1", "--json").error
    balance = with_tiers("balance", "user-1", "--json").answer

    assert (first["repeated"], again["repeated"]) == (False, True)
    assert {**first, "repeated": True} == again
    assert other["field"] == "id"
    assert balance["credits"] == "12.5"
    assert balance["grants"] == {"order-1": "12.5"}


def test_grants_are_shown_in_the_order_in_which_they_burn(with_tiers):
    with_tiers("grant", "u", "1", "--id", "bought", "--kind", "purchased")
    with_tiers("grant", "u", "2", "--id", "late", "--expires-at", "2199-01-01T00:00:00Z")
    with_tiers("grant", "u", "3", "--id", "soon", "--expires-at", "2198-01-01T00:00:00Z")
    with_tiers("grant", "u", "4", "--id", "first", "--priority", "0")

    answer = with_tiers("balance", "u", "--json").answer
    shown = with_tiers("balance", "u").out

    assert list(answer["grants"]) == ["first", "soon", "late", "bought"]
    assert answer["credits"] == "10"
    assert shown.index("first") < shown.index("soon") < shown.index("late") < shown.index("bought")


async def test_a_balance_shows_what_was_used_and_when_it_is_there_again(
    with_tiers, redis_url, prefix
):
    with_tiers("grant", "u", "20")
    with_tiers("balance", "u")  # brings the user into Redis, where no worker runs to do it
    async with Quota.from_url(redis_url, prefix=prefix) as quota:
        assert await quota.consume("u", "image", 4)

    ran = with_tiers("balance", "u", "--json").answer
    shown = with_tiers("balance", "u").out

    limit = ran["limits"]["image/day"]
    assert (limit["used"], limit["max"], limit["remaining"]) == (4, 10, 6)
    assert limit["resets_at"].endswith("T00:00:00Z")
    assert ran["credits"] == "14"
    assert limit["resets_at"] in shown


async def test_an_explanation_shows_limits_grants_movements_and_redis_beside_postgresql(
    with_tiers, redis_url, prefix
):
    with_tiers("grant", "u", "20", "--id", "order-1")
    with_tiers("grant", "u", "5", "--id", "gift", "--effective-at", "2198-01-01T00:00:00Z")
    with_tiers("balance", "u")  # brings the user into Redis, where no worker runs to do it
    async with Quota.from_url(redis_url, prefix=prefix) as quota:
        assert await quota.consume("u", "image", 10)

    ran = with_tiers("explain", "u", "image", "--json").answer
    shown = with_tiers("explain", "u", "image").out

    assert (ran["decision"]["code"], ran["decision"]["binds"]) == ("limit_exceeded", "day")
    assert ran["limits"][0]["headroom"] == 0
    assert [grant["id"] for grant in ran["grants"]] == ["order-1"]
    assert ran["grants_not_paying"][0]["reason"] == "not yet effective"
    assert {entry["grant"] for entry in ran["entries"]} == {"order-1", "gift"}
    assert ran["compared"] == {
        "image/day": {"cached": 10, "stored": 10, "drift": 0},
        "credits": {"cached": "5", "stored": "5", "drift": "0"},
    }
    assert "denied: limit_exceeded" in shown
    assert "not yet effective before 2198-01-01T00:00:00Z" in shown
    assert "PostgreSQL + log" in shown


async def use(redis_url: str, prefix: str, amount: int, key: str) -> None:
    """Have user `u` use so much, in the log only: no worker runs."""
    async with Quota.from_url(redis_url, prefix=prefix) as quota:
        assert await quota.consume("u", "image", amount, key=key)


async def test_a_void_applies_the_log_itself_and_is_safe_to_repeat(with_tiers, redis_url, prefix):
    with_tiers("grant", "u", "20", "--id", "g")
    with_tiers("balance", "u")
    await use(redis_url, prefix, 4, "k")

    first = with_tiers("void", "u", "g", "--json").answer
    again = with_tiers("void", "u", "g").out

    assert (first["user"], first["grant"], first["voided"], first["note"]) == ("u", "g", "14", None)
    assert again.startswith("voided: 0 credits of g: it was voided at ")
    assert with_tiers("balance", "u", "--json").answer["credits"] == "0"


async def test_a_refund_gives_back_what_was_paid_and_says_what_it_could_not(
    with_tiers, redis_url, prefix
):
    with_tiers("grant", "u", "3", "--id", "first")
    with_tiers("grant", "u", "20", "--id", "second", "--priority", "2")
    with_tiers("balance", "u")
    await use(redis_url, prefix, 6, "k")

    part = with_tiers("refund", "u", "k", "--amount", "1", "--id", "r", "--json").answer
    again = with_tiers("refund", "u", "k", "--amount", "1", "--id", "r", "--json").answer
    with_tiers("void", "u", "first")
    rest = with_tiers("refund", "u", "k").out

    assert (part["amount"], part["credits"], part["due"]) == (1, "1.5", "1.5")
    assert again == {**part, "replayed": True}
    assert rest.startswith("refunded: 5 units of k, 4.5 credits: a grant that paid is over, or")
    balance = with_tiers("balance", "u", "--json").answer
    assert (balance["credits"], balance["limits"]["image/day"]["used"]) == ("20", 0)


def test_a_reset_says_what_rolled_over(with_tiers):
    with_tiers("grant", "u", "20", "--min-rollover", "1", "--max-rollover", "7.5")
    with_tiers("grant", "u", "2", "--every", "month")

    answer = with_tiers("reset", "u", "--json").answer
    shown = with_tiers("reset", "u", "--preserve-overage").out

    assert (answer["lapsed"], answer["credits"], answer["overage"]) == ("14.5", "7.5", "0")
    assert "credits   7.5" in shown


def test_a_recurring_grant_is_told_with_how_often(with_tiers):
    answer = with_tiers(
        "grant", "u", "5", "--every", "week", "--max-rollover", "2", "--json"
    ).answer
    shown = with_tiers("grant", "u", "5", "--every", "day").out

    assert (answer["every"], answer["min_rollover"], answer["max_rollover"]) == ("week", "0", "2")
    assert "5 credits every day" in shown


@pytest.mark.parametrize(
    ("words", "code", "field"),
    [
        (["void", "u", "nothing"], "unknown_grant", "grant"),
        (["refund", "u", "nothing"], "unknown_key", "key"),
        (["void", "nobody", "g"], "unknown_user", "user"),
        (["refund", "nobody", "k"], "unknown_user", "user"),
        (["reset", "nobody"], "unknown_user", "user"),
        (["void", "u", ""], "invalid_value", "grant"),
        (["refund", "u", ""], "invalid_value", "key"),
        (["refund", "u", "k", "--amount", "0"], "invalid_value", "amount"),
        (["refund", "u", "k", "--amount", "-1"], "invalid_value", "amount"),
        (["refund", "u", "k", "--amount", "1.5"], "invalid_value", "amount"),
        (["refund", "u", "k", "--amount", "9" * 5000], "invalid_value", "amount"),
        (["refund", "u", "k", "--id", ""], "invalid_value", "refund_id"),
    ],
)
def test_what_can_not_be_taken_back_is_told_with_its_code(with_tiers, words, code, field):
    with_tiers("grant", "u", "5", "--id", "g")

    error = with_tiers(*words, "--json").error

    assert (error["code"], error["field"]) == (code, field)
    assert with_tiers("balance", "u", "--json").answer["credits"] == "5"


def test_looking_at_a_user_makes_none(with_tiers):
    error = with_tiers("balance", "nobody", "--json").error
    again = with_tiers("balance", "nobody").err

    assert (error["code"], error["field"]) == ("unknown_user", "user")
    assert again.startswith("error: no user 'nobody'")


def test_a_user_is_made_and_changed_field_by_field(with_tiers):
    made = with_tiers("user", "set", "u", "--timezone", "Europe/Berlin", "--json").answer
    moved = with_tiers("user", "set", "u", "--tier", "pro", "--cycle-months", "12", "--json").answer
    balance = with_tiers("balance", "u", "--json").answer

    assert (made["tier"], made["timezone"], made["cycle_months"]) == ("free", "Europe/Berlin", 1)
    assert {**moved, "subscription": None} == {
        **made, "tier": "pro", "cycle_months": 12, "subscription": None
    }  # fmt: skip
    assert balance["limits"]["image/day"]["max"] == 1000


def test_a_tier_with_an_end_is_shown_day_by_day_and_told_twice_counts_once(with_tiers):
    words = ["user", "set", "u", "--tier", "pro", "--until", "2199-12-31", "--revenue", "9.99"]

    first, again = with_tiers(*words, "--json").answer, with_tiers(*words, "--json").answer
    shown = with_tiers("user", "show", "u", "--json").answer
    balance = with_tiers("balance", "u", "--json").answer

    assert first == again
    running = first["subscription"]
    assert (running["tier"], running["status"], running["revenue"]) == ("pro", "active", "9.99")
    assert running["ends_at"] == "2200-01-01T00:00:00Z"
    assert (running["day"], running["days"] - running["days_remaining"]) == (1, 1)
    assert shown["history"] == [running]
    assert balance["subscription"] == running
    assert (shown["total_revenue"], shown["highest_tier_reached"]) == ("9.99", "pro")
    line = f"day 1 of {running['days']}, {running['days_remaining']} remaining"
    assert line in with_tiers("user", "show", "u").out
    assert line in with_tiers("balance", "u").out


def test_a_user_that_is_not_there_can_not_be_shown(with_tiers):
    assert with_tiers("user", "show", "u", "--json").error["field"] == "user"


async def test_the_adoption_of_features_is_shown(with_tiers, redis_url, prefix):
    nothing = with_tiers("adoption")
    with_tiers("user", "set", "u", "--tier", "pro")
    with_tiers("balance", "u")  # brings the user into Redis, where no worker runs to do it
    async with Quota.from_url(redis_url, prefix=prefix) as quota:
        await quota.record("u", "image", 4)
    with_tiers("grant", "u", "1")  # applies the log

    every = with_tiers("adoption", "--json").answer
    one = with_tiers("adoption", "image", "--days", "7", "--json").answer

    assert "nothing was used yet" in nothing.out
    [found] = every["features"]
    assert (found["feature"], found["users"], found["share"], found["units"]) == (
        "image",
        1,
        1.0,
        4,
    )
    assert (one["days"], one["tiers"]["pro"]["users"]) == (7, 1)
    assert "image" in with_tiers("adoption").out
    assert "pro" in with_tiers("adoption", "image").out


@pytest.mark.parametrize(
    ("words", "field"),
    [
        (["user", "set", "u", "--tier", "gold"], "tier"),
        (["user", "set", "u", "--tier", ""], "tier"),
        (["grant", "u", "5", "--kind", "stolen"], "kind"),
        (["grant", "u", "5", "--priority", "-1"], "priority"),
        (["grant", "u", "5", "--priority", "9007199254740992"], "priority"),
        (["grant", "u", "5", "--expires-at", "2001-01-01T00:00:00Z"], "expires_at"),
        (["grant", "u", "5", "--expires-at", "9999-01-01T00:00:00Z"], "expires_at"),
        (["grant", "u", "5", "--effective-at", "1960-01-01T00:00:00Z"], "effective_at"),
        (["grant", "u", "5", "--every", "year"], "every"),
        (["grant", "u", "5", "--min-rollover", "2", "--max-rollover", "1"], "min_rollover"),
        (["grant", "u", "5", "--max-rollover", "-1"], "max_rollover"),
        (["user", "set", "u", "--until", "2199-12-31"], "until"),  # the default tier has no end
        (["user", "set", "u", "--tier", "pro", "--until", "2001-01-01"], "until"),
        (["user", "set", "u", "--tier", "pro", "--until", "2199-02-30"], "until"),
        (["user", "set", "u", "--tier", "pro", "--until", "soon"], "until"),
        (["user", "set", "u", "--revenue", "9.999"], "revenue"),
        (["user", "set", "u", "--revenue", "-1"], "revenue"),
        (["adoption", "No Feature"], "feature"),
        (["adoption", "--days", "0"], "days"),
        (["user", "set", "u", "--anchor", "1960-01-01T00:00:00Z"], "anchor"),
        (["user", "set", "u", "--anchor", "9999-01-01T00:00:00Z"], "anchor"),
        (["grant", b"\xff\xfe", "5"], "user"),
        (["balance", "u", "--server", "x"], "--server"),
        (["explain", "u", "No Feature"], "feature"),
    ],
)
def test_what_only_the_rules_can_refuse_is_refused_with_its_field_named(with_tiers, words, field):
    assert with_tiers(*words, "--json").error["field"] == field
    assert "no user" in with_tiers("balance", "u").err  # nothing was done by half


def test_text_that_a_terminal_would_obey_is_shown_as_text(with_tiers):
    with_tiers("grant", "[red]u[/]", "5", "--id", ":smile:\x1b[2J")

    shown = with_tiers("balance", "[red]u[/]").out

    assert "[red]u[/]" in shown
    assert ":smile:\\x1b[2J" in shown


@pytest.mark.parametrize(
    "named",
    [
        {"DATABASE_URL": "postgresql://me:hunter2@127.0.0.1:1/x"},
        {"REDIS_URL": "redis://:hunter2@127.0.0.1:1"},
    ],
)
def test_a_server_that_does_not_answer_is_named_in_one_line(allotment, named):
    ran = allotment("balance", "u", **named)

    (name,) = named
    assert ran.code == 2
    assert ran.out == ""
    assert ran.err.count("\n") == 1
    assert name in ran.err
    assert "hunter2" not in ran.err


def test_another_number_of_shards_is_refused(with_tiers):
    error = with_tiers("balance", "u", "--json", SHARDS="7").error

    assert (error["code"], error["field"]) == ("invalid_setting", "SHARDS")


def test_verify_finds_what_was_falsified_and_repairs_it(with_tiers, psql):
    for user in ("u", "v"):
        with_tiers("grant", user, "20", "--id", "gift")
    clean = with_tiers("verify", "--json")
    psql("UPDATE credit_grants SET left_micro = left_micro + 500000")

    found = with_tiers("verify", "--json")
    shown = with_tiers("verify", "--user", "v")
    repaired = with_tiers("verify", "--fix", "--json")
    again = with_tiers("verify")

    assert [ran.code for ran in (clean, found, shown, repaired, again)] == [0, 1, 1, 0, 0]
    assert clean.answer == {
        "users": 2, "found": 0, "repaired": 0, "remaining": 0, "figures": {}, "differences": [],
    }  # fmt: skip
    assert found.answer["figures"] == {"credit_grants.left_micro": 2}
    one = next(one for one in found.answer["differences"] if one["user"] == "v")
    assert one == {
        "user": "v", "figure": "credit_grants.left_micro", "of": "gift", "stored": "20.5",
        "expected": "20", "repairable": True, "repaired": False,
    }  # fmt: skip
    assert "credit_grants.left_micro" in shown.out
    assert "users: 1, differences: 1" in shown.out
    assert (repaired.answer["repaired"], repaired.answer["remaining"]) == (2, 0)
    assert "every figure is what the records come to" in again.out
    assert with_tiers("verify", "--user", "nobody", "--json").error["field"] == "user"


def test_verify_lists_what_it_can_not_repair(with_tiers, psql):
    with_tiers("grant", "u", "20", "--id", "gift")
    psql("DELETE FROM credit_entries")

    ran = with_tiers("verify", "--fix", "--json")
    shown = with_tiers("verify", "--fix")

    assert (ran.code, shown.code) == (1, 1)
    assert (ran.answer["repaired"], ran.answer["remaining"]) == (0, 2)
    assert "not repairable" in shown.out


def test_rebuild_counts_days_and_months_anew(with_tiers, psql):
    for user in ("u", "v"):
        with_tiers("grant", user, "20")
    psql("INSERT INTO user_active_days SELECT id, '2025-01-01', 3 FROM users")

    wrong = with_tiers("verify", "--json")
    one, both = with_tiers("rebuild", "--user", "u", "--json"), with_tiers("rebuild")

    assert [ran.code for ran in (wrong, one, both)] == [1, 0, 0]
    assert wrong.answer["figures"] == {"user_active_days": 2}
    assert one.answer == {"users": 1}
    assert "users: 2" in both.out
    assert with_tiers("verify").code == 0
    assert with_tiers("rebuild", "--user", "nobody", "--json").error["field"] == "user"


async def test_reconcile_finds_who_differs_and_has_them_loaded_anew(with_tiers, redis_url, prefix):
    for user in ("u", "v"):
        with_tiers("grant", user, "20")
        with_tiers("balance", user)
    clean = with_tiers("reconcile", "--json")
    async with Redis.from_url(redis_url) as redis:
        async for name in redis.scan_iter(f"{prefix}:*:u:*"):
            await redis.hincrby(name, "c", 500_000)

    dry = with_tiers("reconcile", "--dry-run", "--json")
    shown = with_tiers("reconcile", "--user", "v")
    gone = with_tiers("reconcile", "--user", "v")
    healed = with_tiers("reconcile", "--json")
    again = with_tiers("reconcile", "--json")

    assert [ran.code for ran in (clean, dry, shown, gone, healed, again)] == [0, 1, 1, 0, 1, 0]
    assert clean.answer == {
        "dry_run": False, "users": 2, "synced": 2, "drifted": 0, "busy": 0, "absent": 0, "healed": 0,
        "differences": [], "left_out": 0,
    }  # fmt: skip
    assert (dry.answer["drifted"], dry.answer["healed"]) == (2, 0)
    assert next(one for one in dry.answer["differences"] if one["user"] == "v") == {
        "user": "v", "kind": "credits", "what": "credits", "feature": None,
        "cached": "20.5", "stored": "20", "drift": "0.5",
    }  # fmt: skip
    assert "20.5" in shown.out
    assert "1 differ, dropped, to be loaded anew" in shown.out
    assert "1 not loaded" in gone.out
    assert (healed.answer["drifted"], healed.answer["healed"]) == (1, 1)
    assert again.answer["users"] == 0
    assert with_tiers("reconcile", "--user", "nobody", "--json").error["field"] == "user"


async def test_reconcile_that_could_not_compare_is_no_success(with_tiers, redis_url, prefix):
    with_tiers("grant", "u", "20")
    with_tiers("balance", "u")
    async with Redis.from_url(redis_url) as redis:
        async for name in redis.scan_iter(f"{prefix}:*:meta"):
            await redis.hset(name, "epoch", 9)  # no worker runs that would begin a new one

    named = with_tiers("reconcile", "--user", "u", "--json")
    all_of_them = with_tiers("reconcile")

    assert (named.code, named.answer["busy"]) == (1, 1)
    assert all_of_them.code == 1
    assert "1 could not be compared now, try again" in all_of_them.out


def test_quarantine_lists_shows_and_puts_back(with_tiers, psql):
    psql(
        """INSERT INTO quarantined_records (source, place, raw, reason) VALUES
           ('log:0', '1700000000000-0/0', '["u","tokens",5,"k",0]', 'was wrong'),
           ('log:0', '1700000000001-0/0', '["u","tokens",-5,"k",0]', 'amount'),
           ('job', 'j-1 then', '\\xff00', 'not a job')"""
    )

    listed = with_tiers("quarantine", "ls", "--limit", "2", "--json")
    shown = with_tiers("quarantine", "ls")
    one, other = (with_tiers("quarantine", "show", number, "--json") for number in "13")
    missing = with_tiers("quarantine", "retry", "1", "99", "--json")
    first = with_tiers("quarantine", "retry", "1")
    rest = with_tiers("quarantine", "retry", "--all", "--json")
    left = with_tiers("quarantine", "ls", "--json")

    assert (listed.answer["total"], listed.answer["left_out"]) == (3, 1)
    row = listed.answer["records"][0]
    assert row.pop("created_at")
    assert row == {
        "id": 1, "source": "log:0", "place": "1700000000000-0/0", "reason": "was wrong",
        "retries": 0, "bytes": 22,
    }  # fmt: skip
    assert "was wrong" in shown.out
    assert one.answer["raw"] == '["u","tokens",5,"k",0]'
    assert (other.answer["raw"], other.answer["raw_base64"]) == (None, "/wA=")
    assert missing.error["field"] == "id"
    assert (first.code, first.out) == (0, "1 recorded, 0 there already, 0 refused\n")
    assert rest.code == 1
    assert rest.answer | {"refusals": None} == {
        "tried": 2, "recorded": 0, "already_there": 0, "refused": 2, "refusals": None,
    }  # fmt: skip
    assert [one["id"] for one in rest.answer["refusals"]] == [2, 3]
    assert [one["retries"] for one in left.answer["records"]] == [1, 1]
    assert with_tiers("balance", "u", "--json").answer["limits"]["tokens/month"]["used"] == 5
