"""The directory that keeps the embedded servers' records; one process at a time uses it."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import stat
import tempfile
from pathlib import Path
from typing import Self

from service.server_errors import DataDirectoryError, DataDirectoryInUseError
from service.system_user import SystemUser

# sun_path holds 108 bytes on Linux and 104 on macOS, a closing NUL among them.
_SOCKET_BYTES_MAX = 103
# What lies here outlives a restart of the machine.  Whose the directory in it is, is checked.
_KEPT_TEMPORARY = Path("/var/tmp")  # noqa: S108
_LONGEST_SOCKET = ".s.PGSQL.65535.lock"


class DataDirectory:
    """A locked data directory.

    ``path`` holds the records; ``sockets`` is short enough for unix sockets, and closed to others;
    ``note`` says where the records went when that is not where they were expected.
    """

    def __init__(self, wanted: Path, *, chosen: bool, user: SystemUser | None) -> None:
        """Make and lock the directory; *chosen* means that it is that one or none.

        Raises DataDirectoryError when it cannot be used, DataDirectoryInUseError when it is in use.
        """
        self.note: str | None = None
        self._user = user
        self.path = self._usable(wanted.expanduser().absolute(), chosen=chosen)
        self._lock = _locked(self.path)
        try:
            self.sockets = self._socket_directory()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let the next process have the directory."""
        if hasattr(self, "sockets"):
            shutil.rmtree(self.sockets, ignore_errors=True)
        os.close(self._lock)

    def _usable(self, wanted: Path, *, chosen: bool) -> Path:
        closed = self._user.first_closed(wanted) if self._user else None
        if closed is None:
            return _made(wanted, mode=0o700 if self._user is None else 0o711)
        if chosen:
            raise DataDirectoryError(
                f"the data directory {wanted} is out of reach for the user 'pgserver', whom "
                f"PostgreSQL runs as when started by root: {closed} is closed to others. Let them "
                f"pass (chmod o+x {closed}), set ALLOTMENT_DATA_DIR to a directory elsewhere, "
                "or run as another user than root."
            )
        path = self._private_directory(_mark(wanted))
        self.note = (
            f"records are kept in {path}, because {closed} is closed to the user 'pgserver', whom "
            "PostgreSQL runs as when started by root; set ALLOTMENT_DATA_DIR to choose a directory"
        )
        return path

    def _socket_directory(self) -> Path:
        path = self.path / "run"
        if len(os.fsencode(path / _LONGEST_SOCKET)) > _SOCKET_BYTES_MAX:
            path = self._private_directory(f"{_mark(self.path)}-run")
        path.mkdir(exist_ok=True)
        if self._user is not None:
            os.chown(path, self._user.uid, self._user.gid)
        path.chmod(0o700)
        return path

    def _private_directory(self, name: str) -> Path:
        """Return our own directory *name* below a temporary directory that the user may enter."""
        for base in (_KEPT_TEMPORARY, Path(tempfile.gettempdir()), Path("/tmp")):  # noqa: S108
            path = base / name
            short = len(os.fsencode(path / _LONGEST_SOCKET)) <= _SOCKET_BYTES_MAX
            open_to_user = self._user is None or self._user.may_enter(base)
            if base.is_dir() and short and open_to_user and os.access(base, os.W_OK):
                return _made(path, mode=0o711, owners=_owners(self._user))
        raise DataDirectoryError(
            "no temporary directory is open to the user that PostgreSQL runs as; "
            "set ALLOTMENT_DATA_DIR to a directory that every user may enter"
        )


def _owners(user: SystemUser | None) -> set[int]:
    return {os.getuid()} if user is None else {os.getuid(), user.uid}


def _mark(path: Path) -> str:
    digest = hashlib.sha256(os.fsencode(path.resolve())).hexdigest()[:12]
    return f"allotment-{os.getuid()}-{digest}"


def _made(path: Path, *, mode: int, owners: set[int] | None = None) -> Path:
    """Make *path* with *mode*; one that exists must belong to *owners*, if these are given."""
    missing = [step for step in (path, *path.parents) if not step.exists()]
    try:
        for step in reversed(missing):
            step.mkdir(exist_ok=True)
            step.chmod(mode)  # whatever the umask is
        status = path.lstat()
    except OSError as error:
        raise DataDirectoryError(
            f"the data directory {path} cannot be made: {error.strerror}. "
            "Set ALLOTMENT_DATA_DIR to a directory that can be written."
        ) from error
    if not os.access(path, os.W_OK | os.X_OK):
        raise DataDirectoryError(
            f"the data directory {path} cannot be written. "
            "Set ALLOTMENT_DATA_DIR to a directory that can be."
        )
    # In a directory that all may write, another user may have been there first.
    if owners is not None and (not stat.S_ISDIR(status.st_mode) or status.st_uid not in owners):
        raise DataDirectoryError(
            f"{path} belongs to somebody else. Set ALLOTMENT_DATA_DIR to a directory of your own."
        )
    return path


def _locked(directory: Path) -> int:
    """Return the file descriptor that holds the lock; closing it, or dying, lets go."""
    descriptor = os.open(directory / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        holder = os.pread(descriptor, 20, 0).decode(errors="replace").strip() or "?"
        os.close(descriptor)
        raise DataDirectoryInUseError(
            f"the data directory {directory} is in use by process {holder}. Stop that process, or "
            "set ALLOTMENT_DATA_DIR to another directory to run a second set of servers."
        ) from None
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
    return descriptor
