"""Unix sockets on either side of `districhat serve`."""

from __future__ import annotations

import asyncio
import signal
import socket
import stat
import sys
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING

import grpc.aio
import pytest

from tests.support.grpc_server import CLIENT_OPTIONS, EchoServer, channel, echo_servers, server_of
from tests.support.polling import PATIENCE, eventually
from tests.support.proxy_process import Table, addresses, environment, proxy_process, toml
from tests.support.tls import Authority

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

UNARY = "/any.Service/Unary"
BIDI = "/any.Service/Bidi"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "proxy.sock"


def exists(path: Path) -> bool:
    return path.exists()


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def inode_of(path: Path) -> int:
    return path.stat().st_ino


def listening_at(path: Path, *servers: EchoServer, **listener: str | float) -> str:
    return toml(addresses(*servers), listener={"address": f"unix:{path}", **listener})


@asynccontextmanager
async def unix_servers(directory: Path, *ids: str) -> AsyncIterator[list[EchoServer]]:
    servers = [EchoServer(id_, socket_path=directory / f"{id_}.sock") for id_ in ids]
    for server in servers:
        await server.start()
    try:
        yield servers
    finally:
        for server in servers:
            await server.stop()


async def call(client: grpc.aio.Channel, key: str = "chat", size: int = 10) -> str:
    """Who serves a call for `key`."""
    made = client.unary_unary(UNARY)(bytes(size), metadata=(("x-chat-id", key),))
    assert await made == bytes(size)
    return await server_of(made)


@pytest.mark.parametrize("workers", [1, 2])
async def test_clients_come_by_a_unix_socket_whose_file_is_gone_in_the_end(
    tmp_path: Path, path: Path, workers: int
) -> None:
    async with echo_servers("A", "B") as servers:
        async with proxy_process(tmp_path, listening_at(path, *servers, workers=workers)) as proxy:
            assert proxy.address == f"unix:{path}"
            assert mode_of(path) == 0o660
            async with channel(proxy.address) as client:
                for key in (f"chat-{number}" for number in range(20)):
                    assert await call(client, key, 100_000) == proxy.owner(key)
        assert not exists(path)


async def test_the_permissions_are_what_the_operator_says(tmp_path: Path, path: Path) -> None:
    async with (
        echo_servers("A") as servers,
        proxy_process(tmp_path, listening_at(path, *servers, socket_mode="0606")),
    ):
        assert mode_of(path) == 0o606


async def test_the_file_of_a_proxy_that_was_killed_is_no_obstacle(tmp_path: Path, path: Path) -> None:
    async with echo_servers("A") as servers:
        config = listening_at(path, *servers)
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "proxy", "serve", "--config", str(_written(tmp_path, config))),
            stdout=asyncio.subprocess.PIPE,
            env=environment(),
        )
        assert process.stdout is not None
        assert b"ready" in await process.stdout.readline()
        process.kill()
        await process.communicate()
        assert exists(path)
        async with proxy_process(tmp_path, config) as proxy, channel(proxy.address) as client:
            assert await call(client) == "A"


async def test_a_socket_that_is_in_use_is_left_to_its_owner(tmp_path: Path, path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as owner:
        owner.bind(str(path))
        owner.listen()
        config = _written(tmp_path, toml({"A": "127.0.0.1:1"}, listener={"address": f"unix:{path}"}))
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "proxy", "serve", "--config", str(config)),
            stderr=asyncio.subprocess.PIPE,
            env=environment(),
        )
        _, err = await process.communicate()
        assert process.returncode == 2
        assert err.decode() == (
            f"listener.address: cannot listen on unix:{path}: address already in use; "
            "--takeover replaces the proxy that listens there, if one does\n"
        )
        assert exists(path)


async def test_servers_are_reached_by_unix_sockets_and_failed_over_from(tmp_path: Path) -> None:
    async with (
        unix_servers(tmp_path, "A", "B") as servers,
        proxy_process(tmp_path, toml(addresses(*servers))) as proxy,
        channel(proxy.address) as client,
    ):
        key = proxy.key_of("A")
        assert await call(client, key, 3 << 20) == "A"
        await servers[0].stop()
        assert await call(client, key) == "B"


async def test_a_successor_takes_the_socket_and_removes_it_in_the_end(tmp_path: Path, path: Path) -> None:
    async with echo_servers("A") as servers:
        config = listening_at(path, *servers)
        for name in ("first", "second"):
            (tmp_path / name).mkdir()
        async with proxy_process(tmp_path / "first", config) as first, channel(first.address) as client:
            first.signalled = True
            running: grpc.aio.StreamStreamCall[bytes, bytes] = client.stream_stream(BIDI)()
            await running.write(b"one")
            assert await running.read() == b"one"
            inode = inode_of(path)
            async with proxy_process(tmp_path / "second", config, arguments=("--takeover",)) as second:
                await running.write(b"two")
                assert await running.read() == b"two"
                await running.done_writing()
                assert await running.read() is grpc.aio.EOF
                assert await first.ended() == 0
                assert inode_of(path) == inode
                async with channel(second.address) as fresh:
                    assert await call(fresh) == "A"
            assert not exists(path)


@pytest.mark.parametrize("workers", [1, 2])
async def test_a_proxy_that_is_told_to_end_while_its_successor_gets_ready_leaves_it_the_file(
    tmp_path: Path, path: Path, workers: int
) -> None:
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
    async with AsyncExitStack() as stack:
        servers = await stack.enter_async_context(echo_servers("A"))
        # A server that takes as long for its first health check as the test wants.
        slow = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        slow.setblocking(False)
        first = await stack.enter_async_context(proxy_process(tmp_path / "first", listening_at(path, *servers)))
        inode = inode_of(path)
        config = toml(
            {"A": servers[0].address, "slow": f"127.0.0.1:{slow.getsockname()[1]}"},
            listener={"address": f"unix:{path}", "workers": workers},
            health={"timeout": PATIENCE, "startup_timeout": PATIENCE},
        )
        starting = asyncio.ensure_future(
            stack.enter_async_context(proxy_process(tmp_path / "second", config, arguments=("--takeover",)))
        )
        try:
            checked, _ = await asyncio.get_running_loop().sock_accept(slow)
            with checked:
                first.signal(signal.SIGTERM)
                assert await first.ended() == 0
        finally:
            slow.close()
            second = await starting
        assert inode_of(path) == inode
        async with channel(second.address) as client:
            assert await call(client) == "A"
        second.signal(signal.SIGTERM)
        assert await second.ended() == 0
        assert not exists(path)


async def test_the_socket_is_gone_from_the_first_moment_of_a_drain(tmp_path: Path, path: Path) -> None:
    async with (
        echo_servers("A") as servers,
        proxy_process(tmp_path, listening_at(path, *servers)) as proxy,
        channel(proxy.address) as client,
    ):
        running: grpc.aio.StreamStreamCall[bytes, bytes] = client.stream_stream(BIDI)()
        await running.write(b"one")
        assert await running.read() == b"one"
        proxy.signal(signal.SIGTERM)
        await eventually(lambda: not exists(path), "the file's being gone")
        assert proxy.running()
        await running.done_writing()
        assert await running.read() is grpc.aio.EOF
        assert await proxy.ended() == 0


async def test_tls_is_spoken_on_unix_sockets_too(tmp_path: Path, path: Path) -> None:
    ca = Authority(tmp_path)
    certificate = ca.issue("chat.test")
    server = EchoServer("A", credentials=certificate.server_credentials(), socket_path=tmp_path / "A.sock")
    await server.start()
    tables: dict[str, Table] = {
        "listener": {"address": f"unix:{path}"},
        "listener.tls": certificate.table,
        "upstream.tls": {"ca": str(ca.file), "server_name": "chat.test"},
    }
    options = (*CLIENT_OPTIONS, ("grpc.ssl_target_name_override", "chat.test"))
    async with (
        proxy_process(tmp_path, toml(addresses(server), **tables)) as proxy,
        grpc.aio.secure_channel(proxy.address, certificate.client_credentials(), options=options) as client,
    ):
        assert await call(client, "chat", 3 << 20) == "A"
    await server.stop()


def _written(directory: Path, config: str) -> Path:
    file = directory / "written.toml"
    file.write_text(config, encoding="utf-8")
    return file
