"""The tables of Allotment in PostgreSQL; alembic is the only way that they come to be."""

from sqlmodel import SQLModel

from models.credits import CreditEntry, CreditGrant, Hold, UsageRefund
from models.legacy import LegacyFeatureUsage
from models.rules import CreditPrice, OutagePolicy, TierLimit, TierVersion
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
    "SQLModel",
    "StaleUser",
    "TierLimit",
    "TierVersion",
    "UsageCounter",
    "UsageKey",
    "UsageLog",
    "UsageRefund",
    "UsageShard",
    "UsageWindow",
    "User",
]
