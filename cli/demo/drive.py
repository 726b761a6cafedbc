"""Sends a stream of calls through the client, from concurrent tasks, and books every answer."""

from __future__ import annotations

import asyncio
from itertools import islice
from typing import TYPE_CHECKING

from cli.demo.day import CHECK, CONSUME, RECORD
from quota.decision import UNAVAILABLE
from quota.errors import KeyConflictError, QuotaError, QuotaUnavailableError
from quota.receipt import Receipt

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import TypeAlias

    from cli.demo.day import Call
    from cli.demo.ledger import Ledger
    from quota.client import Quota
    from quota.decision import Decision

    Answer: TypeAlias = Decision | Receipt | QuotaError

__all__ = ["ask", "drive", "is_missing"]

_TASKS = 6
_CALLS_AT_ONCE = 250  # of one task
_SINGLE = 25  # of these, consumed one by one, as web requests would
_TRIES_MAX = 6  # a worker that is killed is back within a few seconds, and a load waits five
_PAUSE_S = 0.5


async def drive(
    quota: Quota, calls: Iterator[Call], ledger: Ledger, *, advanced: Callable[[], object]
) -> None:
    """Make every call, and again with the same key where no answer came.

    *advanced* is called after each batch.
    """

    async def work() -> None:
        while batch := list(islice(calls, _CALLS_AT_ONCE)):
            await _settle(quota, batch, ledger)
            advanced()

    async with asyncio.TaskGroup() as group:
        for _ in range(_TASKS):
            group.create_task(work())


async def _settle(quota: Quota, calls: list[Call], ledger: Ledger) -> None:
    for attempt in range(1, _TRIES_MAX + 1):
        answers = await ask(quota, calls)
        again = [call for call, answer in zip(calls, answers, strict=True) if is_missing(answer)]
        last = attempt == _TRIES_MAX
        for call, answer in zip(calls, answers, strict=True):
            if last or not is_missing(answer):
                _book(ledger, call, answer)
        if not again or last:
            return
        calls = again
        await asyncio.sleep(_PAUSE_S * attempt)


async def ask(quota: Quota, calls: list[Call]) -> list[Answer]:
    """The answers, in the order of the calls: most consumed together, the others one by one."""
    consumed = [place for place, call in enumerate(calls) if call.verb == CONSUME]
    together = consumed[_SINGLE:]
    alone = sorted(set(range(len(calls))) - set(together))
    many, others = await asyncio.gather(
        quota.consume_many(calls[place].arguments() for place in together),
        asyncio.gather(*(_ask_alone(quota, calls[place]) for place in alone)),
    )
    answers: dict[int, Answer] = {**dict(zip(together, many, strict=True))}
    answers |= zip(alone, others, strict=True)
    return [answers[place] for place in range(len(calls))]


async def _ask_alone(quota: Quota, call: Call) -> Answer:
    try:
        if call.verb == RECORD:
            return await quota.record(call.user, call.amounts, key=call.key, **call.payload)
        ask = quota.check if call.verb == CHECK else quota.consume
        return await ask(**call.arguments())
    except QuotaError as error:
        return error


def is_missing(answer: Answer) -> bool:
    """Whether nobody knows if the call was counted, so that it is to be repeated with its key."""
    if isinstance(answer, QuotaError):
        return isinstance(answer, QuotaUnavailableError)
    return not isinstance(answer, Receipt) and answer.code == UNAVAILABLE


def _book(ledger: Ledger, call: Call, answer: Answer) -> None:
    if call.verb == CHECK:
        ledger.checked()
    elif isinstance(answer, KeyConflictError):
        ledger.conflicted(call.user, call.feature)
    elif isinstance(answer, QuotaUnavailableError):
        ledger.unknown(call.user, call.feature, call.key)
    elif isinstance(answer, QuotaError):
        raise answer  # a record of ours that is not valid
    elif isinstance(answer, Receipt):
        ledger.decided(call.user, answer.decisions, verb=call.verb)
    else:
        ledger.decided(call.user, [answer], verb=call.verb)
