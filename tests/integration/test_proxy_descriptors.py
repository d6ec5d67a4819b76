"""A proxy that has no file descriptor left: calls go on, who comes waits or is sent away, and it does not spin."""

from __future__ import annotations

import asyncio
import os
import resource
from contextlib import AsyncExitStack
from pathlib import Path

import grpc.aio
import pytest

from tests.support.grpc_server import channel, echo_servers
from tests.support.polling import eventually
from tests.support.proxy_process import ProxyProcess, addresses, proxy_process, toml
from tests.support.tls import Authority

pytestmark = pytest.mark.skipif(not hasattr(resource, "prlimit"), reason="needs Linux: prlimit")

UNARY = "/any.Service/Unary"
SPARE = 3
"""Descriptors that are left for clients."""
MANY = 30


def seconds_of_cpu(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def highest_descriptor(pid: int) -> int:
    return max(int(each.name) for each in Path(f"/proc/{pid}/fd").iterdir())


def tries(proxy: ProxyProcess) -> int:
    return proxy.log().count("cannot accept clients")


async def crowd(stack: AsyncExitStack, proxy: ProxyProcess) -> list[asyncio.StreamReader]:
    """More clients than there are descriptors for, which say nothing."""
    soft, hard = resource.prlimit(proxy.pid, resource.RLIMIT_NOFILE)
    resource.prlimit(proxy.pid, resource.RLIMIT_NOFILE, (highest_descriptor(proxy.pid) + 1 + SPARE, hard))
    stack.callback(resource.prlimit, proxy.pid, resource.RLIMIT_NOFILE, (soft, hard))
    readers = []
    for _ in range(MANY):
        reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
        stack.callback(writer.close)
        readers.append(reader)
    return readers


async def is_left(reader: asyncio.StreamReader) -> None:
    """Returns when the proxy has ended the connection."""
    try:
        while await reader.read(4096):
            pass
    except ConnectionResetError:
        pass


async def test_without_descriptors_clients_are_sent_away_at_once_and_others_go_on(tmp_path: Path) -> None:
    async with (
        echo_servers("A") as servers,
        proxy_process(tmp_path, toml(addresses(*servers))) as proxy,
        channel(proxy.address) as client,
    ):
        call = client.unary_unary(UNARY)
        assert await call(b"before") == b"before"
        async with AsyncExitStack() as stack:
            readers = await crowd(stack, proxy)
            gone = [asyncio.ensure_future(is_left(each)) for each in readers]
            # None waits in the queue of the port, which would wake the proxy again and again.
            await eventually(lambda: sum(each.done() for each in gone) >= MANY - 2 * SPARE)
            assert await call(b"meanwhile") == b"meanwhile"
            for each in gone:
                each.cancel()
        async with channel(proxy.address) as newcomer:
            assert await newcomer.unary_unary(UNARY)(b"after", wait_for_ready=True) == b"after"


async def test_without_descriptors_clients_of_tls_wait_and_the_proxy_rests_between_two_tries(tmp_path: Path) -> None:
    certificate = Authority(tmp_path).issue("127.0.0.1", "localhost", "proxy.test")
    listener = {**certificate.table, "handshake_timeout": 60.0}
    async with (
        echo_servers("A") as servers,
        proxy_process(tmp_path, toml(addresses(*servers), **{"listener.tls": listener})) as proxy,
        AsyncExitStack() as clients,
    ):
        client = await clients.enter_async_context(
            grpc.aio.secure_channel(proxy.address, certificate.client_credentials())
        )
        call = client.unary_unary(UNARY)
        assert await call(b"before") == b"before"
        async with AsyncExitStack() as stack:
            await crowd(stack, proxy)
            await eventually(lambda: tries(proxy) >= 1)
            before, so_far = seconds_of_cpu(proxy.pid), tries(proxy)
            await eventually(lambda: tries(proxy) > so_far)  # a second later
            assert seconds_of_cpu(proxy.pid) - before < 0.5
            assert await call(b"meanwhile") == b"meanwhile"
        async with grpc.aio.secure_channel(proxy.address, certificate.client_credentials()) as newcomer:
            assert await newcomer.unary_unary(UNARY)(b"after", wait_for_ready=True) == b"after"
        proxy.expects("cannot accept clients")
