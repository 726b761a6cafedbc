from __future__ import annotations

import json
from pathlib import Path

import pytest

from cli.main import run

NOBODY = "postgresql://nobody@127.0.0.1:1/none"  # refused input must not even be carried there
LONG = "x" * 201

AMOUNTS = [
    "abc", "", "0", "0.000000", "-5", "-0.1", "nan", "NaN", "inf", "1e3", "1_000", " 5", "+5",
    "12.1234567", "9007199254740992", "9007199254.740992", "9" * 400, "１２", "5\0", "0x10", "1,5",
]  # fmt: skip
USERS = ["", LONG, "a\0b", "a\x1b[31mb", "\ud800"]
NAMES = ["", LONG, "a\0b", "\ud800"]
INSTANTS = [
    "", "tomorrow", "2024-01-01", "2024-01-01T00:00:00", "2024-02-30T00:00:00Z", "nan", "0", "-1",
    "9007199254740992", "2024-01-01T00:00:00Z\0", "2" * 400,
]  # fmt: skip
NUMBERS = ["", "x", "1.5", "nan", "1e3", "\0", "9" * 5000]
ZONES = ["", "Mars/Base", "../../etc/passwd", "/etc/passwd", "America", "a\0b", "x" * 400, "\ud800"]
MONTHS = ["0", "-1", "121", "9007199254740992"]

REFUSED = [
    *((["grant", "u", value], "amount") for value in AMOUNTS),
    *((["grant", value, "5"], "user") for value in USERS),
    *((["grant", "u", "5", "--id", value], "id") for value in NAMES),
    *((["grant", "u", "5", "--expires-at", value], "expires_at") for value in INSTANTS),
    *((["grant", "u", "5", "--effective-at", value], "effective_at") for value in INSTANTS),
    *((["grant", "u", "5", "--priority", value], "priority") for value in NUMBERS),
    *((["balance", value], "user") for value in USERS),
    *((["user", "set", value], "user") for value in USERS),
    *((["verify", "--user", value], "user") for value in USERS),
    *((["reconcile", "--user", value], "user") for value in USERS),
    *((["quarantine", "retry", value], "id") for value in [*NUMBERS, "0", "-1"]),
    *((["quarantine", "show", value], "id") for value in [*NUMBERS, "0", "-1"]),
    *((["quarantine", "ls", "--limit", value], "limit") for value in [*NUMBERS, "0", "10001"]),
    (["quarantine", "retry"], "id"),
    (["quarantine", "retry", "1", "--all"], "id"),
    *((["user", "set", "u", "--timezone", value], "timezone") for value in ZONES),
    *((["user", "set", "u", "--anchor", value], "anchor") for value in INSTANTS),
    *(
        (["user", "set", "u", "--cycle-months", value], "cycle_months")
        for value in NUMBERS + MONTHS
    ),
    (["grant", "u"], "amount"),
    (["grant"], "user"),
    (["grant", "u", "5", "--prioritee", "3"], "--prioritee"),
    (["grant", "u", "-inf"], "-i"),
    (["balance"], "user"),
    (["tiers", "apply"], "file"),
    (["tiers", "apply", "no-such-file.toml"], "file"),
    (["tiers", "apply", "/"], "file"),
    (["tiers", "apply", "a\0b"], "file"),
    (["tiers", "apply", LONG * 50], "file"),
    (["up", "--tiers", "no-such-file.toml"], "file"),
]

FREE = 'default_tier = "free"\n[tiers.free]\n'
LIMITS = f"{FREE}[tiers.free.limits]\n"
PATH = "tiers.free.limits"

FILES = [
    ("default_tier = ", "file"),
    ("[a" * 100_000, "file"),
    ("a = " + "[" * 100_000, "file"),
    ("\0", "file"),
    ("# " + "x" * 1_000_000, "file"),
    ("", "tiers"),
    ('default_tier = "pro"\n[tiers.free]', "default_tier"),
    (f"colour = 1\n{FREE}", "colour"),
    (f'{FREE}[tiers."a\\u0000b"]', "tiers.a\0b"),
    (f'{LIMITS}"Bad Name" = {{max = 1, per = "day"}}', f"{PATH}.Bad Name"),
    (f'{LIMITS}x = {{max = -1, per = "day"}}', f"{PATH}.x.max"),
    (f'{LIMITS}x = {{max = nan, per = "day"}}', f"{PATH}.x.max"),
    (f'{LIMITS}x = {{max = "1", per = "day"}}', f"{PATH}.x.max"),
    (f'{LIMITS}x = {{max = 9007199254740992, per = "day"}}', f"{PATH}.x.max"),
    (f'{LIMITS}x = [{{max = 1, per = "day"}}, {{max = 1, per = "aeon"}}]', f"{PATH}.x[1].per"),
    (f'{LIMITS}x = {{max = 1, per = "day", mode = "weak"}}', f"{PATH}.x.mode"),
    (f"{FREE}[features.x]\nprice = 1.5", "features.x.price"),
    (f'{FREE}[features.x]\nprice = "-1"', "features.x.price"),
    (f'{FREE}credits = {{amount = "nan", every = "month"}}', "tiers.free.credits.amount"),
    (f"{FREE}[tiers.free.alerts]\nthresholds = [0]", "tiers.free.alerts.thresholds[0]"),
]


@pytest.fixture(autouse=True)
def _servers_out_of_reach(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", NOBODY)
    monkeypatch.setenv("REDIS_URL", "redis://127.0.0.1:1")


@pytest.mark.parametrize(("words", "field"), REFUSED)
def test_a_bad_value_is_refused_with_its_field_named(words, field, capsys):
    code = run([*words, "--json"])

    out, err = capsys.readouterr()
    assert code == 2
    assert out.count("\n") == 1
    error = json.loads(out)["error"]
    assert error["field"] == field
    assert error["message"]
    assert "Traceback" not in err


@pytest.mark.parametrize(("words", "field"), REFUSED)
def test_a_person_is_told_the_same_in_one_line(words, field, capsys):
    code = run(words)

    out, err = capsys.readouterr()
    told = [line for line in err.splitlines() if line.startswith("error: ")]
    assert code == 2
    assert out == ""
    assert len(told) == 1
    assert len(err.splitlines()) <= 2  # the second says where to read how it is called
    assert field.strip("-").replace("_", "-") in err.lower().replace("_", "-")
    assert "\x1b" not in err


@pytest.mark.parametrize(("text", "field"), FILES)
def test_a_wrong_tiers_file_is_refused_with_the_entry_named(text, field, tmp_path: Path, capsys):
    file = tmp_path / "tiers.toml"
    file.write_text(text)

    code = run(["tiers", "apply", str(file), "--json"])

    error = json.loads(capsys.readouterr().out)["error"]
    assert code == 2
    assert error["field"] == field
    assert len(error["message"]) < 600


def test_a_tiers_file_that_is_not_text_is_refused(tmp_path: Path, capsys):
    file = tmp_path / "tiers.toml"
    file.write_bytes(b"\xff\xfe\x00")

    code = run(["tiers", "apply", str(file), "--json"])

    assert code == 2
    assert json.loads(capsys.readouterr().out)["error"]["field"] == "file"


@pytest.mark.parametrize(
    ("variable", "value"),
    [("WEB_PORT", "70000"), ("SHARDS", "0"), ("KEY_PREFIX", "{x}"), ("DATABASE_URL", "mysql://x"),
     ("REDIS_URL", "http://x"), ("LOG_LEVEL", "loud")],
)  # fmt: skip
def test_a_wrong_setting_is_named(variable, value, monkeypatch, capsys):
    monkeypatch.setenv(variable, value)

    code = run(["balance", "u", "--json"])

    assert code == 2
    error = json.loads(capsys.readouterr().out)["error"]
    assert (error["code"], error["field"]) == ("invalid_setting", variable)


def test_a_password_is_not_in_the_error(monkeypatch, capsys):
    monkeypatch.setenv("DATABASE_URL", "postgresql://me:hunter2@127.0.0.1:1/x")

    code = run(["balance", "u", "--json"])

    out, err = capsys.readouterr()
    assert code == 2
    assert json.loads(out)["error"]["code"] == "server_unusable"
    assert "hunter2" not in out + err


def test_a_command_that_is_misspelt_is_suggested(capsys):
    assert run(["migrat"]) == 2
    assert "Did you mean 'migrate'?" in capsys.readouterr().err
