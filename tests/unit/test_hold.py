from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest

from quota.decision import LIMIT_EXCEEDED, OK, Decision
from quota.errors import InvalidValueError, QuotaUnavailableError, UnknownHoldError
from quota.hold import TTL_SECONDS_MAX, Hold, Reservation, Settlement, parse_ttl

NOW = datetime(2025, 1, 1, tzinfo=UTC)
Call = tuple[str, object, object, object, datetime | None]


def decision(code: str = OK) -> Decision:
    return Decision(code == OK, code, "tokens", 5, 30, 70, (), 0, "k")


class Settler:
    """Ends one hold, once: what was asked first wins, and what was asked is written down.

    *denies*: a commit of more than so many units leaves the hold open. *fails*: nothing is reached.
    """

    def __init__(self, *, denies: int = 5, fails: bool = False) -> None:
        self.calls: list[Call] = []
        self.ended: Settlement | None = None
        self._denies = denies
        self._fails = fails

    async def commit(
        self,
        user_id: object,
        hold_id: object,
        amount: object = None,
        *,
        now: datetime | None = None,
    ) -> Settlement:
        self.calls.append(("commit", user_id, hold_id, amount, now))
        units = 5 if amount is None else amount
        if not isinstance(units, int) or units < 0:
            raise InvalidValueError("amount", amount, "units")
        if units > self._denies:
            return Settlement("k", "open", 0, 0, decision=decision(LIMIT_EXCEEDED))
        return self._end(Settlement("k", "committed", units, 6 * units))

    async def release(
        self, user_id: object, hold_id: object, *, now: datetime | None = None
    ) -> Settlement:
        self.calls.append(("release", user_id, hold_id, None, now))
        return self._end(Settlement("k", "released", 0, 0, wanted="released"))

    def _end(self, settlement: Settlement) -> Settlement:
        if self._fails:
            raise QuotaUnavailableError
        self.ended = self.ended or settlement
        return self.ended

    @property
    def verbs(self) -> list[str]:
        return [verb for verb, *_ in self.calls]


def reserve(settler: Settler, code: str = OK) -> Reservation:
    async def asked() -> Hold:
        return Hold(settler, "user-1", decision(code))

    return Reservation(asked(), now=NOW)


# Ends


async def test_a_reserve_that_is_awaited_is_a_hold_that_nobody_ends_by_itself():
    settler = Settler()

    hold = await reserve(settler)

    assert hold
    assert (hold.id, hold.user_id, hold.settlement) == ("k", "user-1", None)
    assert settler.calls == []


async def test_a_hold_is_ended_by_its_user_and_key():
    settler = Settler()
    hold = await reserve(settler)

    settlement = await hold.commit(3, now=NOW)

    assert settlement
    assert settler.calls == [("commit", "user-1", "k", 3, NOW)]
    assert hold.settlement is settlement
    assert (settlement.status, settlement.amount, settlement.cost_micro) == ("committed", 3, 18)


async def test_a_release_after_a_commit_says_what_won():
    hold = await reserve(Settler())
    await hold.commit()

    settlement = await hold.release()

    assert (settlement.status, settlement.amount) == ("committed", 5)


@pytest.mark.parametrize("verb", ["commit", "release"])
async def test_a_denied_hold_has_no_end(verb: str):
    settler = Settler()
    hold = await reserve(settler, LIMIT_EXCEEDED)

    assert not hold
    with pytest.raises(UnknownHoldError, match="no hold 'k'"):
        await getattr(hold, verb)()
    assert settler.calls == []


# Blocks


async def test_a_block_releases_what_it_does_not_end():
    settler = Settler()

    async with reserve(settler) as hold:
        assert hold

    assert settler.calls == [("release", "user-1", "k", None, NOW)]


@pytest.mark.parametrize("verb", ["commit", "release"])
async def test_a_block_leaves_what_was_ended_in_it(verb: str):
    settler = Settler()

    async with reserve(settler) as hold:
        await getattr(hold, verb)()

    assert settler.verbs == [verb]


async def test_a_block_releases_after_an_exception_and_passes_it_on():
    settler = Settler()

    with pytest.raises(ZeroDivisionError):
        async with reserve(settler):
            raise ZeroDivisionError

    assert settler.verbs == ["release"]


async def test_a_block_keeps_what_was_committed_before_an_exception():
    settler = Settler()

    async def work() -> None:
        async with reserve(settler) as hold:
            await hold.commit(2)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await work()
    assert settler.verbs == ["commit"]


async def test_a_block_that_is_cancelled_releases():
    settler, entered = Settler(), asyncio.Event()

    async def work() -> None:
        async with reserve(settler):
            entered.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(work())
    await entered.wait()
    task.cancel()

    with pytest.raises(asyncio.CancelledError):
        await task
    assert settler.verbs == ["release"]


async def test_a_block_of_a_denied_hold_ends_nothing():
    settler = Settler()

    async with reserve(settler, LIMIT_EXCEEDED) as hold:
        assert not hold

    assert settler.calls == []


async def test_a_block_releases_a_hold_whose_commit_was_denied():
    settler = Settler()

    async with reserve(settler) as hold:
        settlement = await hold.commit(9)
        assert not settlement
        assert hold.settlement is None

    assert settler.verbs == ["commit", "release"]


async def test_a_hold_whose_commit_was_denied_can_be_committed_for_less():
    settler = Settler()

    async with reserve(settler) as hold:
        await hold.commit(9)
        assert await hold.commit(5)

    assert settler.verbs == ["commit", "commit"]


async def test_a_block_releases_a_hold_whose_commit_was_refused():
    settler = Settler()

    with pytest.raises(InvalidValueError):
        async with reserve(settler) as hold:
            await hold.commit(-1)

    assert settler.verbs == ["commit", "release"]


async def test_a_block_whose_release_fails_shows_what_failed_in_it():
    settler = Settler(fails=True)

    with pytest.raises(ZeroDivisionError):
        async with reserve(settler):
            raise ZeroDivisionError

    assert settler.verbs == ["release"]


async def test_a_block_whose_reserve_fails_is_not_entered():
    async def asked() -> Hold:
        raise QuotaUnavailableError

    with pytest.raises(QuotaUnavailableError):
        async with Reservation(asked(), now=None):
            pytest.fail("entered")


# Values


@pytest.mark.parametrize(
    ("status", "wanted", "true"),
    [
        ("committed", "committed", True),
        ("released", "committed", False),
        ("expired", "committed", False),
        ("open", "committed", False),
        ("released", "released", True),
        ("committed", "released", False),
        ("expired", "released", False),
    ],
)
def test_a_settlement_is_true_when_it_is_what_was_asked_for(status: str, wanted: str, true: bool):
    assert bool(Settlement("k", status, 0, 0, wanted=wanted)) is true


def test_a_settlement_is_told_in_json_values():
    settlement = Settlement("k", "committed", 3, 1_500_000, replayed=True)

    assert settlement.cost == Decimal("1.5")
    assert settlement.as_dict() == {
        "hold": "k",
        "status": "committed",
        "amount": 3,
        "cost": "1.5",
        "replayed": True,
        "decision": None,
    }


def test_a_settlement_that_left_the_hold_open_says_why():
    settlement = Settlement("k", "open", 0, 0, decision=decision(LIMIT_EXCEEDED))

    assert settlement.as_dict()["decision"] == decision(LIMIT_EXCEEDED).as_dict()


@pytest.mark.parametrize("ttl", [1, 60, TTL_SECONDS_MAX])
def test_a_hold_lasts_some_seconds(ttl: int):
    assert parse_ttl(ttl) == ttl


BAD: list[Any] = [0, -1, TTL_SECONDS_MAX + 1, 2**64, 1.0, float("nan"), True, None, "60", b"1", []]


@pytest.mark.parametrize("ttl", BAD, ids=repr)
def test_a_bad_ttl_is_refused_by_name(ttl: object):
    with pytest.raises(InvalidValueError, match=r"^ttl: expected whole seconds from 1 to 86400"):
        parse_ttl(ttl)
