"""A loopback port for an embedded server: the one that was asked for, or any free one."""

from __future__ import annotations

import errno
import socket
from typing import NamedTuple

from service.server_errors import PortInUseError

_LOOPBACK = "127.0.0.1"


class Listen(NamedTuple):
    """Where a server listens on TCP."""

    host: str
    port: int

    @property
    def address(self) -> str:
        """``host:port``."""
        return f"{self.host}:{self.port}"


def free_loopback(port: int, *, server: str) -> Listen:
    """Return *port*, or any free one for 0; raises PortInUseError, which names the *server*.

    The port is let go before the server takes it; one who comes between makes its start fail.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((_LOOPBACK, port))
        except OSError as error:
            why = (
                "is in use" if error.errno == errno.EADDRINUSE else f"is refused: {error.strerror}"
            )
            raise PortInUseError(
                f"the port {port} that {server} was to listen on {why}. Stop the program that "
                "has it, choose another port, or choose 0 for any free one."
            ) from None
        return Listen(_LOOPBACK, int(listener.getsockname()[1]))
