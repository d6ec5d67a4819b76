"""A client that reads slowly is not one that reads nothing; real sockets, whose kernels hold megabytes in between."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from functools import partial
from typing import TYPE_CHECKING

import h2.config
import h2.connection
import h2.events
import pytest

from tests.support.admin import admin_of, metric
from tests.support.grpc_server import echo_servers
from tests.support.polling import PATIENCE, eventually
from tests.support.proxy_process import ProxyProcess, addresses, proxy_process, toml
from tests.support.tls import Authority, Certificate

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from pathlib import Path

    from tests.support.grpc_server import Context, ReceivedCall

LARGE = "/any.Service/Large"
PIECE, PIECES = 256 * 1024, 24
"""More than two kernels and the proxy hold together, so that the server has to wait for the client."""
FEW = "/any.Service/Few"
STALL_TIMEOUT = 2.0
SLOWLY = 2.5 * STALL_TIMEOUT
"""Seconds that the client reads slowly: a call that is looked at wrongly does not survive them."""
ROOM = 2**31 - 1


async def large(_call: ReceivedCall, context: Context) -> None:
    for _ in range(PIECES):
        await context.write(bytes(PIECE))


async def few(_call: ReceivedCall, context: Context) -> None:
    """What a Unix socket and less than a full transport can hold."""
    near, far = socket.socketpair()
    with near, far:
        await context.write(bytes(near.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) + 128 * 1024))


class SlowReader:
    """A client with all the windows that there are, which takes from its socket when the test says so."""

    def __init__(
        self, read: Callable[[int], Awaitable[bytes]], write: Callable[[bytes], object], close: Callable[[], object]
    ) -> None:
        self._read = read
        self._write = write
        self.close = close
        self._h2 = h2.connection.H2Connection(h2.config.H2Configuration(header_encoding="utf-8"))
        self._h2.initiate_connection()
        self._h2.update_settings({h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: ROOM})
        self._h2.increment_flow_control_window(ROOM - 65_535)
        self.received = 0
        self.trailers: dict[str, str] = {}
        self.gone = False

    def call(self, path: str) -> None:
        headers = {":method": "POST", ":scheme": "http", ":path": path, ":authority": "test", "te": "trailers"}
        stream = self._h2.get_next_available_stream_id()
        self._h2.send_headers(stream, [*headers.items(), ("content-type", "application/grpc")])
        self._h2.send_data(stream, bytes(5), end_stream=True)
        self._write(self._h2.data_to_send())

    async def take(self, most: int) -> None:
        """Some of what has come, `most` bytes at most."""
        data = b""
        with contextlib.suppress(ConnectionResetError):
            data = await self._read(most)
        self.gone = not data
        for event in self._h2.receive_data(data):
            if isinstance(event, h2.events.DataReceived):
                self.received += len(event.data)
            elif isinstance(event, h2.events.TrailersReceived):
                self.trailers = dict(event.headers)
        if answer := self._h2.data_to_send():
            self._write(answer)

    async def take_all(self) -> None:
        """What comes until the trailers, or until the proxy has gone."""
        async with asyncio.timeout(PATIENCE):
            while not self.trailers and not self.gone:
                await self.take(1 << 20)


class Line:
    """A proxy, and the way to it."""

    def __init__(self, proxy: ProxyProcess, certificate: Certificate | None) -> None:
        self.proxy = proxy
        self._certificate = certificate

    async def connect(self) -> SlowReader:
        unix = self.proxy.address.startswith("unix:")
        client = socket.socket(socket.AF_UNIX if unix else socket.AF_INET)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.setblocking(False)
        loop = asyncio.get_running_loop()
        await loop.sock_connect(
            client, self.proxy.address.removeprefix("unix:") if unix else ("127.0.0.1", self.proxy.port)
        )
        if self._certificate is None:
            return SlowReader(partial(loop.sock_recv, client), client.send, client.close)
        # Not by asyncio, whose TLS reads far ahead.
        client.settimeout(PATIENCE)
        secured = await asyncio.to_thread(
            self._certificate.client_context("h2").wrap_socket, client, server_hostname="localhost"
        )
        return SlowReader(partial(asyncio.to_thread, secured.recv), secured.send, secured.close)

    async def stalls(self) -> float:
        """How many the proxy has seen."""
        async with admin_of(self.proxy) as admin:
            return await metric(admin, "districhat_limits_exceeded_total", limit="stall_timeout")


@pytest.fixture(params=["plain", "tls", "unix"])
async def line(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Line]:
    certificate = Authority(tmp_path).issue("127.0.0.1", "localhost") if request.param == "tls" else None
    listener: dict[str, str | float] = {"stall_timeout": STALL_TIMEOUT}
    if request.param == "unix":
        listener["address"] = f"unix:{tmp_path}/proxy.sock"
    tables = {"listener": listener, "admin": {"address": "127.0.0.1:0"}}
    if certificate is not None:
        tables["listener.tls"] = certificate.table
    async with echo_servers("A") as servers:
        servers[0].scripts.update({LARGE: large, FEW: few})
        async with proxy_process(tmp_path, toml(addresses(*servers), **tables)) as proxy:  # type: ignore[arg-type]
            yield Line(proxy, certificate)


async def test_a_client_that_reads_slowly_is_not_taken_for_one_that_stalls(line: Line) -> None:
    client = await line.connect()
    with contextlib.closing(client):
        client.call(LARGE)
        loop = asyncio.get_running_loop()
        end = loop.time() + SLOWLY
        while loop.time() < end and not client.gone:
            await client.take(4096)
            await asyncio.sleep(0.02)  # how slow it is, not a wait for something
        assert client.received < PIECE * PIECES, "much is still on its way"
        await client.take_all()
        assert client.trailers.get("grpc-status") == "0"
        assert client.received == (PIECE + 5) * PIECES
        assert await line.stalls() == 0


async def test_a_client_that_reads_nothing_any_more_is_cut_off(line: Line) -> None:
    await is_cut_off(line, LARGE)
    assert await line.stalls() >= 1


@pytest.mark.parametrize("line", ["unix"], indirect=True)
async def test_a_client_that_reads_nothing_is_cut_off_although_the_proxy_has_room_for_more(line: Line) -> None:
    await is_cut_off(line, FEW)


async def is_cut_off(line: Line, path: str) -> None:
    """A client that calls it and reads nothing of the response."""
    client = await line.connect()
    with contextlib.closing(client):
        client.call(path)
        await client.take(100)
        await eventually(lambda: "read nothing for 2 s" in line.proxy.log(), "the verdict")
        await client.take_all()
        assert client.gone
        assert not client.trailers
