"""Ends holds: what a commit or a release asks of Redis, and of PostgreSQL where Redis has forgotten the hold."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import TYPE_CHECKING

from redis.exceptions import RedisError

from quota.errors import QuotaUnavailableError, UnknownHoldError
from quota.hold import Settlement
from quota.prices import cost_of_units
from quota.values import UsageRecord
from quota.wire import COMMIT, COMMIT_ALL, RELEASE, Ending, settlement_of

if TYPE_CHECKING:
    from quota.asking import Asker
    from quota.held import Held
    from quota.loading import Loader
    from quota.values import User

__all__ = ["end_hold"]

_GONE = ""  # the feature of a hold that ended: no feature, so no hold will be found under it
_log = logging.getLogger("quota")


async def end_hold(
    asker: Asker,
    loader: Loader,
    user: User,
    key: str,
    units: int | None,
    *,
    now_ms: int,
    release: bool = False,
) -> Settlement:
    """End a hold with *units* used, None for all of them, or *release* it; *now_ms* 0 for the server's clock.

    Raises:
        UnknownUserError, UnknownHoldError, QuotaUnavailableError
    """
    wanted = "released" if release else "committed"
    try:
        held = await asker.held(user, key)
        ask = _ending(user, key, held, units, release=release)
        try:
            at_ms, replies = await asker.answer(ask, user, now_ms)
        except UnknownHoldError as unknown:
            found = await asker.held(user, key) if held is None else None
            if found is None:
                return replace(await _ended(asker, loader, user, key, unknown), wanted=wanted)
            # The user was not in Redis, and is now.
            ask = _ending(user, key, found, units, release=release)
            at_ms, replies = await asker.answer(ask, user, now_ms)
    except RedisError as error:
        raise QuotaUnavailableError(str(error)) from error
    return replace(settlement_of(replies[0], ask.records[0], at_ms), wanted=wanted)


async def _ended(
    asker: Asker, loader: Loader, user: User, key: str, unknown: UnknownHoldError
) -> Settlement:
    """How a hold ended that Redis does not know any more: PostgreSQL does."""
    try:
        ended = await loader.ended(asker.keys, user, key)
    except QuotaUnavailableError as error:
        _log.warning("nobody to ask how hold %s ended: %s", key, error)
        ended = None
    if ended is None:
        raise unknown
    return Settlement(key, ended["status"], ended["amount"], ended["cost_micro"], replayed=True)


def _ending(user: User, key: str, held: Held | None, units: int | None, *, release: bool) -> Ending:
    """The end of a hold as it is asked for; of one that is gone, how it ended is remembered."""
    feature = held.feature if held else _GONE
    if release:
        return Ending(RELEASE, UsageRecord(user, feature, 0, key))
    if units is None or (held and units == held.amount):
        return Ending(COMMIT_ALL, UsageRecord(user, feature, held.amount if held else 0, key))
    numerator, denominator = held.price if held else (0, 1)
    cost = cost_of_units(numerator, denominator, amount=units) if units else 0
    return Ending(COMMIT, UsageRecord(user, feature, units, key), cost=cost)
