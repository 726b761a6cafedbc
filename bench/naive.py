"""What one would write first: an arq job per record, and a transaction through the ORM per job.

`python -m bench.naive` is its worker.
"""

from __future__ import annotations

import asyncio
import os
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any
from uuid import UUID, uuid4

from arq import Worker
from arq.connections import ArqRedis
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import create_async_engine
from sqlmodel import col
from sqlmodel.ext.asyncio.session import AsyncSession

from models import FeatureUsage, UsageLog
from service.urls import sqlalchemy_url

__all__ = ["FEATURE", "QUEUE", "write_usage"]

QUEUE = "bench:naive"
FEATURE = "naive"
_JOBS_MAX = 50
_POLL_DELAY_S = 0.01


async def write_usage(
    ctx: dict[str, Any], user_id: str, feature: str, amount: int, credit: str
) -> None:
    """Write one row of `usage_logs` and count it in `feature_usage`."""
    now, user = datetime.now(UTC), UUID(user_id)
    count = insert(FeatureUsage).values(
        user_id=user, feature_name=feature, usage_count=amount, last_used=now
    )
    count = count.on_conflict_do_update(
        index_elements=["user_id", "feature_name"],
        set_={"usage_count": col(FeatureUsage.usage_count) + amount, "last_used": now},
    )
    async with AsyncSession(ctx["engine"]) as session, session.begin():
        session.add(
            UsageLog(
                id=uuid4(),
                user_id=user,
                action=feature,
                amount=amount,
                credits_consumed=Decimal(credit),
                created_at=now,
            )
        )
        await session.exec(count)


async def main() -> None:
    """Work until SIGTERM."""
    engine = create_async_engine(
        sqlalchemy_url(os.environ["DATABASE_URL"]), pool_size=_JOBS_MAX, max_overflow=0
    )
    worker = Worker(
        functions=[write_usage],
        queue_name=QUEUE,
        redis_pool=ArqRedis.from_url(os.environ["REDIS_URL"]),
        ctx={"engine": engine},
        max_jobs=_JOBS_MAX,
        poll_delay=_POLL_DELAY_S,
    )
    try:
        await worker.async_run()
    finally:
        await worker.close()
        await engine.dispose()


if __name__ == "__main__":
    asyncio.run(main())
