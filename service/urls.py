"""The address of a server: in the form that a driver takes, and in a form that may be shown.

The same address is written in several ways (Heroku says ``postgres://``, SQLAlchemy wants the
driver's name, asyncpg refuses it), so it is brought to one form at the edge.
"""

from __future__ import annotations

from urllib.parse import parse_qsl, urlencode, urlsplit

_POSTGRES_SCHEMES = ("postgresql", "postgres", "postgresql+asyncpg")
_REDIS_SCHEMES = ("redis", "rediss", "unix")


def parse_database_url(text: str) -> str:
    """Return *text* as ``postgresql://…``, the form that asyncpg and libpq read.

    Raises ValueError, whose message does not hold the password.
    """
    scheme, separator, rest = text.strip().partition("://")
    if not separator or scheme not in _POSTGRES_SCHEMES:
        raise ValueError("expected postgresql://user:password@host:5432/database")
    return _with_valid_port(f"postgresql://{rest}")


def parse_redis_url(text: str) -> str:
    """Return *text* if it is ``redis://``, ``rediss://`` (TLS) or ``unix://`` (a socket).

    Raises ValueError, whose message does not hold the password.
    """
    scheme, separator, rest = text.strip().partition("://")
    if not separator or scheme not in _REDIS_SCHEMES:
        raise ValueError("expected redis://host:6379/0, rediss://… or unix:///path/to/redis.sock")
    if scheme == "unix" and "/" not in rest:
        raise ValueError("expected the socket's absolute path: unix:///path/to/redis.sock")
    return _with_valid_port(f"{scheme}://{rest}")


def sqlalchemy_url(database_url: str) -> str:
    """Return the ``postgresql://…`` address as SQLAlchemy's asyncpg dialect takes it."""
    base, _, query = database_url.partition("?")
    # Every query argument goes to asyncpg.connect(), which says `ssl` for libpq's `sslmode`.
    pairs = [("ssl" if name == "sslmode" else name, value) for name, value in parse_qsl(query)]
    suffix = f"?{urlencode(pairs)}" if pairs else ""
    return base.replace("postgresql://", "postgresql+asyncpg://", 1) + suffix


def redacted(url: str) -> str:
    """Return *url* with every password in it replaced by ``***``, fit for a log or an error."""
    scheme, separator, rest = url.partition("://")
    authority, slash, path = rest.partition("/")
    credentials, at, host = authority.rpartition("@")
    if ":" in credentials:
        credentials = f"{credentials.partition(':')[0]}:***"
    path, question, query = path.partition("?")
    shown = "&".join(
        f"{part.partition('=')[0]}=***" if part.lower().startswith("password=") else part
        for part in query.split("&")
    )
    return f"{scheme}{separator}{credentials}{at}{host}{slash}{path}{question}{shown}"


def _with_valid_port(url: str) -> str:
    try:
        _ = urlsplit(url).port
    except ValueError:
        raise ValueError("expected a port from 0 to 65535") from None
    return url
