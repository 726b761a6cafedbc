"""`on_outage` of a `tiers.toml`: what a feature may be used for while Redis can not be reached.

Nothing, unless it is allowed; then so many units a user, feature and process, which are recorded when
Redis answers again. In code it is that number alone, and 0 is `deny`.
"""

from __future__ import annotations

from typing import Any

from quota.errors import InvalidValueError
from quota.values import AMOUNT_MAX

__all__ = ["DENY", "UNITS_DEFAULT", "on_outage_entry", "parse_on_outage"]

DENY = 0
# Where a file says no number: what a person does by hand in a short outage, and little enough to give away.
UNITS_DEFAULT = 100
_POLICIES = ("deny", "allow")


def parse_on_outage(entry: object, path: str) -> int:
    """Units that may be admitted without Redis: `"deny"`, `"allow"` or `{ policy = "allow", max = 50 }`.

    Raises:
        InvalidValueError: *field* is the path of what is wrong.
    """
    if not isinstance(entry, dict):
        return UNITS_DEFAULT if _policy(entry, path) == "allow" else DENY
    for name in entry:
        if name not in ("policy", "max"):
            raise InvalidValueError(f"{path}.{name}", name, "one of max, policy")
    policy = _policy(entry.get("policy"), f"{path}.policy")
    most = entry.get("max", UNITS_DEFAULT if policy == "allow" else None)
    if policy == "deny":
        if most is not None:
            raise InvalidValueError(f"{path}.max", most, 'nothing: the policy is "deny"')
        return DENY
    if type(most) is not int or not 1 <= most <= AMOUNT_MAX:
        raise InvalidValueError(f"{path}.max", most, f"an integer from 1 to {AMOUNT_MAX}")
    return most


def on_outage_entry(units: int) -> Any:
    """The inverse of `parse_on_outage`."""
    return "deny" if units == DENY else {"policy": "allow", "max": units}


def _policy(found: object, path: str) -> str:
    if found in _POLICIES:
        return str(found)
    raise InvalidValueError(path, found, '"deny" or "allow"')
