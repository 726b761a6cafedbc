"""A standing as Redis keeps it, and the one call that puts it there."""

from __future__ import annotations

from typing import TYPE_CHECKING

from quota.asking import USER_TTL_MS
from quota.period import CALENDAR_PERIODS, Window
from quota.scripts import script
from quota.standing import Profile, counter_line, standing_fields, windows_text

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from quota.keys import ShardKeys
    from quota.scripts import ScriptCaller
    from service.snapshot import Late
    from service.standing import Standing

__all__ = ["Loaded", "install"]

_UNKNOWN = Window(-1, -1)  # of a counter that admit.lua has loaded before it counts by it


class Loaded:
    """Profile and quota hash of a user; *asked* are the windows before that were counted.

    It is of *at_ms*, or of the instant at which the first hold was over, if that is earlier: the next
    decision then lets it expire, and logs that.
    """

    def __init__(
        self, standing: Standing, name: str, epoch: int, at_ms: int, asked: Late | None
    ) -> None:
        self.user_id = standing.user_id
        self.name = name
        held = standing.held()
        self.due_ms = held[0].expires_at_ms if held else 0
        account = standing.account
        stands_ms = max(min(at_ms, self.due_ms or at_ms), account.at_ms)
        account.advance(stands_ms)
        self.profile = Profile.of(standing.calendar, account, at_ms=stands_ms).dump()
        self.fields: dict[str, str | bytes] = standing_fields(
            standing.calendar,
            account,
            held,
            epoch=epoch,
            tier=standing.tier_name,
            allowance=standing.tier.allowance_text if standing.tier else "-",
            at_ms=stands_ms,
        )
        self.fields["w"] = windows_text(standing.calendar, at_ms)
        self.fields.update(_counters(standing, asked))


def _counters(standing: Standing, asked: Late | None) -> Mapping[str, bytes]:
    """The counters of every feature; those of the windows that ended last too, if they were asked for."""
    fields = {}
    pers = asked.windows(standing.calendar) if asked else ()
    for feature in standing.features():
        limits = standing.limits_of(feature)
        fields[f"f:{feature}"] = counter_line(limits, standing.counted.of(feature))
        if asked:
            before = dict.fromkeys(CALENDAR_PERIODS, (_UNKNOWN, 0))
            before.update(standing.counted.before(feature, pers))
            fields[f"p:{feature}"] = counter_line(limits, before)
    return fields


async def install(
    caller: ScriptCaller,
    shard: ShardKeys,
    loaded: Iterable[Loaded],
    *,
    epoch: bytes,
    token: str,
) -> None:
    """Put them in place, those whose token still stands; in an older epoch, none."""
    names: list[str] = []
    arguments: list[str | bytes | int] = []
    for one in loaded:
        name = one.user_id.hex
        names += [shard.user_of(name), shard.grants_of(name), shard.token_of(name)]
        arguments += [
            one.name,
            one.due_ms,
            one.profile,
            2 * len(one.fields),
            *(text for field in one.fields.items() for text in field),
        ]
    if names:
        await caller.call(
            script("install"),
            [shard.meta, shard.due, *names],
            [epoch, token, USER_TTL_MS, *arguments],
        )
