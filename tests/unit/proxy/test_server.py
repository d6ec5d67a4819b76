"""A start that does not come to its end: whatever it has opened is closed again."""

from __future__ import annotations

import asyncio
import socket
from typing import TYPE_CHECKING, Any

import pytest

from proxy.cluster.address import Address
from proxy.errors import ConfigError
from proxy.server import Proxy
from proxy.settings import Settings
from proxy.transport import takeover
from proxy.transport.reactor import AsyncioReactor
from proxy.transport.takeover import Handover
from proxy.workers import supervisor

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

HOUR = 3600.0

needs_workers = pytest.mark.skipif(not supervisor.SUPPORTED, reason="needs Linux: SO_REUSEPORT that spreads, pidfd")
needs_takeover = pytest.mark.skipif(not takeover.SUPPORTED, reason="needs Linux: abstract unix sockets")


class HangingServer:
    """Takes connections, and says nothing."""

    def __init__(self) -> None:
        self.connected = asyncio.Event()
        self.wires: list[asyncio.StreamWriter] = []
        self.address = ""

    def take(self, _reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.wires.append(writer)
        self.connected.set()


@pytest.fixture
async def hanging() -> AsyncIterator[HangingServer]:
    hanging = HangingServer()
    server = await asyncio.start_server(hanging.take, "127.0.0.1", 0)
    hanging.address = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    async with server:
        yield hanging
        for wire in hanging.wires:
            wire.close()


def settings(server: str, startup_timeout: float = HOUR, **listener: Any) -> Settings:
    return Settings.model_validate(
        {
            "listener": {"address": "127.0.0.1:0", "drain_grace": HOUR, **listener},
            "endpoints": [{"id": "A", "address": server}],
            "health": {"kind": "grpc", "timeout": HOUR, "startup_timeout": startup_timeout},
            "admin": {"address": "127.0.0.1:0"},
        }
    )


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=needs_workers)])
async def test_a_start_that_is_cancelled_closes_what_it_has_opened(hanging: HangingServer, workers: int) -> None:
    """Tasks, threads, sockets and processes that are left fail any test."""
    proxy = Proxy(settings(hanging.address, workers=workers), AsyncioReactor(asyncio.get_running_loop()))
    starting = asyncio.ensure_future(proxy.start())
    async with asyncio.timeout(60.0):
        await hanging.connected.wait()
        listening = proxy.data.sockets
        port = socket.socket(fileno=listening[0])
        address = port.getsockname()
        port.detach()
        starting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await starting
    with socket.socket() as client:
        assert client.connect_ex(address) != 0, "it still listens"


async def test_a_start_that_is_cancelled_removes_the_file_of_its_unix_socket(
    hanging: HangingServer, tmp_path: Path
) -> None:
    file = tmp_path / "socket"
    proxy = Proxy(settings(hanging.address, address=f"unix:{file}"), AsyncioReactor(asyncio.get_running_loop()))
    starting = asyncio.ensure_future(proxy.start())
    async with asyncio.timeout(60.0):
        await hanging.connected.wait()
        assert file.exists()
        starting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await starting
    assert not file.exists()


@needs_takeover
async def test_a_successor_that_is_ready_too_late_does_not_stay_beside_the_proxy_that_has_the_port(
    hanging: HangingServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(takeover, "READY_TIMEOUT", 0.01)
    taken: list[None] = []
    with socket.create_server(("127.0.0.1", 0)) as port:
        address = Address(*port.getsockname())
        running = Handover(address, [port.fileno()], lambda: taken.append(None))
        running.open()
        successor = settings(hanging.address, startup_timeout=0.5, address=str(address))
        proxy = Proxy(successor, AsyncioReactor(asyncio.get_running_loop()))
        with pytest.raises(ConfigError, match="goes on: this one was not ready within"):
            await proxy.start(take_over=True)
        await running.close()
        assert not taken
        port.setblocking(False)
        with socket.create_connection((address.host, address.port)):
            peer, _ = await asyncio.get_running_loop().sock_accept(port)
            peer.close()
