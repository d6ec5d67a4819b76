"""The server behind the proxies: does nothing but write down what it runs (`bench.faults.ledger`).

A process of its own: `python -m bench.faults.backend ID PORT LEDGER`. Its methods take a `chat.ChatRequest` whose
`message_id` is the call's id:

    /bench.Ledger/Append        unary, takes 20 ms, must not run twice
    /bench.Ledger/AppendOnce    the same, may run twice (as behind an idempotency key)
    /bench.Ledger/Tokens        a stream of 20 messages in 2 s, must not run twice

Its end is that of a well-behaved gRPC server under an orchestrator: at SIGTERM it says NOT_SERVING on grpc.health.v1,
goes on serving for `LAME_DUCK` seconds so that every health check can notice, then GOAWAY, and it exits when the
running calls are done.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import grpc
import grpc.aio
import uvloop
from districhat import chat_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1._async import HealthServicer

from bench.faults.ledger import FINISH, START, line

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    Context = grpc.aio.ServicerContext[chat_pb2.ChatRequest, chat_pb2.ChatResponse]
    StreamContext = grpc.aio.ServicerContext[chat_pb2.ChatRequest, chat_pb2.ReplyChunk]

APPEND = "/bench.Ledger/Append"
APPEND_ONCE = "/bench.Ledger/AppendOnce"
TOKENS = "/bench.Ledger/Tokens"
READY = "ledger ready on "

WORK = 0.02
TOKEN_COUNT = 20
TOKEN_DELAY = 0.1
LAME_DUCK = 3.0
"""Longer than an interval of health checks (2 s) with its jitter (20 %), and the three quick ones of HAProxy."""
GRACE = 10.0
"""Seconds for running calls after that: five times the longest."""


class LedgerServer:
    """The methods, writing to one file."""

    def __init__(self, server_id: str, ledger: Path) -> None:
        self._id = server_id
        self._file = os.open(ledger, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)

    async def append(self, request: chat_pb2.ChatRequest, _context: Context) -> chat_pb2.ChatResponse:
        """Append and AppendOnce: both write down every run; what differs is what the proxies are told of them."""
        self._write(START, request)
        await asyncio.sleep(WORK)
        self._write(FINISH, request)
        return chat_pb2.ChatResponse(success=True, server_id=self._id)

    async def tokens(
        self, request: chat_pb2.ChatRequest, _context: StreamContext
    ) -> AsyncIterator[chat_pb2.ReplyChunk]:
        """Tokens: the last message names the server."""
        self._write(START, request)
        for _ in range(TOKEN_COUNT - 1):
            yield chat_pb2.ReplyChunk(token="token ")
            await asyncio.sleep(TOKEN_DELAY)
        self._write(FINISH, request)
        yield chat_pb2.ReplyChunk(response=chat_pb2.ChatResponse(success=True, server_id=self._id))

    def handler(self) -> grpc.GenericRpcHandler:
        """For a server to register."""
        decode = chat_pb2.ChatRequest.FromString
        unary = grpc.unary_unary_rpc_method_handler(self.append, decode, chat_pb2.ChatResponse.SerializeToString)
        stream = grpc.unary_stream_rpc_method_handler(self.tokens, decode, chat_pb2.ReplyChunk.SerializeToString)
        methods = {"Append": unary, "AppendOnce": unary, "Tokens": stream}
        return grpc.method_handlers_generic_handler("bench.Ledger", methods)

    def _write(self, event: str, request: chat_pb2.ChatRequest) -> None:
        os.write(self._file, line(event, time.monotonic(), self._id, request.message_id, request.chat_id))


async def serve(server_id: str, port: int, ledger: Path) -> None:
    """Serve until SIGTERM, and through the drain."""
    # A second process on the port must fail: calls would be shared out unseen.
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    server.add_generic_rpc_handlers((LedgerServer(server_id, ledger).handler(),))
    health = HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(health, server)
    server.add_insecure_port(f"127.0.0.1:{port}")
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    await server.start()
    await health.set("", health_pb2.HealthCheckResponse.SERVING)
    print(f"{READY}127.0.0.1:{port}", flush=True)
    await stop.wait()
    await health.set("", health_pb2.HealthCheckResponse.NOT_SERVING)
    await asyncio.sleep(LAME_DUCK)
    await server.stop(GRACE)


if __name__ == "__main__":
    uvloop.run(serve(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3])))
