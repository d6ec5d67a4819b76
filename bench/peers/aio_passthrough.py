"""The peer everybody would write first: a `grpc.aio` server that passes bytes through to `grpc.aio` channels.

Written as well as the library lets one: uvloop, no message classes (bytes in, bytes out), the unary-unary path, one
channel per backend, one prepared multi-callable per backend and method. It does less than a real proxy: it passes on
neither metadata nor deadlines, does not retry, and takes the chat id from a fixed place in the message; so what it
costs is a floor for this way of building a proxy.

Run as a program it is the server: `python -m bench.peers.aio_passthrough PORT HOST:PORT...`.
"""

from __future__ import annotations

import asyncio
import signal
import sys
import zlib
from typing import TYPE_CHECKING

import grpc
import grpc.aio
import uvloop

from bench.peers.base import Peer

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from bench.peers.base import Setup

    Handler = grpc.RpcMethodHandler[bytes, bytes]
    Context = grpc.aio.ServicerContext[bytes, bytes]
    Multicallable = grpc.aio.UnaryUnaryMultiCallable[bytes, bytes]


def _command(setup: Setup) -> list[str]:
    return [sys.executable, "-m", "bench.peers.aio_passthrough", str(setup.port), *setup.backends]


PEER = Peer(
    name="grpc.aio",
    about="a grpc.aio server on uvloop passing bytes through to grpc.aio channels: Python's usual way",
    command=_command,
    calls=4_000,
    ready="grpc.aio ready on ",
    tls=False,
    scenarios=("8x32", "64x1", "256x1"),
    packages=("grpcio", "uvloop"),
)


class PassThrough(grpc.GenericRpcHandler):
    """Every method is taken for unary-unary, and goes to the backend that a hash of the chat id names."""

    def __init__(self, channels: list[grpc.aio.Channel]) -> None:
        self._channels = channels
        self._handlers: dict[str, Handler] = {}

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Handler:
        """The handler of a method, made once."""
        method = handler_call_details.method
        handler = self._handlers.get(method)
        if handler is None:
            calls: list[Multicallable] = [channel.unary_unary(method) for channel in self._channels]
            handler = self._handlers[method] = grpc.unary_unary_rpc_method_handler(_forwarder(calls))
        return handler


def _forwarder(calls: list[Multicallable]) -> Callable[[bytes, Context], Awaitable[bytes]]:
    count = len(calls)

    async def forward(request: bytes, context: Context) -> bytes:
        # The chat id is field 1, first in the message and shorter than 128 bytes: tag, length, text.
        chat_id = request[2 : 2 + request[1]]
        try:
            return await calls[zlib.crc32(chat_id) % count](request)
        except grpc.aio.AioRpcError as error:
            await context.abort(error.code(), error.details() or "")
            raise  # abort raises; for the type checker

    return forward


async def _serve(port: int, backends: list[str]) -> None:
    channels = [grpc.aio.insecure_channel(address) for address in backends]
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((PassThrough(channels),))
    server.add_insecure_port(f"127.0.0.1:{port}")
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    await server.start()
    print(f"grpc.aio ready on 127.0.0.1:{port}", flush=True)
    await stop.wait()
    await server.stop(grace=0)
    for channel in channels:
        await channel.close()


if __name__ == "__main__":
    uvloop.run(_serve(int(sys.argv[1]), sys.argv[2:]))
