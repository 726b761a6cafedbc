from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest
from pydantic import SecretStr

from cli.addresses import published, settings_of_up
from service.settings import Settings


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(data_dir=tmp_path / "records", database_url=None, redis_url=None)


@pytest.fixture
def served(settings: Settings) -> Settings:
    return settings.served_by(
        database_url="postgresql://me:secret@/allotment", redis_url="unix:///run/redis.sock"
    )


def test_a_command_finds_what_up_has_published(settings, served):
    with published(settings, served=served):
        found = settings_of_up(settings)

    assert found is not None
    assert found.asyncpg_dsn == served.asyncpg_dsn
    assert found.quota_redis == found.queue_redis == "unix:///run/redis.sock"


def test_an_address_that_was_named_is_kept(settings, served):
    mine = settings.model_copy(update={"database_url": SecretStr("postgresql://mine/x")})

    with published(settings, served=served):
        found = settings_of_up(mine)

    assert found is not None
    assert found.asyncpg_dsn == "postgresql://mine/x"


def test_the_file_is_closed_to_others_and_gone_afterwards(settings, served):
    with published(settings, served=served):
        path = settings.data_dir / "addresses.json"
        assert stat.S_IMODE(path.stat().st_mode) == 0o600

    assert not settings.data_dir.exists()
    assert settings_of_up(settings) is None


@pytest.mark.parametrize("content", ["", "{", "[]", "7", '{"process": []}', '{"process": ["x"]}'])
def test_half_a_file_is_ignored(settings, content):
    settings.data_dir.mkdir()
    (settings.data_dir / "addresses.json").write_text(content)

    assert settings_of_up(settings) is None


def test_the_file_of_a_process_that_is_gone_is_ignored(settings, served):
    with published(settings, served=served):
        path = settings.data_dir / "addresses.json"
        found = json.loads(path.read_text())
        found["process"][1] -= 1  # another process had this number before
        path.write_text(json.dumps(found))

        assert settings_of_up(settings) is None
