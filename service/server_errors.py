"""What keeps a server from being used; each message says what was found and what to do."""

from __future__ import annotations


class ServerError(RuntimeError):
    """PostgreSQL or Redis cannot be used as it is."""


class ServerAwayError(ServerError):
    """A server does not answer, and may yet: it is down, or still starting."""


class ServerNotFoundError(ServerError):
    """No program of this server is installed."""


class ServerStartError(ServerError):
    """An embedded server did not come up."""


class PortInUseError(ServerError):
    """Another program listens on the port that was asked for."""


class DataDirectoryError(ServerError):
    """The data directory cannot hold the servers' files."""


class DataDirectoryInUseError(DataDirectoryError):
    """Another process runs its servers on this data directory."""
