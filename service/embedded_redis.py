"""A real Redis in a directory of ours: each write in an append-only file, nothing evicted."""

from __future__ import annotations

import signal
from typing import Literal

import redis

from service.data_directory import DataDirectory
from service.ports import Listen
from service.server_binaries import find_redis
from service.server_process import ServerProcess, stop_orphan

Durability = Literal["everysec", "always"]


class EmbeddedRedis:
    """One Redis server.

    `prepare`, then `spawn` (from a thread that stays), then `wait_ready`; `stop` at the end.
    """

    def __init__(
        self,
        directory: DataDirectory,
        *,
        durability: Durability,
        listen: Listen | None,
        password: str,
    ) -> None:
        self._directory = directory
        self._home = directory.path / "redis"
        self._socket = directory.sockets / "redis.sock"
        self._durability = durability
        self._listen = listen
        self._password = password
        self.process: ServerProcess | None = None

    @property
    def url(self) -> str:
        """``unix://…``, or ``redis://…`` when it listens on TCP."""
        if self._listen is None:
            return f"unix://{self._socket}"
        return f"redis://:{self._password}@{self._listen.address}/0"

    def prepare(self) -> None:
        """Clear what a killed run left, and write the configuration."""
        self._home.mkdir(mode=0o700, exist_ok=True)
        stop_orphan(self._home / "redis.pid", directory=self._home, stop_signal=signal.SIGTERM)
        # In a file, for a password on the command line is seen by every user of the machine.
        configuration = self._home / "redis.conf"
        configuration.touch(mode=0o600)
        configuration.write_text(self._configuration())

    def spawn(self) -> None:
        """Start the server; see `ServerProcess` for the thread to do this from."""
        self.process = ServerProcess(
            [str(find_redis()), str(self._home / "redis.conf")],
            directory=self._home,
            log=self._directory.path / "redis.log",
            stop_signal=signal.SIGTERM,
            user=None,
        )

    def wait_ready(self) -> None:
        """Return when the append-only file is loaded; raises ServerStartError."""
        assert self.process is not None, "spawn() first"
        self.process.wait_until(self._is_ready)

    def stop(self) -> None:
        """Stop the server; safe to repeat."""
        if self.process is not None:
            self.process.stop()

    def _is_ready(self) -> bool:
        with redis.Redis.from_url(self.url, socket_timeout=5) as client:
            try:
                return bool(client.ping())
            except redis.RedisError:  # not listening yet, or loading
                return False

    def _configuration(self) -> str:
        lines = [
            f'dir "{self._home}"',
            # A ring of keys is one large hash: freed in one go, it would stall everyone.
            "lazyfree-lazy-expire yes",
            f'pidfile "{self._home / "redis.pid"}"',
            f'unixsocket "{self._socket}"',
            "unixsocketperm 700",
            f"port {self._listen.port if self._listen else 0}",
            "appendonly yes",
            f"appendfsync {self._durability}",
            'save ""',
            "maxmemory-policy noeviction",
            "daemonize no",
        ]
        if self._listen:
            lines += [f"bind {self._listen.host}", f"requirepass {self._password}"]
        return "\n".join(lines) + "\n"
