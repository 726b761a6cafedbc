"""The user that PostgreSQL runs as: it refuses to run as root."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

from service.server_errors import ServerStartError

_NAME = "pgserver"


class SystemUser(NamedTuple):
    """A user of this machine."""

    uid: int
    gid: int

    def may_enter(self, directory: Path) -> bool:
        """Whether this user can reach what lies in *directory*."""
        return self.first_closed(directory) is None

    def first_closed(self, directory: Path) -> Path | None:
        """Return the outermost directory on the way that this user cannot pass, if any."""
        way = [*reversed(directory.parents), directory]
        return next((step for step in way if step.exists() and not self._may_pass(step)), None)

    def _may_pass(self, directory: Path) -> bool:
        status = directory.stat()
        if status.st_uid == self.uid:
            return bool(status.st_mode & 0o100)
        if status.st_gid == self.gid:
            return bool(status.st_mode & 0o010)
        return bool(status.st_mode & 0o001)


def postgres_user() -> SystemUser | None:
    """Return whom PostgreSQL has to run as, or None for the user of this process.

    As root that is the system user ``pgserver``, which is made when it is missing.
    """
    if os.getuid() != 0:
        return None
    try:
        entry = pwd.getpwnam(_NAME)
    except KeyError:
        _add_user()
        entry = pwd.getpwnam(_NAME)
    return SystemUser(entry.pw_uid, entry.pw_gid)


def _add_user() -> None:
    useradd = shutil.which("useradd")
    if useradd is None:
        raise ServerStartError(
            f"PostgreSQL does not run as root, and this system has no useradd to make the user "
            f"{_NAME!r}. Add that user, or run as another user than root, or set DATABASE_URL."
        )
    command = [useradd, "--system", "--no-create-home", "--shell", "/usr/sbin/nologin", _NAME]
    made = subprocess.run(command, capture_output=True, text=True, check=False)
    # 9: someone else made it at the same moment.
    if made.returncode not in (0, 9):
        raise ServerStartError(
            f"PostgreSQL does not run as root, and the user {_NAME!r} could not be made: "
            f"{made.stderr.strip()}. Add that user, or run as another user than root."
        )
