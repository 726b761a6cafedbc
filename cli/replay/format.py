"""Reads a scenario file: taken whole, or refused with the place of the entry that is wrong.

Nothing runs before every file of a run was read.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from cli.replay.fields import NOTHING, VERBS, Check, check_together
from quota.errors import InvalidValueError
from quota.period import parse_anchor, parse_cycle_months, parse_timezone
from quota.rules import Rules
from quota.values import instant_ms, parse_instant, parse_user_id

__all__ = [
    "MalformedScenarioError",
    "Member",
    "Scenario",
    "Step",
    "parse_scenario",
    "read_scenario",
]

_FILE_BYTES_MAX = 256 * 1024 * 1024  # a month of a busy user's usage; more is the wrong file
_YEAR_MAX = 8999  # the periods of an instant must end within the years that dates have
_STEP_FIELDS = frozenset({"at", "do", "user", "expect"})


class MalformedScenarioError(Exception):
    """A file is not a scenario; the message names the file and the place in it."""

    def __init__(self, file: str, message: str) -> None:
        super().__init__(f"{file}: {message}")
        self.file = file


@dataclass(frozen=True, slots=True)
class Member:
    """A user of a scenario; None is the default of the field."""

    tier: str | None
    timezone: str | None
    anchor: datetime
    cycle_months: int | None


@dataclass(frozen=True, slots=True)
class Step:
    """One step; *number* counts from 1, *fields* are as in the file."""

    number: int
    do: str
    at: datetime
    user: str
    fields: Mapping[str, Any]
    expect: Mapping[str, Any] | None

    @property
    def expects_error(self) -> bool:
        """Whether the step is to be refused: then its values may be wrong on purpose."""
        return self.expect is not None and "error" in self.expect


@dataclass(frozen=True, slots=True)
class Scenario:
    """A file that was read and found right."""

    file: str
    name: str
    rules: Rules
    users: Mapping[str, Member]
    steps: tuple[Step, ...]


def read_scenario(path: Path) -> Scenario:
    """Read the scenario in *path*.

    Raises:
        MalformedScenarioError
    """
    file = str(path)
    try:
        if path.stat().st_size > _FILE_BYTES_MAX:
            raise MalformedScenarioError(file, f"expected at most {_FILE_BYTES_MAX} bytes")
        text = path.read_bytes().decode("utf-8-sig")
        document = json.loads(text, object_pairs_hook=_table_of, parse_constant=_no_constant)
    except OSError as error:
        reason = error.strerror or error
        raise MalformedScenarioError(file, f"expected a readable file, found: {reason}") from None
    except json.JSONDecodeError as error:
        place = f"line {error.lineno} column {error.colno}"
        raise MalformedScenarioError(file, f"{place}: expected JSON, found: {error.msg}") from None
    except (ValueError, RecursionError) as error:
        raise MalformedScenarioError(file, f"expected JSON, found: {error}") from None
    return parse_scenario(document, file=file)


def parse_scenario(document: object, *, file: str) -> Scenario:
    """The scenario in *document*, which came from *file*.

    Raises:
        MalformedScenarioError
    """
    try:
        return _scenario(document, file)
    except InvalidValueError as error:
        raise MalformedScenarioError(file, str(error)) from None


def _table_of(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    table: dict[str, Any] = {}
    for name, value in pairs:
        if name in table:
            raise ValueError(f"the name {name!r:.80} twice in one object")
        table[name] = value
    return table


def _no_constant(word: str) -> None:
    raise ValueError(f"{word}, which is not a number")


def _scenario(document: object, file: str) -> Scenario:
    top = _table(document, "scenario", known=("name", "tiers", "users", "steps"), required=True)
    if not isinstance(top["name"], str):
        raise InvalidValueError("name", top["name"], "one line that says what this is about")
    rules = _rules(top["tiers"])
    found = top["steps"]
    if not isinstance(found, list) or not found:
        raise InvalidValueError("steps", found, "a list of steps")
    first_at = _instant(_table(found[0], "steps[0]").get("at", NOTHING), place="steps[0].at")
    users = _users(top["users"], rules, first_at)
    return Scenario(file, top["name"], rules, users, _steps(found, users, rules, first_at))


def _table(
    found: object, place: str, *, known: Iterable[str] | None = None, required: bool = False
) -> dict[str, Any]:
    if not isinstance(found, dict):
        raise InvalidValueError(place, found, "an object")
    prefix = "" if place == "scenario" else f"{place}."
    for name in found:
        if known is not None and name not in known:
            raise InvalidValueError(f"{prefix}{name}", found[name], f"one of {', '.join(known)}")
    for name in known or () if required else ():
        if name not in found:
            raise InvalidValueError(f"{prefix}{name}", NOTHING, f"`{name}`")
    return found


def _checked(check: Check, found: object, *, place: str) -> Any:
    """What *check* makes of *found*; a refusal names the place in the file.

    A check of a table names the entry by a field that begins with a point.
    """
    try:
        return check(found)
    except InvalidValueError as error:
        place += error.field if error.field.startswith(".") else ""
        raise InvalidValueError(place, error.found, error.expected) from None


def _instant(found: object, *, place: str) -> datetime:
    instant: datetime = _checked(lambda at: parse_instant(at, field=""), found, place=place)
    if instant_ms(instant) <= 0 or instant.year > _YEAR_MAX:
        raise InvalidValueError(place, found, f"an instant from 1970 to {_YEAR_MAX}")
    return instant


def _rules(found: object) -> Rules:
    try:
        return Rules.from_document(found)
    except InvalidValueError as error:
        place = "tiers" if error.field == "tiers file" else f"tiers.{error.field}"
        raise InvalidValueError(place, error.found, error.expected) from None


def _users(found: object, rules: Rules, first_at: datetime) -> dict[str, Member]:
    users = _table(found, "users")
    if not users:
        raise InvalidValueError("users", found, "one user or more")
    return {name: _member(name, entry, rules, first_at) for name, entry in users.items()}


def _member(name: str, entry: object, rules: Rules, first_at: datetime) -> Member:
    place = f"users.{name}"
    _checked(parse_user_id, name, place=place)
    table = _table(entry, place, known=("tier", "timezone", "anchor", "cycle_months"))
    tier, timezone, months = (table.get(name) for name in ("tier", "timezone", "cycle_months"))
    if "tier" in table:
        _checked(lambda tier: _tier(tier, rules), tier, place=f"{place}.tier")
    if "timezone" in table:
        _checked(parse_timezone, timezone, place=f"{place}.timezone")
    if "cycle_months" in table:
        _checked(parse_cycle_months, months, place=f"{place}.cycle_months")
    anchor = _checked(parse_anchor, table.get("anchor", first_at), place=f"{place}.anchor")
    return Member(tier, timezone, anchor, months)


def _tier(found: object, rules: Rules) -> str:
    if isinstance(found, str) and found in rules.tiers:
        return found
    raise InvalidValueError("", found, f"one of the tiers: {', '.join(rules.tiers)}")


def _steps(
    found: list[object], users: Mapping[str, Member], rules: Rules, first_at: datetime
) -> tuple[Step, ...]:
    steps: list[Step] = []
    holds: set[tuple[str, str]] = set()
    at = first_at
    for index, entry in enumerate(found):
        step = _step(entry, index, users, before=at)
        if not step.expects_error:
            _check_values(step, rules, holds)
        if step.do == "reserve" and isinstance(step.fields["hold"], str):
            holds.add((step.user, step.fields["hold"]))
        steps.append(step)
        at = step.at
    return tuple(steps)


def _step(entry: object, index: int, users: Mapping[str, Member], *, before: datetime) -> Step:
    place = f"steps[{index}]"
    table = _table(entry, place)
    do = table.get("do", NOTHING)
    if not isinstance(do, str) or do not in VERBS:
        raise InvalidValueError(f"{place}.do", do, f"one of {', '.join(VERBS)}")
    verb = VERBS[do]
    _table(entry, place, known=("at", "do", "user", *verb.fields, "expect"))
    for name in sorted(verb.required):
        if name not in table:
            raise InvalidValueError(f"{place}.{name}", NOTHING, f"`{name}`, which {do} needs")
    at = _instant(table["at"], place=f"{place}.at") if "at" in table else before
    if at < before:
        expected = f"an instant not before the step before, {before.isoformat()}"
        raise InvalidValueError(f"{place}.at", table["at"], expected)
    fields = {name: found for name, found in table.items() if name not in _STEP_FIELDS}
    return Step(index + 1, do, at, _user(table, place, users), fields, _expect(table, place))


def _user(table: Mapping[str, Any], place: str, users: Mapping[str, Member]) -> str:
    if "user" not in table and (len(users) == 1 or not VERBS[table["do"]].of_user):
        return next(iter(users))
    user = table.get("user", NOTHING)
    if not isinstance(user, str) or user not in users:
        raise InvalidValueError(f"{place}.user", user, f"one of the users: {', '.join(users)}")
    return user


def _expect(table: Mapping[str, Any], place: str) -> Mapping[str, Any] | None:
    if "expect" not in table:
        return None
    expect = _table(table["expect"], f"{place}.expect")
    if "error" in expect:
        _table(expect, f"{place}.expect", known=("error",))
        if not isinstance(expect["error"], str):
            raise InvalidValueError(
                f"{place}.expect.error", expect["error"], "the code of an error"
            )
    return expect


def _check_values(step: Step, rules: Rules, holds: set[tuple[str, str]]) -> None:
    """Refuse values that the verb would refuse, unless that is what the step expects."""
    place, fields = f"steps[{step.number - 1}]", step.fields
    for name, found in fields.items():
        _checked(VERBS[step.do].fields[name], found, place=f"{place}.{name}")
    try:
        check_together(step.do, fields, at=step.at)
    except InvalidValueError as error:
        raise InvalidValueError(f"{place}.{error.field}", error.found, error.expected) from None
    if step.do == "set_tier":
        _checked(lambda tier: _tier(tier, rules), fields["tier"], place=f"{place}.tier")
    if step.do in ("commit", "release") and (step.user, fields["hold"]) not in holds:
        expected = "the name of a hold that an earlier step reserves for this user"
        raise InvalidValueError(f"{place}.hold", fields["hold"], expected)
