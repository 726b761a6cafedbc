"""Every setting of the service, read from the environment once, in a ``main``, and passed on.

A relation between two bounds is checked here, at start, and not at night.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    AliasChoices,
    Field,
    SecretStr,
    StringConstraints,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_settings import BaseSettings, SettingsConfigDict

from service.urls import parse_database_url, parse_redis_url, sqlalchemy_url

DATA_DIR_DEFAULT = Path(".allotment")

_SECRETS = frozenset({"DATABASE_URL", "REDIS_URL", "QUOTA_REDIS_URL", "QUEUE_REDIS_URL"})


class SettingsError(ValueError):
    """A setting is wrong; the message names the variable and says what it may be."""


DatabaseUrl = Annotated[
    SecretStr, AfterValidator(lambda url: SecretStr(parse_database_url(url.get_secret_value())))
]
RedisUrl = Annotated[
    SecretStr, AfterValidator(lambda url: SecretStr(parse_redis_url(url.get_secret_value())))
]
Port = Annotated[int, Field(ge=0, le=65_535)]
# No braces: a brace would move the hash tag that keeps a shard's keys in one cluster slot.
KeyPrefix = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_.:-]{1,40}$")]


class Settings(BaseSettings):
    """The settings of one process; the environment variable is the field's name in capitals."""

    model_config = SettingsConfigDict(
        frozen=True, extra="ignore", env_ignore_empty=True, validate_by_name=True
    )

    # Without an address, the server of the wheels is started (service.embedded).
    database_url: DatabaseUrl | None = None
    redis_url: RedisUrl | None = None
    # The quotas can live on a Redis Cluster, arq's queue cannot: two addresses with one default.
    quota_redis_url: RedisUrl | None = Field(default=None, validate_default=True)
    queue_redis_url: RedisUrl | None = Field(default=None, validate_default=True)

    data_dir: Path = Field(
        default=DATA_DIR_DEFAULT, validation_alias=AliasChoices("ALLOTMENT_DATA_DIR", "data_dir")
    )
    durability: Literal["everysec", "always"] = "everysec"

    key_prefix: KeyPrefix = "allotment"
    # Two installations on one Redis need two queues, or each worker takes the other's jobs.
    queue_name: KeyPrefix = "arq:queue"  # where stock arq producers put their jobs
    shards: int = Field(default=4, ge=1, le=64)
    auto_provision: bool = True
    dedupe_seconds: int = Field(default=86_400, ge=1, le=31_622_400)
    replay_seconds: int = Field(default=600, ge=1, le=86_400)
    late_grace: int = Field(default=3_600, ge=0, le=86_400)  # seconds after a period's end

    # Of one shard's log; past it nothing is admitted, because nothing admitted may be lost.
    log_bytes_max: int = Field(default=1_073_741_824, ge=0)  # 0 = as many as Redis has

    database_pool_max: int = Field(default=10, ge=1, le=1000)
    worker_jobs_max: int = Field(default=8, ge=1, le=1000)
    apply_records_max: int = Field(default=20_000, ge=1, le=100_000)
    # Users compared with PostgreSQL, four times a minute and worker; 0 = none.
    reconcile_users_per_round: int = Field(default=500, ge=0, le=100_000)

    metrics_host: str = "127.0.0.1"
    metrics_port: Port = 9464  # 0 = any free one
    web_host: str = "127.0.0.1"
    web_port: Port = 8000

    log_format: Literal["auto", "json", "console"] = "auto"
    log_level: Literal["debug", "info", "warning", "error"] = "info"

    @field_validator("quota_redis_url", "queue_redis_url")
    @classmethod
    def _default_is_redis_url(cls, url: SecretStr | None, info: ValidationInfo) -> SecretStr | None:
        return url if url is not None else info.data.get("redis_url")

    @field_validator("log_level", "log_format", "durability", mode="before")
    @classmethod
    def _any_case(cls, word: object) -> object:
        return word.lower() if isinstance(word, str) else word

    @model_validator(mode="after")
    def _pool_serves_every_job(self) -> Self:
        if self.database_pool_max < self.worker_jobs_max:
            raise ValueError(
                f"DATABASE_POOL_MAX ({self.database_pool_max}) must be at least "
                f"WORKER_JOBS_MAX ({self.worker_jobs_max}), or jobs wait for a connection"
            )
        return self

    @property
    def needs_postgres(self) -> bool:
        """Whether no PostgreSQL was named, so that an embedded one has to be started."""
        return self.database_url is None

    @property
    def needs_redis(self) -> bool:
        """Whether quotas or queue have no Redis, so that an embedded one has to be started."""
        return self.quota_redis_url is None or self.queue_redis_url is None

    @property
    def data_dir_was_chosen(self) -> bool:
        """Whether ALLOTMENT_DATA_DIR was set: then the records go there or nowhere."""
        return "data_dir" in self.model_fields_set

    @property
    def asyncpg_dsn(self) -> str:
        """The database's address for asyncpg, password included."""
        assert self.database_url is not None, "start the embedded servers first"
        return self.database_url.get_secret_value()

    @property
    def sqlalchemy_url(self) -> str:
        """The database's address for SQLAlchemy's asyncpg dialect, password included."""
        return sqlalchemy_url(self.asyncpg_dsn)

    @property
    def quota_redis(self) -> str:
        """The address of the Redis that holds the quotas, password included."""
        assert self.quota_redis_url is not None, "start the embedded servers first"
        return self.quota_redis_url.get_secret_value()

    @property
    def queue_redis(self) -> str:
        """The address of the Redis that holds arq's queue, password included."""
        assert self.queue_redis_url is not None, "start the embedded servers first"
        return self.queue_redis_url.get_secret_value()

    def served_by(self, *, database_url: str | None, redis_url: str | None) -> Settings:
        """Return these settings with each address that is missing filled in."""
        changes: dict[str, SecretStr] = {}
        if self.database_url is None and database_url is not None:
            changes["database_url"] = SecretStr(parse_database_url(database_url))
        if redis_url is not None:
            embedded = SecretStr(parse_redis_url(redis_url))
            for name in ("redis_url", "quota_redis_url", "queue_redis_url"):
                if getattr(self, name) is None:
                    changes[name] = embedded
        return self.model_copy(update=changes)


def load_settings(**overrides: Any) -> Settings:
    """Read the environment; *overrides* win over it (a command's own options).

    Raises SettingsError: one line that names every variable that is wrong.
    """
    try:
        return Settings(**overrides)
    except ValidationError as error:
        raise SettingsError("; ".join(_wrong_settings(error))) from None


def _wrong_settings(error: ValidationError) -> list[str]:
    found = error.errors(include_url=False, include_context=False)
    return [_wrong_setting(one["loc"], one["msg"], one["input"]) for one in found]


def _wrong_setting(location: tuple[int | str, ...], message: str, found: object) -> str:
    reason = message.removeprefix("Value error, ")
    if not location:
        return reason  # a relation between two settings names both itself
    name = str(location[0]).upper()
    name = "ALLOTMENT_DATA_DIR" if name == "DATA_DIR" else name
    shown = "" if name in _SECRETS else f", found {found!r:.80}"
    return f"{name}: {reason[:1].lower()}{reason[1:]}{shown}"
