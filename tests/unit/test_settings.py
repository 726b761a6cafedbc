from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from service.settings import Settings, SettingsError, load_settings
from service.urls import redacted

NAMES = [
    "ALLOTMENT_DATA_DIR" if name == "data_dir" else name.upper() for name in Settings.model_fields
]


@pytest.fixture(autouse=True)
def _empty_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)


def test_an_empty_environment_asks_for_embedded_servers():
    settings = load_settings()

    assert settings.needs_postgres
    assert settings.needs_redis
    assert not settings.data_dir_was_chosen
    assert settings.data_dir == Path(".allotment")
    assert settings.shards == 4


def test_an_empty_variable_is_an_absent_one(monkeypatch):
    monkeypatch.setenv("REDIS_URL", "")

    assert load_settings().needs_redis


def test_settings_cannot_be_changed():
    with pytest.raises(ValidationError):
        load_settings().shards = 8


def test_both_redis_addresses_default_to_the_one(monkeypatch):
    monkeypatch.setenv("REDIS_URL", "redis://one:6379/0")
    monkeypatch.setenv("QUEUE_REDIS_URL", "redis://two:6379/1")

    settings = load_settings()

    assert settings.quota_redis == "redis://one:6379/0"
    assert settings.queue_redis == "redis://two:6379/1"
    assert not settings.needs_redis


def test_two_redis_addresses_need_no_third(monkeypatch):
    monkeypatch.setenv("QUOTA_REDIS_URL", "redis://one:6379/0")
    monkeypatch.setenv("QUEUE_REDIS_URL", "redis://two:6379/1")

    assert not load_settings().needs_redis


def test_embedded_servers_fill_only_what_is_missing(monkeypatch):
    monkeypatch.setenv("QUOTA_REDIS_URL", "redis://one:6379/0")

    settings = load_settings().served_by(
        database_url="postgresql://postgres@/allotment?host=/run/x", redis_url="unix:///run/x/redis"
    )

    assert settings.quota_redis == "redis://one:6379/0"
    assert settings.queue_redis == "unix:///run/x/redis"
    assert settings.asyncpg_dsn == "postgresql://postgres@/allotment?host=/run/x"
    assert not settings.needs_postgres
    assert not settings.needs_redis


@pytest.mark.parametrize("scheme", ["postgres", "postgresql", "postgresql+asyncpg"])
def test_every_spelling_of_a_database_address_is_taken(monkeypatch, scheme):
    monkeypatch.setenv("DATABASE_URL", f"{scheme}://app:pw@db:5432/quota?sslmode=require")

    settings = load_settings()

    assert settings.asyncpg_dsn == "postgresql://app:pw@db:5432/quota?sslmode=require"
    assert settings.sqlalchemy_url == "postgresql+asyncpg://app:pw@db:5432/quota?ssl=require"


def test_a_data_directory_that_was_named_is_marked_so(monkeypatch):
    monkeypatch.setenv("ALLOTMENT_DATA_DIR", "/srv/allotment")

    settings = load_settings()

    assert settings.data_dir == Path("/srv/allotment")
    assert settings.data_dir_was_chosen


def test_an_option_wins_over_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("WEB_PORT", "8001")
    monkeypatch.setenv("ALLOTMENT_DATA_DIR", "/srv/allotment")

    settings = load_settings(web_port=8002, data_dir=tmp_path)

    assert settings.web_port == 8002
    assert settings.data_dir == tmp_path


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("SHARDS", "0"),
        ("SHARDS", "65"),
        ("SHARDS", "four"),
        ("SHARDS", "4.5"),
        ("AUTO_PROVISION", "perhaps"),
        ("DEDUPE_SECONDS", "-1"),
        ("REPLAY_SECONDS", "0"),
        ("DURABILITY", "never"),
        ("KEY_PREFIX", "a{b}"),
        ("KEY_PREFIX", "x" * 41),
        ("METRICS_PORT", "65536"),
        ("WEB_PORT", "http"),
        ("LOG_FORMAT", "xml"),
        ("LOG_LEVEL", "loud"),
        ("APPLY_RECORDS_MAX", "0"),
        ("DATABASE_URL", "mysql://u:secret@h/d"),
        ("DATABASE_URL", "postgresql+psycopg2://u:secret@h/d"),
        ("DATABASE_URL", "postgresql://u:secret@h:99999/d"),
        ("REDIS_URL", "http://u:secret@h"),
        ("REDIS_URL", "localhost:6379"),
        ("QUEUE_REDIS_URL", "redis://u:secret@h:port/0"),
        ("QUOTA_REDIS_URL", "unix://"),
    ],
)
def test_a_wrong_setting_is_named_in_one_line_without_its_secret(monkeypatch, name, value):
    monkeypatch.setenv(name, value)

    with pytest.raises(SettingsError) as caught:
        load_settings()

    message = str(caught.value)
    assert message.startswith(f"{name}: ")
    assert "\n" not in message
    assert "secret" not in message


def test_every_wrong_setting_is_named_at_once(monkeypatch):
    monkeypatch.setenv("SHARDS", "0")
    monkeypatch.setenv("LOG_LEVEL", "loud")

    with pytest.raises(SettingsError, match=r"SHARDS: .*; LOG_LEVEL: .*found 'loud'"):
        load_settings()


def test_the_pool_must_serve_every_job(monkeypatch):
    monkeypatch.setenv("DATABASE_POOL_MAX", "4")
    monkeypatch.setenv("WORKER_JOBS_MAX", "5")

    with pytest.raises(SettingsError, match=r"DATABASE_POOL_MAX \(4\).*WORKER_JOBS_MAX \(5\)"):
        load_settings()


def test_a_password_is_never_shown(monkeypatch):
    monkeypatch.setenv("DATABASE_URL", "postgresql://app:secret@db/quota")
    monkeypatch.setenv("REDIS_URL", "redis://:secret@cache:6379/0")

    settings = load_settings()

    assert "secret" not in repr(settings)
    assert "secret" not in str(settings)
    assert "secret" not in settings.model_dump_json()


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql://app:secret@db:5432/quota", "postgresql://app:***@db:5432/quota"),
        ("postgresql://app:se@cret@db/quota", "postgresql://app:***@db/quota"),
        ("redis://:secret@cache:6379/0", "redis://:***@cache:6379/0"),
        ("unix:///run/redis.sock?db=1&password=secret", "unix:///run/redis.sock?db=1&password=***"),
        ("postgresql://postgres@/a?host=/run/x", "postgresql://postgres@/a?host=/run/x"),
        ("redis://cache", "redis://cache"),
    ],
)
def test_an_address_is_shown_without_its_password(url, shown):
    assert redacted(url) == shown
