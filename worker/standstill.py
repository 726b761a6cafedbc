"""Takes a shard from a worker that has it and stands still: frozen, or cut off, in the middle of sending a run.

PostgreSQL ends a transaction that is idle, but not one that waits for the rest of a COPY: that one would
keep its shard for ever. A worker that works slowly is left alone: what it sends, or PostgreSQL does, moves.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import structlog

from service.database import statement

if TYPE_CHECKING:
    from service.database import Database
    from service.metrics import Metrics

__all__ = ["Standstill"]

_PATIENCE_S = 5.0  # with a transaction that has a shard; most of them take less
_STILL_S = 10.0  # without a byte from its client
_log = structlog.get_logger("allotment.standstill")


@dataclass(slots=True)
class _Holder:
    """A transaction that has had a shard *since*, and what its client was seen to have sent, since when."""

    transaction: int
    since: float
    sent: tuple[object, ...] = ()
    sent_since: float = 0.0


class Standstill:
    """What this worker has seen of those who have the shards."""

    def __init__(self, database: Database, metrics: Metrics) -> None:
        self._database = database
        self._metrics = metrics
        self._holders: dict[int, _Holder] = {}

    async def look(self, shard: int, *, locked_by: int) -> None:
        """End the session that has *shard*, if it was seen to stand still for long.

        *locked_by* is the transaction that locked the shard's row last, 0 for none: it may be over.
        """
        now = time.monotonic()
        holder = self._holders.get(shard)
        if holder is None or holder.transaction != locked_by:
            self._holders[shard] = _Holder(locked_by, now)
        elif locked_by and now - holder.since >= _PATIENCE_S:
            await self._look_at(shard, holder, now)

    async def _look_at(self, shard: int, holder: _Holder, now: float) -> None:
        async with self._database.connection() as connection:
            row = await connection.fetchrow(statement("worker", "shard_holder"), shard)
            sent = () if row is None else tuple(row)
            if sent != holder.sent:
                holder.sent, holder.sent_since = sent, now
            elif sent and now - holder.sent_since >= _STILL_S:
                ended = await connection.fetchval(statement("worker", "end_holder"), shard, *sent)
                if ended:
                    self._metrics.shards_freed.inc()
                    _log.warning("shard.freed", shard=shard, session=sent[0])
