"""A real PostgreSQL in a directory of ours, set for throughput but never for less durability."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from pathlib import Path
from urllib.parse import quote, urlencode

from service.data_directory import DataDirectory
from service.ports import Listen
from service.server_binaries import PostgresPrograms, find_postgres, reachable_by
from service.server_errors import DataDirectoryError, ServerStartError
from service.server_process import ServerProcess, server_environment, stop_orphan
from service.system_user import SystemUser

DATABASE = "allotment"
_SUPERUSER = "postgres"
_INITDB_SECONDS_MAX = 120
_SOCKET_PORT = 5432  # only names the socket's file when nothing listens on TCP

_OPTIONS = {
    "shared_buffers": "256MB",
    # Few, spread checkpoints: after each, every page is written to the log whole once more.
    "max_wal_size": "4GB",
    "checkpoint_timeout": "15min",
    "checkpoint_completion_target": "0.9",
    "wal_compression": "on",
    "max_connections": "100",
    "jit": "off",  # our statements are short; compiling them takes longer than running them
    "fsync": "on",
    "synchronous_commit": "on",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "log_checkpoints": "off",
    "logging_collector": "off",  # the log is our file already
    "unix_socket_permissions": "0700",
}


class EmbeddedPostgres:
    """One PostgreSQL cluster and the database ``allotment`` in it.

    `prepare`, then `spawn` (from a thread that stays), then `wait_ready`; `stop` at the end.
    """

    def __init__(
        self,
        directory: DataDirectory,
        *,
        user: SystemUser | None,
        listen: Listen | None,
        password: str,
    ) -> None:
        self._directory = directory
        self._cluster = directory.path / "postgres"
        self._user = user
        self._listen = listen
        self._password = password
        self._programs: PostgresPrograms | None = None
        self.process: ServerProcess | None = None

    @property
    def url(self) -> str:
        """``postgresql://…`` of the database."""
        if self._listen is None:
            query = urlencode(
                {"host": str(self._directory.sockets), "port": _SOCKET_PORT}, safe="/"
            )
            return f"postgresql://{_SUPERUSER}@/{DATABASE}?{query}"
        password = quote(self._password, safe="")
        return f"postgresql://{_SUPERUSER}:{password}@{self._listen.address}/{DATABASE}"

    def prepare(self) -> None:
        """Clear what a killed run left, and make the cluster if there is none."""
        found = find_postgres()
        self._programs = reachable_by(found, self._user, copies=self._directory.path)
        stop_orphan(
            self._cluster / "postmaster.pid", directory=self._cluster, stop_signal=signal.SIGINT
        )
        if self._cluster.exists():
            self._refuse_other_version(self._programs)
        else:
            self._make_cluster(self._programs)

    def spawn(self) -> None:
        """Start the server; see `ServerProcess` for the thread to do this from."""
        assert self._programs is not None, "prepare() first"
        listen = self._listen
        options = _OPTIONS | {
            "listen_addresses": listen.host if listen else "",
            "port": str(listen.port if listen else _SOCKET_PORT),
            "unix_socket_directories": str(self._directory.sockets),
        }
        command = [str(self._programs.directory / "postgres"), "-D", str(self._cluster)]
        for name, value in options.items():
            command += ["-c", f"{name}={value}"]
        self.process = ServerProcess(
            command,
            directory=self._directory.path,
            log=self._directory.path / "postgres.log",
            stop_signal=signal.SIGINT,  # "fast": open transactions are rolled back
            user=self._user,
        )

    def wait_ready(self) -> None:
        """Return when connections are taken; raises ServerStartError."""
        assert self.process is not None, "spawn() first"
        self.process.wait_until(self._is_ready)

    def stop(self) -> None:
        """Stop the server; safe to repeat."""
        if self.process is not None:
            self.process.stop()

    def _is_ready(self) -> bool:
        # The postmaster keeps its state on line 8 of this file; pg_ctl reads the same.
        assert self.process is not None
        try:
            lines = (self._cluster / "postmaster.pid").read_text().splitlines()
        except OSError:
            return False
        return len(lines) >= 8 and lines[0] == str(self.process.pid) and lines[7].strip() == "ready"

    def _refuse_other_version(self, programs: PostgresPrograms) -> None:
        try:
            made_by = int((self._cluster / "PG_VERSION").read_text())
        except (OSError, ValueError):
            raise DataDirectoryError(
                f"{self._cluster} is not a PostgreSQL data directory. "
                "Move it away, or set ALLOTMENT_DATA_DIR to another directory."
            ) from None
        if made_by != programs.major:
            raise DataDirectoryError(
                f"{self._cluster} was made by PostgreSQL {made_by}, and the one installed is "
                f"{programs.version}. Move the records with pg_dump and pg_restore, install "
                f"PostgreSQL {made_by}, or set ALLOTMENT_DATA_DIR to another directory."
            )

    def _make_cluster(self, programs: PostgresPrograms) -> None:
        # Made beside its place and moved there when complete: a killed initdb leaves no half one.
        fresh = self._cluster.with_name("postgres.new")
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir(mode=0o700)
        password = self._cluster.with_name("password.initdb")
        password.write_text(f"{self._password}\n")
        password.chmod(0o600)
        if self._user is not None:
            os.chown(fresh, self._user.uid, self._user.gid)
            os.chown(password, self._user.uid, self._user.gid)
        self._run(programs.directory / "initdb", [
            f"--pgdata={fresh}", f"--username={_SUPERUSER}", "--encoding=UTF8", "--locale=C",
            "--auth-local=trust", "--auth-host=scram-sha-256", f"--pwfile={password}",
        ])  # fmt: skip
        password.unlink()
        single = [
            "--single",
            "-D",
            str(fresh),
            "-c",
            f"unix_socket_directories={fresh}",
            "postgres",
        ]
        self._run(programs.directory / "postgres", single, text=f"CREATE DATABASE {DATABASE}\n")
        fresh.rename(self._cluster)

    def _run(self, program: Path, words: list[str], *, text: str = "") -> None:
        try:
            ended = subprocess.run(
                [program, *words],
                input=text,
                capture_output=True,
                text=True,
                check=False,
                cwd=self._directory.path,
                env=server_environment(),
                timeout=_INITDB_SECONDS_MAX,
                start_new_session=True,
                user=self._user.uid if self._user else None,
                group=self._user.gid if self._user else None,
                extra_groups=[] if self._user else None,
            )
        except (OSError, subprocess.SubprocessError) as error:
            raise ServerStartError(f"{program.name} could not be run: {error}") from error
        if ended.returncode != 0:
            raise ServerStartError(f"{program.name} failed: {ended.stderr.strip()[-500:]}")
