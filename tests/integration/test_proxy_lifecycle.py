"""The start and the end of the proxy."""

from __future__ import annotations

import asyncio
import signal
import socket
import sys
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

import grpc
import grpc.aio
import pytest

from tests.support.grpc_server import GATED, Gate, channel, echo_servers
from tests.support.messages import framed
from tests.support.polling import eventually
from tests.support.ports import closed_port
from tests.support.proxy_process import PATIENCE, ProxyProcess, addresses, environment, proxy_process, toml
from tests.support.raw_http2 import raw_client

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

UNARY = "/any.Service/Unary"


@pytest.fixture
async def gate() -> AsyncIterator[Gate]:
    async with echo_servers("Server-A") as servers:
        yield Gate(servers)


async def _refuses(proxy: ProxyProcess) -> None:
    """Until nobody listens on the proxy's port."""

    def connects() -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", proxy.port)) == 0

    await eventually(lambda: not connects(), "the port's being closed")


async def _run(directory: Path, config: str) -> tuple[int | None, str, str]:
    """Exit status, stdout and stderr of `districhat serve`, which must end by itself."""
    file = directory / "bad.toml"
    file.write_text(config, encoding="utf-8")
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "proxy", "serve", "--config", str(file)),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=environment(),
    )
    try:
        async with asyncio.timeout(PATIENCE):
            stdout, stderr = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.communicate()
    return process.returncode, stdout.decode(), stderr.decode()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_at_the_end_running_calls_finish_and_new_connections_are_refused(
    gate: Gate, tmp_path: Path, number: signal.Signals
) -> None:
    async with AsyncExitStack() as stack:
        proxy = await stack.enter_async_context(
            proxy_process(tmp_path, toml(addresses(*gate.servers), listener={"drain_grace": 60}))
        )
        clients = [await stack.enter_async_context(channel(proxy.address)) for _ in range(4)]
        idle = await stack.enter_async_context(raw_client(proxy.port))
        await idle.pinged()
        calls = [clients[number % 4].unary_unary(GATED)(b"%d" % number) for number in range(100)]
        await gate.inside(100)
        proxy.signal(number)
        await _refuses(proxy)
        await idle.until(lambda: idle.goaways, "GOAWAY")
        assert {code for code, _ in idle.goaways} == {0}
        gate.open()
        assert await asyncio.gather(*calls) == [b"%d" % number for number in range(100)]
        assert await proxy.ended() == 0


async def test_a_client_is_asked_first_and_then_told_to_make_no_more_calls(gate: Gate, tmp_path: Path) -> None:
    config = toml(addresses(*gate.servers), listener={"drain_grace": 60})
    async with proxy_process(tmp_path, config) as proxy, raw_client(proxy.port) as client:
        stream = client.request(GATED)
        client.send(stream, framed(b"running"), end=True)
        await gate.inside(1)
        proxy.signal(signal.SIGTERM)
        await client.until(lambda: len(client.goaways) == 2, "two GOAWAYs")
        assert client.goaways == [(0, 2**31 - 1), (0, stream)]
        assert not client.pinged_before_goaway, "the answer to the PING must prove that the GOAWAY was seen"
        gate.open()
        assert (await client.over(stream)).status == b"0"
        await client.until(client.closed.is_set, "the connection's end")


async def test_a_stream_that_never_ends_is_cut_off_at_the_end_of_the_grace(gate: Gate, tmp_path: Path) -> None:
    config = toml(addresses(*gate.servers), listener={"drain_grace": 0.5})
    async with proxy_process(tmp_path, config) as proxy, channel(proxy.address) as client:
        proxy.cuts_off = True
        call = client.stream_stream(GATED)()
        await call.write(b"never answered")
        await gate.inside(1)
        proxy.signal(signal.SIGTERM)
        assert await call.code() is grpc.StatusCode.UNAVAILABLE
        assert await proxy.ended() == 0
        assert "1 calls did not finish" in proxy.log()
        await eventually(lambda: gate.servers[0].calls[0].cancelled, "the cancellation at the server")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_second_signal_ends_the_drain_at_once(gate: Gate, tmp_path: Path, number: signal.Signals) -> None:
    config = toml(addresses(*gate.servers), listener={"drain_grace": 3600})
    async with proxy_process(tmp_path, config) as proxy, channel(proxy.address) as client:
        call = client.stream_stream(GATED)()
        await call.write(b"never answered")
        await gate.inside(1)
        proxy.signal(number)
        await eventually(lambda: "draining" in proxy.log(), "the drain")
        proxy.signal(number)
        proxy.exit_status = -number
        await proxy.ended()


async def test_without_clients_it_ends_at_once_whatever_the_servers_do(tmp_path: Path) -> None:
    with closed_port() as port:
        config = toml({"Server-A": f"127.0.0.1:{port}"}, listener={"drain_grace": 3600})
        async with proxy_process(tmp_path, config) as proxy:
            proxy.signal(signal.SIGTERM)
            assert await proxy.ended() == 0


async def test_idle_clients_do_not_hold_up_the_end(gate: Gate, tmp_path: Path) -> None:
    config = toml(addresses(*gate.servers), listener={"drain_grace": 3600})
    async with proxy_process(tmp_path, config) as proxy, channel(proxy.address) as client:
        assert await client.unary_unary(UNARY)(b"done") == b"done"
        proxy.signal(signal.SIGTERM)
        assert await proxy.ended() == 0


async def test_a_rolling_restart_of_the_proxy_behind_one_address_fails_no_call_that_waits(
    gate: Gate, tmp_path: Path
) -> None:
    config = toml(addresses(*gate.servers))
    async with AsyncExitStack() as stack:
        first = await stack.enter_async_context(proxy_process(tmp_path, config))
        client = await stack.enter_async_context(channel(first.address))
        assert await client.unary_unary(UNARY)(b"1") == b"1"
        first.signal(signal.SIGTERM)
        assert await first.ended() == 0
        same_port = toml(addresses(*gate.servers), listener={"address": first.address})
        second_directory = tmp_path / "second"
        second_directory.mkdir()
        await stack.enter_async_context(proxy_process(second_directory, same_port))
        assert await client.unary_unary(UNARY)(b"2", wait_for_ready=True) == b"2"


async def test_a_port_in_use_is_said_in_one_line_with_status_2(tmp_path: Path) -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        address = f"127.0.0.1:{holder.getsockname()[1]}"
        status, stdout, stderr = await _run(tmp_path, toml({"Server-A": "127.0.0.1:1"}, listener={"address": address}))
    assert status == 2
    assert not stdout
    (line,) = stderr.splitlines()
    assert line.startswith("listener.address: ")
    assert address in line
    assert "in use" in line


async def test_an_unknown_host_to_listen_on_is_said_in_one_line_with_status_2(tmp_path: Path) -> None:
    config = toml({"Server-A": "127.0.0.1:1"}, listener={"address": "192.0.2.1:50050"})  # TEST-NET-1, not ours
    status, stdout, stderr = await _run(tmp_path, config)
    assert status == 2
    assert not stdout
    (line,) = stderr.splitlines()
    assert line.startswith("listener.address: ")
