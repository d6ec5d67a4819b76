"""`districhat serve --takeover`: replacing a running proxy under load, without a failed call."""

from __future__ import annotations

import os
import signal
import socket
from typing import TYPE_CHECKING

import grpc.aio
import pytest

from proxy.cluster.address import Address
from proxy.transport import takeover
from proxy.transport.takeover import READY, Handover, Takeover, meeting_point
from tests.support.echo_load import EchoLoad
from tests.support.grpc_server import channel, echo_servers
from tests.support.polling import eventually
from tests.support.ports import free_port
from tests.support.proxy_process import addresses, proxy_process, toml

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.proxy_process import ProxyProcess

pytestmark = pytest.mark.skipif(not takeover.SUPPORTED, reason="needs Linux: abstract unix sockets")

UNARY = "/any.Service/Unary"


async def test_a_successor_takes_the_port_under_load_and_no_call_fails(tmp_path: Path) -> None:
    address = f"127.0.0.1:{free_port()}"
    for name in ("first", "second", "third"):
        (tmp_path / name).mkdir()
    async with echo_servers("Server-A", "Server-B") as servers:
        config = toml(addresses(*servers), listener={"address": address})
        async with (
            proxy_process(tmp_path / "first", config) as first,
            EchoLoad(address, clients=6, per_connection=100) as load,
        ):
            first.signalled = True  # its successor ends it
            await load.more()
            async with proxy_process(tmp_path / "second", config, arguments=("--takeover",)) as second:
                second.signalled = True
                assert await first.ended() == 0
                await load.more()
                async with proxy_process(tmp_path / "third", config, arguments=("--takeover",)) as third:
                    assert await second.ended() == 0
                    await load.more()
                    await load.stop()
                    assert "took over" in third.log()


async def test_without_a_predecessor_a_successor_starts_by_itself(tmp_path: Path) -> None:
    async with echo_servers("Server-A") as servers:
        config = toml(addresses(*servers))
        async with (
            proxy_process(tmp_path, config, arguments=("--takeover",)) as proxy,
            channel(proxy.address) as client,
        ):
            assert await client.unary_unary(UNARY)(b"body") == b"body"


async def is_as_before(proxy: ProxyProcess) -> None:
    """It serves, and the next successor can come."""
    async with channel(proxy.address) as client:
        assert await client.unary_unary(UNARY)(b"body") == b"body"
    begun = await Takeover.begin(Address.parse(proxy.address))
    assert begun is not None
    begun.close()


async def test_a_successor_that_dies_before_it_is_ready_changes_nothing(tmp_path: Path) -> None:
    async with echo_servers("Server-A") as servers, proxy_process(tmp_path, toml(addresses(*servers))) as proxy:
        begun = await Takeover.begin(Address.parse(proxy.address))
        assert begun is not None
        begun.close()
        await eventually(lambda: "without taking over" in proxy.log(), "its being noticed")
        await is_as_before(proxy)


async def test_a_successor_that_dies_before_it_hears_goodbye_changes_nothing(tmp_path: Path) -> None:
    async with echo_servers("Server-A") as servers, proxy_process(tmp_path, toml(addresses(*servers))) as proxy:
        begun = await Takeover.begin(Address.parse(proxy.address))
        assert begun is not None
        os.kill(proxy.pid, signal.SIGSTOP)
        begun._peer.send(READY)
        begun.close()
        os.kill(proxy.pid, signal.SIGCONT)
        await eventually(lambda: "a successor did not take over: " in proxy.log(), "its being noticed")
        await is_as_before(proxy)


async def test_a_second_proxy_on_the_port_of_another_waits_for_no_successor(caplog: pytest.LogCaptureFixture) -> None:
    """Two network namespaces may use the same name; that must not keep a proxy from starting."""
    address = Address("127.0.0.1", free_port())
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as holder:
        holder.bind(meeting_point(address))
        handover = Handover(address, [], lambda: None)
        handover.open()
        await handover.close()
    assert "no successor will be able to take over the port: address already in use" in caplog.text.lower()


async def test_a_host_name_is_as_good_as_an_address(tmp_path: Path) -> None:
    async with echo_servers("Server-A") as servers:
        config = toml(addresses(*servers), listener={"address": f"localhost:{free_port()}"})
        for name in ("first", "second"):
            (tmp_path / name).mkdir()
        async with proxy_process(tmp_path / "first", config) as first:
            first.signalled = True
            async with proxy_process(tmp_path / "second", config, arguments=("--takeover",)):
                assert await first.ended() == 0


async def test_a_running_stream_ends_with_its_own_proxy_after_the_takeover(tmp_path: Path) -> None:
    port = free_port()
    async with echo_servers("Server-A") as (server,):
        config = toml(addresses(server), listener={"address": f"127.0.0.1:{port}"})
        for name in ("first", "second"):
            (tmp_path / name).mkdir()
        async with proxy_process(tmp_path / "first", config) as first, channel(first.address) as client:
            first.signalled = True
            call: grpc.aio.StreamStreamCall[bytes, bytes] = client.stream_stream("/any.Service/Bidi")()
            await call.write(b"one")
            assert await call.read() == b"one"
            async with proxy_process(tmp_path / "second", config, arguments=("--takeover",)):
                await call.write(b"two")
                assert await call.read() == b"two"
                await call.done_writing()
                assert await call.read() is grpc.aio.EOF
                assert await first.ended() == 0
