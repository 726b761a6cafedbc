"""The records that the seed documents show: sent as they stand there, and looked for afterwards."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from arq import create_pool
from arq.connections import RedisSettings

from cli.demo.day import CONSUME, RECORD
from quota.values import MICRO, parse_user_id
from service.database import statement
from service.grants import add_grant
from service.jobs import RECORD_USAGE
from service.staleness import drop_stale_users
from service.users import put_user

if TYPE_CHECKING:
    import asyncpg

    from cli.demo.ledger import Ledger
    from quota.client import Quota
    from quota.keys import Keys
    from quota.rules import Rules
    from service.database import Database
    from service.settings import Settings

__all__ = ["ARQ_KEY", "USER_002", "differences", "prepare_seeds", "send_seeds"]

# 000: a row of feature_usage, four uses.
USER_000 = "22c9d63f-f1a3-4879-b1f3-1a1d5ed89f01"
EVENT_000 = {"event_id": "7894d5ac-a3f2-4a81-944b-914dba2f413f"}
USED_000 = [datetime(2025, 6, 21, 13, minute, tzinfo=UTC) for minute in (0, 5, 10, 15)]
# 001: an event of the ingestion example; its timestamp has no zone, which there means UTC.
USER_001 = "usr_789"
EVENT_001: dict[str, Any] = {
    "event_id": "evt_12345",
    "product_version": "2.4.1",
    "event_type": "feature_used",
    "occurred_at": "2023-10-15T14:35:22Z",
    "session_id": "sess_456",
    "metadata": {"duration_seconds": 45, "result": "success"},
}
# 002: recordUsage(userId, …), and canUseFeature(userId, anki_export).
USER_002 = "user-of-seed-002"
USED_002 = {
    "conversations": 1,
    "seconds": 300,
    "anki_exports": 1,
    "custom_phrases_created": 2,
    "completed_sessions": 1,
}
ARQ_KEY = "seed-002-through-arq"
# 003: a row of usage_logs; 2.5 credits.
USER_003 = "user-uuid-here"
KEY_003 = "550e8400-e29b-41d4-a716-446655440000"
ROW_003: dict[str, Any] = {
    "format": "image",
    "quality": "high",
    "metadata": {
        "model_used": "sdxl",
        "prompt_length": 150,
        "generation_time_ms": 45000,
        "file_size_bytes": 2048576,
        "enhancement_strategy": "qwen_compel",
        "api_provider": "replicate",
    },
    "occurred_at": "2025-08-30T10:00:00Z",
}


async def prepare_seeds(database: Database, redis: Any, keys: Keys, rules: Rules) -> None:
    """Make the user of 003, with credits to pay from, as an administrator would."""
    user, now = parse_user_id(USER_003), datetime.now(UTC)
    async with database.session() as session:
        await put_user(session, user, rules, at=now, tier="plus", timezone="Europe/Berlin")
        await add_grant(
            session, user, rules, amount_micro=20 * MICRO, at=now, name="welcome", kind="promo"
        )
    await drop_stale_users(database, redis, keys, user_id=user.id)


async def send_seeds(quota: Quota, settings: Settings, ledger: Ledger) -> None:
    """Send every record: through the client, and one through stock arq."""
    for number, at in enumerate(USED_000):
        receipt = await quota.record(
            USER_000,
            "calendar_follow_event",
            key=f"seed-000-{number}",
            metadata=EVENT_000,
            occurred_at=at,
        )
        ledger.decided(USER_000, receipt.decisions, verb=RECORD)
    receipt = await quota.record(
        USER_001, "feature_recommendations", 1, key="evt_12345", **EVENT_001
    )
    ledger.decided(USER_001, receipt.decisions, verb=RECORD)
    receipt = await quota.record(USER_002, USED_002, key="seed-002")
    ledger.decided(USER_002, receipt.decisions, verb=RECORD)
    await quota.check(USER_002, "anki_export")
    ledger.checked()
    decision = await quota.consume(USER_003, "image_generation", 1, key=KEY_003, **ROW_003)
    ledger.decided(USER_003, [decision], verb=CONSUME)
    await _enqueue(settings)
    ledger.expect(USER_002, "anki_exports", 1, ARQ_KEY)


async def _enqueue(settings: Settings) -> None:
    """What a producer without our package does: two lines, and no pickle."""
    pool = await create_pool(
        RedisSettings.from_dsn(settings.queue_redis),
        job_serializer=lambda job: json.dumps(job).encode(),
        default_queue_name=settings.queue_name,
    )
    await pool.enqueue_job(
        RECORD_USAGE, user_id=USER_002, feature="anki_exports", amount=1, key=ARQ_KEY
    )
    await pool.aclose()


async def differences(connection: asyncpg.Connection[Any]) -> list[str]:
    """Where PostgreSQL shows another record than its document, one line each."""
    used, logged = statement("cli.demo", "feature_used"), statement("cli.demo", "record_logged")
    row = await connection.fetchrow(used, parse_user_id(USER_000).id, "calendar_follow_event")
    lines = _different(
        "000", row, {"usage_count": 4, "last_used": USED_000[-1], "metadata": EVENT_000}
    )
    row = await connection.fetchrow(logged, parse_user_id(USER_001).id, "feature_recommendations")
    lines += _different("001", row, _columns(EVENT_001))
    for feature, units in USED_002.items():
        row = await connection.fetchrow(used, parse_user_id(USER_002).id, feature)
        through_arq = feature == "anki_exports"
        lines += _different(f"002 {feature}", row, {"usage_count": units + through_arq})
    row = await connection.fetchrow(logged, parse_user_id(USER_003).id, "image_generation")
    return lines + _different("003", row, _columns(ROW_003) | {"micro": 2_500_000})


def _columns(payload: dict[str, Any]) -> dict[str, Any]:
    columns = {name: value for name, value in payload.items() if name != "occurred_at"}
    return columns | {"created_at": datetime.fromisoformat(payload["occurred_at"])}


def _different(seed: str, row: Any, expected: dict[str, Any]) -> list[str]:
    if row is None:
        return [f"seed {seed}: no such row"]
    found = {name: _value(row[name]) if name == "metadata" else row[name] for name in expected}
    return [
        f"seed {seed} {name}: {found[name]!r}, not {expected[name]!r}"
        for name in expected
        if found[name] != expected[name]
    ]


def _value(metadata: Any) -> Any:
    """Whether a pooled connection decodes JSON is not ours to say."""
    return json.loads(metadata) if isinstance(metadata, str) else metadata
