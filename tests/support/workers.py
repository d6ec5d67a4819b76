"""The worker processes of a proxy with `listener.workers`, and a client of each."""

from __future__ import annotations

from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Protocol

from tests.support.grpc_server import channel
from tests.support.processes import ESTABLISHED, children, command, tcp_sockets

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    import grpc.aio

    from tests.support.proxy_process import ProxyProcess


class Process(Protocol):
    """Of a proxy, up or only starting."""

    @property
    def pid(self) -> int:
        """Its process id."""


def workers_of(proxy: Process) -> list[int]:
    """The process ids of its workers."""
    return sorted(pid for pid in children(proxy.pid) if "proxy.workers" in command(pid))


@asynccontextmanager
async def client_of_each(proxy: ProxyProcess) -> AsyncIterator[dict[int, grpc.aio.Channel]]:
    """A client of each worker, by the worker's process id. The kernel chooses, so it takes a few tries."""
    clients: dict[int, grpc.aio.Channel] = {}
    async with AsyncExitStack() as stack:
        while len(clients) < len(workers := workers_of(proxy)):
            before = {pid: tcp_sockets(pid, proxy.port, ESTABLISHED) for pid in workers}
            client = await stack.enter_async_context(channel(proxy.address))
            await client.channel_ready()
            grown = [pid for pid in workers if tcp_sockets(pid, proxy.port, ESTABLISHED) > before[pid]]
            if len(grown) == 1:  # or another connection came or went between the two looks
                clients.setdefault(grown[0], client)
        yield clients
