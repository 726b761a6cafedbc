"""What a command says when it cannot do what was asked: a code, the field, one line of what to do.

Everything that a user can cause or mend is listed here; what is not is a fault of ours.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import asyncpg
import typer
from redis.exceptions import RedisError
from sqlalchemy.exc import SQLAlchemyError

from quota.errors import (
    InvalidValueError,
    QuotaError,
    UnknownGrantError,
    UnknownKeyError,
    UnknownUserError,
)
from service.migrations import MigrationError, OutdatedDatabaseError
from service.pace import RecountTooSlowError
from service.rollups import RunsIncompleteError
from service.server_errors import DataDirectoryInUseError, PortInUseError, ServerError
from service.settings import SettingsError
from service.shards import NoTiersError

__all__ = ["EXIT_REFUSED", "Failure", "failure_of"]

EXIT_REFUSED = 2  # 1 is for drift and mismatch: a script must be able to tell them apart
_SETTING = re.compile(r"([A-Z][A-Z_]+)\b")
_FIRST_LINE_CHARS_MAX = 500


@dataclass(frozen=True, slots=True)
class Failure:
    """One reason why a command did not do its work."""

    code: str
    message: str
    field: str | None = None
    usage: str | None = None  # where to read how it is called

    def as_dict(self) -> dict[str, Any]:
        """The object that --json prints."""
        return {"error": {"code": self.code, "field": self.field, "message": self.message}}


def failure_of(error: BaseException) -> Failure | None:
    """Tell *error* to the user, or None when it is a fault of the program."""
    for kind, tell in _FORMS:
        if isinstance(error, kind):
            return tell(error)
    return None


def _unknown_user(error: UnknownUserError) -> Failure:
    hint = "users are made on their first use, by a grant, or by `allotment user set`"
    return Failure(error.code, f"{error}: {hint}", "user")


def _setting_failure(error: SettingsError) -> Failure:
    return Failure("invalid_setting", str(error), _setting(error))


def _no_tiers(_: NoTiersError) -> Failure:
    message = "no tiers are in force, so nothing can be decided: run `allotment tiers apply FILE`"
    return Failure("no_tiers", message)


def _in_use(error: DataDirectoryInUseError) -> Failure:
    hint = "If it is `allotment up`, you can set DATABASE_URL and REDIS_URL to what it printed."
    return Failure("data_directory_in_use", f"{error} {hint}", "ALLOTMENT_DATA_DIR")


def _usage_failure(error: typer.TyperException) -> Failure:
    # The classes of these are private to typer, their fields are not.
    parameter, context = getattr(error, "param", None), getattr(error, "ctx", None)
    field = getattr(parameter, "name", None) or getattr(error, "option_name", None)
    usage = None if context is None else f"{context.command_path} --help"
    return Failure("usage", error.format_message(), field, usage)


def _setting(error: BaseException) -> str | None:
    """The variable that the message begins with."""
    named = _SETTING.match(str(error))
    return named[1] if named else None


def _postgres(error: BaseException) -> str:
    return f"PostgreSQL: {_line(error)}"


def _line(error: BaseException) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0][:_FIRST_LINE_CHARS_MAX]


# The first that fits is told, so a kind stands before what it is a kind of.
_FORMS: tuple[tuple[type[BaseException], Callable[[Any], Failure]], ...] = (
    (InvalidValueError, lambda error: Failure(error.code, str(error), error.field)),
    (UnknownUserError, _unknown_user),
    (UnknownGrantError, lambda error: Failure(error.code, str(error), "grant")),
    (UnknownKeyError, lambda error: Failure(error.code, str(error), "key")),
    (QuotaError, lambda error: Failure(error.code, str(error))),
    (SettingsError, _setting_failure),
    (NoTiersError, _no_tiers),
    (RunsIncompleteError, lambda error: Failure("rollups_incomplete", str(error))),
    (RecountTooSlowError, lambda error: Failure("recount_too_slow", str(error))),
    (OutdatedDatabaseError, lambda error: Failure("schema_outdated", str(error))),
    (MigrationError, lambda error: Failure("migration_failed", str(error))),
    (DataDirectoryInUseError, _in_use),
    (PortInUseError, lambda error: Failure("port_in_use", str(error), _setting(error))),
    (ServerError, lambda error: Failure("server_unusable", str(error))),
    (typer.TyperException, _usage_failure),
    # A server that went away in the middle, or a disk that refuses.
    (RedisError, lambda error: Failure("redis_failed", f"Redis: {_line(error)}")),
    (asyncpg.PostgresError, lambda error: Failure("postgresql_failed", _postgres(error))),
    (asyncpg.InterfaceError, lambda error: Failure("postgresql_failed", _postgres(error))),
    (SQLAlchemyError, lambda error: Failure("postgresql_failed", _postgres(error))),
    (OSError, lambda error: Failure("system", _line(error))),
)
