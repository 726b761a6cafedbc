"""`allotment chaos`: a short run comes out clean, and an interrupted one leaves nothing behind."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
import tempfile
from pathlib import Path

import psutil
import pytest

from cli.chaos.acts import act_of
from cli.chaos.book import Answered, Book, read_book, told_by
from cli.chaos.schedule import KINDS, schedule
from cli.main import run

ROOT = Path(__file__).parents[2]
SECONDS_MAX = 240  # before a run is taken for hung
USERS = ("ann", "bob", "cy")


async def start(*options: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable, "-c", "from cli.main import main; main()", "chaos", "--json", *options,
        cwd=ROOT, stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        # A shell that runs the tests in the background has Ctrl-C ignored, which a child inherits.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip


def directories() -> set[str]:
    found = {tempfile.gettempdir(), "/var/tmp"}
    return {str(path) for base in found for path in Path(base).glob("allotment-chaos-*")}


async def test_nothing_is_lost_or_counted_twice_whatever_is_killed() -> None:
    before = directories()
    process = await start("--seconds", "5", "--seed", "11")

    async with asyncio.timeout(SECONDS_MAX):
        answer, said = await process.communicate()

    assert process.returncode == 0, f"{answer.decode()}\n{said.decode()}"
    found = json.loads(answer)
    promised = ("lost", "double_counted", "over_admitted", "drift_after_heal")
    assert [found[name] for name in promised] == [0, 0, 0, 0], found
    assert found["admitted"] == found["applied"] > 0
    assert found["seed"] == 11
    assert set(found["faults"]) == set(KINDS)
    # A fault whose target is away at that moment does not take place.
    assert sum(found["faults"].values()) >= len(KINDS) - 4
    assert directories() == before


async def test_a_run_that_is_interrupted_leaves_nothing_behind() -> None:
    before = directories()
    process = await start("--seconds", "600")
    assert process.stderr is not None
    async with asyncio.timeout(SECONDS_MAX):
        async for line in process.stderr:
            if b"of load and faults" in line:
                break
        children = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGINT)
        await process.communicate()

    assert process.returncode == 130
    assert len(children) > 6
    assert not [
        child for child in children if child.is_running() and child.status() != psutil.STATUS_ZOMBIE
    ]
    assert directories() == before


@pytest.mark.parametrize("words", [["--seconds", "0"], ["--seed", "-1"], ["--seconds", "x"]])
def test_a_wrong_option_is_refused_by_name(words: list[str], capsys) -> None:
    assert run(["chaos", *words]) == 2
    assert words[0] in capsys.readouterr().err


def test_a_schedule_is_that_of_its_seed_and_has_every_fault() -> None:
    assert schedule(60, 1) == schedule(60, 1)
    assert schedule(60, 1) != schedule(60, 2)
    assert {fault.kind for fault in schedule(1, 3)} == set(KINDS)


def test_an_act_is_the_same_whenever_it_is_asked_for_and_some_repeat_others() -> None:
    def acts(producer: int) -> list[object]:
        return [
            act_of(number, producer=producer, seed=7, began_ms=1_700_000_000_000, users=USERS)
            for number in range(800)
        ]

    first = [act.call for act in acts(0)]  # type: ignore[attr-defined]

    assert first == [act.call for act in acts(0)]  # type: ignore[attr-defined]
    assert len({(call.user, call.key) for call in first}) < len(first) - 40
    shared = {call.key for call in first} & {act.call.key for act in acts(1)}  # type: ignore[attr-defined]
    assert len(shared) > 60


def test_a_book_that_was_torn_by_a_kill_says_what_is_open(tmp_path: Path) -> None:
    path = tmp_path / "book"
    acts = [
        act_of(number, producer=0, seed=7, began_ms=1_700_000_000_000, users=USERS)
        for number in range(4)
    ]
    with Book(path) as book:
        book.asks(acts)
        book.answered({1: Answered([("chats", 1, 0)], fresh=True), 2: Answered([], fresh=False)})
    with path.open("ab") as file:
        file.write(b'{"answered":{"3":[[["ch')
    with Book(path):
        pass

    written = read_book(path)
    ledger = told_by([(written, dict(enumerate(acts)))]).ledger

    assert list(written.open) == [0, 3]
    assert written.next == 4
    assert [(entry.feature, entry.amount) for entry in ledger.entries] == [("chats", 1)]
    assert len(ledger.unanswered) == 2
