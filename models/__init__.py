"""The tables of Allotment in PostgreSQL; alembic is the only way that they come to be."""

from sqlmodel import SQLModel

from models.credits import CreditEntry, CreditGrant, Hold, UsageRefund
from models.legacy import LegacyFeatureUsage
from models.rollups import (
    RollupState,
    StaleRollup,
    UsageDaily,
    UsageDailyAction,
    UsageLast30Days,
    UsageLastDay,
    UsageRun,
    UsageUsersByLastDay,
    UserActiveDay,
    UserLifetimeStats,
    UserUsage,
    UserUsageFeature,
)
from models.rules import CreditPrice, OutagePolicy, TierLimit, TierVersion
from models.subscriptions import Subscription, SubscriptionEvent
from models.usage import FeatureUsage, UsageCounter, UsageKey, UsageLog, UsageWindow
from models.usage_log import QuarantinedRecord, StaleUser, UsageShard
from models.users import User

__all__ = [
    "CreditEntry",
    "CreditGrant",
    "CreditPrice",
    "FeatureUsage",
    "Hold",
    "LegacyFeatureUsage",
    "OutagePolicy",
    "QuarantinedRecord",
    "RollupState",
    "SQLModel",
    "StaleRollup",
    "StaleUser",
    "Subscription",
    "SubscriptionEvent",
    "TierLimit",
    "TierVersion",
    "UsageCounter",
    "UsageDaily",
    "UsageDailyAction",
    "UsageKey",
    "UsageLast30Days",
    "UsageLastDay",
    "UsageLog",
    "UsageRefund",
    "UsageRun",
    "UsageShard",
    "UsageUsersByLastDay",
    "UsageWindow",
    "User",
    "UserActiveDay",
    "UserLifetimeStats",
    "UserUsage",
    "UserUsageFeature",
]
