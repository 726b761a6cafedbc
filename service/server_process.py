"""One server as a child process: stopped in order by us, and never left behind.

It runs in a session of its own, so that Ctrl-C reaches us alone and we decide who stops first.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil

from service import guarded_exec
from service.server_errors import ServerStartError
from service.system_user import SystemUser

# Recovery after a crash replays the log since the last checkpoint, which may be gigabytes.
_READY_SECONDS_MAX = 120.0
_STOP_SECONDS_MAX = 60.0
_POLL_SECONDS = 0.01
_LOG_BYTES_MAX = 10_000_000
_LOG_LINES_SHOWN = 5


class ServerProcess:
    """A running server, its log, and the signal that makes it stop in good order."""

    def __init__(
        self,
        command: list[str],
        *,
        directory: Path,
        log: Path,
        stop_signal: signal.Signals,
        user: SystemUser | None,
    ) -> None:
        """Start *command* in *directory*.

        Linux ties it to the calling thread: call this from one that lives as long as the server.
        """
        self._name = Path(command[0]).name
        self._log = log
        self._stop_signal = stop_signal
        uid, gid = user or (os.getuid(), os.getgid())
        guard = [sys.executable, "-I", "-S", guarded_exec.__file__]
        words = [str(number) for number in (os.getpid(), int(stop_signal), uid, gid)]
        _keep_short(log)
        with log.open("ab") as stream:
            self._child = subprocess.Popen(
                [*guard, *words, *command],
                cwd=directory,
                env=server_environment(),
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=stream,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        """The process id of the server."""
        return self._child.pid

    @property
    def running(self) -> bool:
        """Whether the server has not ended."""
        return self._child.poll() is None

    def wait_until(self, ready: Callable[[], bool]) -> None:
        """Return once *ready* says so; raises ServerStartError when the server ends before."""
        deadline = time.monotonic() + _READY_SECONDS_MAX
        while not ready():
            if not self.running:
                raise ServerStartError(f"{self._name} ended while starting: {self._last_words()}")
            if time.monotonic() > deadline:
                self.stop()
                raise ServerStartError(
                    f"{self._name} was not ready after {_READY_SECONDS_MAX:.0f} s; see {self._log}"
                )
            time.sleep(_POLL_SECONDS)

    def stop(self) -> None:
        """Stop the server and return when it is gone; safe to repeat."""
        for stop_signal in (self._stop_signal, signal.SIGQUIT, signal.SIGKILL):
            if not self.running:
                return
            self._child.send_signal(stop_signal)
            try:
                self._child.wait(_STOP_SECONDS_MAX)
            except subprocess.TimeoutExpired:
                continue

    def kill(self) -> None:
        """End the server as a crash would; for tests of what comes after."""
        self._child.kill()
        self._child.wait()

    def _last_words(self) -> str:
        lines = self._log.read_text(errors="replace").splitlines()[-_LOG_LINES_SHOWN:]
        return " / ".join(line.strip() for line in lines if line.strip()) or f"see {self._log}"


def server_environment() -> dict[str, str]:
    """Return our environment without what would steer PostgreSQL from outside (PGDATA, PGPORT…)."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PG")}
    return kept | {"LC_ALL": "C"}


def stop_orphan(pid_file: Path, *, directory: Path, stop_signal: signal.Signals) -> None:
    """Stop the server that *pid_file* names, if one that lives in *directory* still runs.

    It can only be one that a killed process left behind: whoever asks holds the directory's lock.
    """
    try:
        process = psutil.Process(int(pid_file.read_text().split()[0]))
        if Path(process.cwd()) != directory.resolve():
            return  # the id belongs to another program by now
        for each in (stop_signal, signal.SIGQUIT, signal.SIGKILL):
            process.send_signal(each)
            if gone_within(process, seconds_max=_STOP_SECONDS_MAX):
                return
    except (OSError, ValueError, IndexError, psutil.NoSuchProcess, psutil.AccessDenied):
        return  # no file, half a file, or nobody there: nothing to stop


def gone_within(process: psutil.Process, *, seconds_max: float) -> bool:
    """Wait for a process that may not be our child; whether it ended.

    One that ended but was not collected by its parent yet counts as gone: it holds nothing.
    """
    deadline = time.monotonic() + seconds_max
    while time.monotonic() < deadline:
        try:
            if not process.is_running() or process.status() == psutil.STATUS_ZOMBIE:
                return True
        except psutil.NoSuchProcess:
            return True
        time.sleep(_POLL_SECONDS)
    return False


def _keep_short(log: Path) -> None:
    if log.exists() and log.stat().st_size > _LOG_BYTES_MAX:
        log.replace(log.with_suffix(".log.old"))
