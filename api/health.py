"""Is it alive, and may it get requests?

Alive asks nothing of anybody: a restart mends no database. Ready asks every server each time. What
is wrong goes to the log in full; the answer names the part, and holds no address.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any

import structlog
from starlette.responses import JSONResponse

from api.problems import problem
from service.migrations import MigrationError, require_current
from service.server_checks import check_postgres, check_redis

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response

    from service.settings import Settings

__all__ = ["healthz", "readyz"]

_CHECK_SECONDS_MAX = 3  # who asks gives up after some seconds too
_log = structlog.get_logger("allotment.health")


async def healthz(_: Request) -> Response:
    """200 while the process answers at all."""
    return JSONResponse({"status": "ok"})


async def readyz(request: Request) -> Response:
    """200 when the servers can be used and the schema is ours, else 503 and what is not."""
    settings: Settings = request.app.state.settings
    redis = {"redis": settings.quota_redis, "queue_redis": settings.queue_redis}
    if redis["redis"] == redis["queue_redis"]:
        del redis["queue_redis"]
    found = await asyncio.gather(
        _checked("postgresql", check_postgres(settings.asyncpg_dsn)),
        _checked("migrations", require_current(settings.asyncpg_dsn)),
        *(_checked(name, check_redis(url)) for name, url in redis.items()),
    )
    checks = dict(found)
    if checks["postgresql"] != "ok":
        checks["migrations"] = "not known"
    wrong = [f"{name} ({state})" for name, state in checks.items() if state != "ok"]
    if wrong:
        return problem(503, f"not ready: {', '.join(wrong)}", checks=checks)
    return JSONResponse({"status": "ready", "checks": checks})


async def _checked(name: str, check: Coroutine[Any, Any, None]) -> tuple[str, str]:
    try:
        async with asyncio.timeout(_CHECK_SECONDS_MAX):
            await check
    except MigrationError as error:
        return name, str(error)
    except Exception as error:
        _log.warning("health.not_ready", part=name, error=str(error), kind=type(error).__name__)
        return name, "no answer in time" if isinstance(error, TimeoutError) else "cannot be used"
    return name, "ok"
