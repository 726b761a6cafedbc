from __future__ import annotations

import asyncio
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import asyncpg
import psutil
import pytest
from redis.asyncio import Redis

from service.embedded import EmbeddedServers, running_servers
from service.server_binaries import find_redis
from service.server_checks import check_postgres, check_redis, check_servers, postgres_complaint
from service.server_errors import (
    DataDirectoryError,
    DataDirectoryInUseError,
    PortInUseError,
    ServerError,
)
from service.server_process import gone_within
from service.settings import load_settings
from service.system_user import postgres_user

ROOT = Path(__file__).parents[2]
GONE_SECONDS_MAX = 30

# Starts servers, says where, and waits to be killed.
HOLDER = """
import sys
from pathlib import Path
from service.embedded import EmbeddedServers
with EmbeddedServers(Path(sys.argv[1])) as servers:
    print(servers.postgres.process.pid, servers.redis.process.pid, servers.redis_url, flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def data_dir(open_tmp_dir: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    path = open_tmp_dir / f"of-{abs(hash(request.node.name)):x}"
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture
def holder(data_dir: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that runs servers on the data directory."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(data_dir)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        yield process
        process.kill()


def servers_of(holder: subprocess.Popen[str]) -> list[psutil.Process]:
    assert holder.stdout is not None
    postgres, redis, *_ = holder.stdout.readline().split()
    return [psutil.Process(int(postgres)), psutil.Process(int(redis))]


async def test_records_are_kept_between_runs(data_dir):
    async with EmbeddedServers(data_dir) as servers, connected(servers) as (database, redis):
        await database.execute("CREATE TABLE kept AS SELECT 42 AS answer")
        await redis.set("kept", 42)

    async with EmbeddedServers(data_dir) as servers, connected(servers) as (database, redis):
        assert await database.fetchval("SELECT answer FROM kept") == 42
        assert await redis.get("kept") == b"42"


async def test_what_was_set_for_safety_is_on(servers):
    async with connected(servers) as (database, redis):
        assert await database.fetchval("SHOW fsync") == "on"
        assert await database.fetchval("SHOW synchronous_commit") == "on"
        assert await database.fetchval("SHOW server_encoding") == "UTF8"
        assert await redis.config_get("appendonly") == {"appendonly": "yes"}
        assert await redis.config_get("maxmemory-policy") == {"maxmemory-policy": "noeviction"}
    await check_servers(servers.database_url, servers.redis_url)


def test_nothing_runs_and_nothing_is_locked_after_the_block(data_dir):
    with EmbeddedServers(data_dir) as servers:
        pids = pids_of(servers)

    assert not any(psutil.pid_exists(pid) for pid in pids)
    with EmbeddedServers(data_dir, with_postgres=False):
        pass


def test_a_data_directory_in_use_names_the_process_that_has_it(data_dir, holder):
    servers_of(holder)

    with pytest.raises(DataDirectoryInUseError, match=f"process {holder.pid}"):
        EmbeddedServers(data_dir).__enter__()


def test_ctrl_c_in_a_terminal_reaches_us_and_not_the_servers(servers):
    assert all(os.getsid(pid) != os.getsid(0) for pid in pids_of(servers))


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the next start clears up")
def test_a_killed_parent_leaves_no_server_behind(data_dir, holder):
    running = servers_of(holder)

    holder.kill()

    assert all(gone_within(process, seconds_max=GONE_SECONDS_MAX) for process in running)


async def test_a_start_right_after_a_kill_waits_for_the_old_servers_to_end(data_dir, holder):
    running = servers_of(holder)

    holder.kill()
    holder.wait()

    async with EmbeddedServers(data_dir) as servers:
        assert all(gone_within(process, seconds_max=0.001) for process in running)
        await check_servers(servers.database_url, servers.redis_url)


async def test_servers_that_crashed_come_back_with_what_was_committed(data_dir):
    with EmbeddedServers(data_dir, durability="always") as servers:
        async with connected(servers) as (database, redis):
            await database.execute("CREATE TABLE kept AS SELECT 42 AS answer")
            await redis.set("kept", 42)
        for process in all_processes(servers):
            with suppress(psutil.NoSuchProcess):  # gone with the postmaster
                process.kill()

    async with EmbeddedServers(data_dir) as servers, connected(servers) as (database, redis):
        assert await database.fetchval("SELECT answer FROM kept") == 42
        assert await redis.get("kept") == b"42"


async def test_half_a_command_at_the_end_of_the_append_only_file_is_dropped(data_dir):
    async with redis_alone(data_dir) as redis:
        await redis.set("kept", 42)
    appended = data_dir / "redis" / "appendonly.aof"
    if not appended.exists():  # Redis 7 keeps several files in a directory
        appended = max((data_dir / "redis" / "appendonlydir").glob("*.incr.aof"))
    with appended.open("ab") as file:
        file.write(b"*3\r\n$3\r\nSET\r\n$4\r\nha")

    async with redis_alone(data_dir) as redis:
        assert await redis.get("kept") == b"42"


def test_a_server_that_was_left_behind_is_stopped_by_the_next_start(data_dir):
    with EmbeddedServers(data_dir, with_postgres=False):
        pass
    (data_dir / "run").mkdir()
    command = [str(find_redis()), str(data_dir / "redis" / "redis.conf")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as orphan:
        assert orphan.stdout is not None
        assert any("ready to accept connections" in line for line in orphan.stdout)

        with EmbeddedServers(data_dir, with_postgres=False) as servers:
            assert orphan.wait(GONE_SECONDS_MAX) == 0
            assert pids_of(servers) != [orphan.pid]


async def test_tcp_listens_on_free_loopback_ports_with_a_password(data_dir):
    async with EmbeddedServers(data_dir, tcp=True) as servers:
        await check_servers(servers.database_url, servers.redis_url)

        for address in (open_address(servers.database_url), open_address(servers.redis_url)):
            check = check_postgres if address.startswith("postgresql") else check_redis
            with pytest.raises(ServerError, match=r"assword|uthentication"):
                await check(address)


@pytest.mark.parametrize("server", ["postgres_port", "redis_port"])
def test_a_port_that_is_taken_is_named(data_dir, server):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]

        with pytest.raises(PortInUseError, match=rf"port {port} .* is in use"):
            EmbeddedServers(data_dir, tcp=True, **{server: port}).__enter__()


def test_a_long_path_gets_its_sockets_elsewhere(data_dir):
    with EmbeddedServers(data_dir / ("x" * 100), with_postgres=False) as servers:
        socket_path = Path(servers.redis_url.removeprefix("unix://"))

        assert socket_path.is_socket()
        assert len(bytes(socket_path)) < 104
    assert not socket_path.parent.exists()


@pytest.mark.skipif(os.getuid() != 0, reason="only root runs PostgreSQL as somebody else")
class TestAsRoot:
    def test_a_chosen_directory_out_of_reach_is_refused_with_the_way_out(self, data_dir):
        data_dir.mkdir(mode=0o700)

        with pytest.raises(DataDirectoryError, match=rf"chmod o\+x {data_dir}"):
            EmbeddedServers(data_dir / "closed").__enter__()

    def test_the_default_directory_out_of_reach_is_replaced_and_said_so(self, data_dir):
        data_dir.mkdir(mode=0o700)

        with EmbeddedServers(data_dir / "closed", chosen=False) as servers:
            user = postgres_user()
            assert user is not None
            assert user.may_enter(servers.data_dir)
            assert servers.note is not None
            assert str(servers.data_dir) in servers.note
            elsewhere = servers.data_dir
        shutil.rmtree(elsewhere)


def test_a_directory_made_by_another_postgres_is_refused(data_dir):
    (data_dir / "postgres").mkdir(parents=True)
    (data_dir / "postgres" / "PG_VERSION").write_text("9\n")
    data_dir.chmod(0o711)

    with pytest.raises(DataDirectoryError, match="made by PostgreSQL 9"):
        EmbeddedServers(data_dir).__enter__()


async def test_settings_get_the_addresses_of_what_was_started(data_dir, monkeypatch):
    for name in ("DATABASE_URL", "REDIS_URL", "QUOTA_REDIS_URL", "QUEUE_REDIS_URL"):
        monkeypatch.delenv(name, raising=False)
    told: list[str] = []

    async with running_servers(load_settings(data_dir=data_dir), tell=told.append) as settings:
        await check_servers(settings.asyncpg_dsn, settings.quota_redis)
        assert settings.queue_redis == settings.quota_redis
    assert told == []


async def test_servers_that_were_named_are_used_and_none_is_started(servers, data_dir):
    named = load_settings(
        database_url=servers.database_url, redis_url=servers.redis_url, data_dir=data_dir
    )

    async with running_servers(named, tell=pytest.fail) as settings:
        assert settings == named
    assert not data_dir.exists()


async def test_a_redis_that_evicts_is_refused(data_dir):
    async with EmbeddedServers(data_dir, with_postgres=False) as servers:
        async with Redis.from_url(servers.redis_url) as redis:
            await redis.config_set("maxmemory-policy", "allkeys-lru")

        with pytest.raises(
            ServerError, match=r"allkeys-lru.*CONFIG SET maxmemory-policy noeviction"
        ):
            await check_redis(servers.redis_url)


async def test_an_old_redis_is_refused():
    facts = b"redis_version:6.0.16\r\nmaxmemory_policy:noeviction\r\n"

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async for line in reader:
            if line.startswith(b"*"):  # a command begins; several may come at once
                writer.write(b"$%d\r\n%s\r\n" % (len(facts), facts))
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        with pytest.raises(ServerError, match=r"version 6\.0\.16; Allotment needs 6\.2 or later"):
            await check_redis(f"redis://127.0.0.1:{port}/0")


def test_an_old_postgres_is_refused():
    assert postgres_complaint(15) is None
    assert "version 14; Allotment needs 15 or later" in str(postgres_complaint(14))


async def test_a_server_out_of_reach_is_named_without_its_password():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        closed = listener.getsockname()[1]

    with pytest.raises(ServerError, match=r"app:\*\*\*@127.*DATABASE_URL") as of_postgres:
        await check_postgres(f"postgresql://app:secret@127.0.0.1:{closed}/quota")
    with pytest.raises(ServerError, match=r":\*\*\*@127.*REDIS_URL") as of_redis:
        await check_redis(f"redis://:secret@127.0.0.1:{closed}/0")

    assert "secret" not in f"{of_postgres.value} {of_redis.value}"


def test_sigterm_to_the_one_who_waits_stops_the_servers(data_dir, holder):
    running = servers_of(holder)

    holder.send_signal(signal.SIGTERM)  # not handled by the holder: it dies at once

    assert all(gone_within(process, seconds_max=GONE_SECONDS_MAX) for process in running)


@asynccontextmanager
async def connected(servers: EmbeddedServers) -> AsyncIterator[tuple[asyncpg.Connection, Redis]]:
    database = await asyncpg.connect(servers.database_url)
    try:
        async with Redis.from_url(servers.redis_url) as redis:
            yield database, redis
    finally:
        await database.close()


def all_processes(servers: EmbeddedServers) -> list[psutil.Process]:
    mains = [psutil.Process(pid) for pid in pids_of(servers)]
    return [*mains, *(child for main in mains for child in main.children(recursive=True))]


def pids_of(servers: EmbeddedServers) -> list[int]:
    started = [one.process for one in (servers.postgres, servers.redis) if one is not None]
    return [process.pid for process in started if process is not None]


def open_address(url: str) -> str:
    scheme, _, rest = url.partition("://")
    user = "postgres@" if scheme == "postgresql" else ""
    return f"{scheme}://{user}{rest.rpartition('@')[2]}"


@asynccontextmanager
async def redis_alone(data_dir: Path) -> AsyncIterator[Redis]:
    async with (
        EmbeddedServers(data_dir, with_postgres=False) as servers,
        Redis.from_url(servers.redis_url) as redis,
    ):
        yield redis
