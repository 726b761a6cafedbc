"""Ports that a command listens on: taken before anything says that they are served."""

from __future__ import annotations

import asyncio
import errno
import socket

from service.server_errors import PortInUseError

__all__ = ["free_port", "listening_socket", "until_connectable", "url_of"]

_BACKLOG = 2048
_TRY_AGAIN_S = 0.01


def listening_socket(host: str, port: int, *, setting: str) -> socket.socket:
    """A socket bound to *port* of *host*, or to any free one for 0.

    *setting* is WEB or METRICS. Raises PortInUseError.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except (OSError, UnicodeError):
        raise PortInUseError(
            f"{setting}_HOST: {host!r} is not an address of this machine; set it to 127.0.0.1, "
            "or to 0.0.0.0 for every network"
        ) from None
    made = socket.socket(family, kind, protocol)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind(address)
        made.listen(_BACKLOG)
    except OSError as error:
        made.close()
        taken = error.errno == errno.EADDRINUSE
        why = "is in use" if taken else f"is refused: {error.strerror}"
        raise PortInUseError(
            f"{setting}_PORT: the port {port} of {host} {why}. Stop the program that has it, or "
            f"set {setting}_PORT to another port, 0 for any free one."
        ) from None
    return made


def free_port(host: str, port: int, *, setting: str) -> int:
    """*port*, or any free one for 0, for a server that opens it by itself; as above."""
    with listening_socket(host, port, setting=setting) as probe:
        return int(probe.getsockname()[1])


def url_of(host: str, port: int, path: str = "") -> str:
    """The address to give to a person, who cannot open 0.0.0.0."""
    shown = {"0.0.0.0": "127.0.0.1", "::": "[::1]", "": "127.0.0.1"}.get(host, host)  # noqa: S104
    if ":" in shown and not shown.startswith("["):
        shown = f"[{shown}]"
    return f"http://{shown}:{port}{path}"


async def until_connectable(host: str, port: int, *, unless: asyncio.Task[None]) -> None:
    """Return when *port* is served, or when *unless* has ended, which was to serve it."""
    shown = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}.get(host, host)  # noqa: S104
    while not unless.done():
        try:
            _, writer = await asyncio.open_connection(shown, port)
        except OSError:
            await asyncio.sleep(_TRY_AGAIN_S)
        else:
            writer.close()
            return
