from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from cli.main import run

ROOT = Path(__file__).parents[2]
COMMANDS = [
    ["up"], ["serve"], ["worker"], ["migrate"], ["check-schema"], ["tiers"], ["tiers", "apply"], ["tiers", "show"],
    ["grant"], ["balance"], ["explain"], ["user"], ["user", "set"], ["user", "show"],
    ["adoption"], ["rebuild"], ["replay"], ["demo"], ["verify"], ["chaos"],
    ["reconcile"], ["quarantine"], ["quarantine", "ls"], ["quarantine", "show"], ["quarantine", "retry"],
]  # fmt: skip


@pytest.mark.parametrize("words", [[], *COMMANDS], ids=" ".join)
def test_the_help_of_every_command_says_what_it_does_and_shows_examples(words, capsys):
    code = run([*words, "--help"])

    out = capsys.readouterr().out
    lines = [line.strip() for line in out.splitlines() if line.strip()]
    assert code == 0
    assert lines[0].startswith("Usage: allotment")
    assert lines[1].endswith((".", ",")) or len(lines[1]) > 20
    assert "Examples:" in out
    assert " ".join(["allotment", *words]) in out.split("Examples:")[1]


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_every_command_that_does_something_has_json(words, capsys):
    run([*words, "--help"])

    assert "--json" in capsys.readouterr().out or words in (["tiers"], ["user"], ["quarantine"])


def test_the_list_of_commands_has_each_of_them(capsys):
    run(["--help"])

    listed = capsys.readouterr().out
    assert all(words[0] in listed for words in COMMANDS)


def test_no_command_at_all_shows_the_help_and_is_an_error(capsys):
    assert run([]) == 2
    assert "Usage: allotment" in capsys.readouterr().out


def test_the_version_is_that_of_the_checkout(capsys):
    pyproject = tomllib.loads((ROOT / "pyproject.toml").read_text())

    assert run(["--version"]) == 0
    assert capsys.readouterr().out == f"allotment {pyproject['project']['version']}\n"


def test_the_help_brings_no_database_driver_along():
    program = (
        "import sys; from cli.main import run; run(['--help']);"
        "sys.exit(any(name in sys.modules for name in ('sqlalchemy', 'asyncpg', 'arq')))"
    )

    ended = subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=False)

    assert ended.returncode == 0
