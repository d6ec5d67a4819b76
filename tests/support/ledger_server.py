"""A stateful gRPC server that keeps a ledger of what it ran: `python -m tests.support.ledger_server --id A ...`.

Prints `ready ADDRESS` once it listens. SIGTERM drains it as a good server does: NOT_SERVING to its health checks, a
wait for that news to travel, then no new calls, and the running ones finish within the grace.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from tests.support.ledger import BIDI, KEYED, ONCE, STREAM, LedgerWriter, Request

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    Context = grpc.aio.ServicerContext[bytes, bytes]

OPTIONS = (
    ("grpc.so_reuseport", 0),
    ("grpc.max_concurrent_streams", 100_000),
)


class LedgerService(grpc.GenericRpcHandler):
    """The four methods of `tests.support.ledger`. Each response names the server."""

    def __init__(self, server_id: str, ledger: LedgerWriter, delay: float, poison: str) -> None:
        self.active = 0
        self.idle = asyncio.Event()
        self.idle.set()
        self._id = server_id.encode()
        self._ledger = ledger
        self._delay = delay
        self._poison = poison

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[Any, Any] | None:
        """The handler of a call that has just arrived."""
        match handler_call_details.method:
            case "/ledger.Ledger/Once":
                return grpc.unary_unary_rpc_method_handler(self._once)
            case "/ledger.Ledger/Keyed":
                return grpc.unary_unary_rpc_method_handler(self._keyed)
            case "/ledger.Ledger/Stream":
                return grpc.unary_stream_rpc_method_handler(self._stream)
            case "/ledger.Ledger/Bidi":
                return grpc.stream_stream_rpc_method_handler(self._bidi)
        return None

    async def _once(self, message: bytes, _context: Context) -> bytes:
        request = Request.decode(message)
        with _Running(self, request, ONCE):
            await self._work(request)
        return self._id

    async def _keyed(self, message: bytes, context: Context) -> bytes:
        request = Request.decode(message)
        metadata = {str(key): str(value) for key, value in context.invocation_metadata() or ()}
        self._begun()
        try:
            self._ledger.write(request.call, "arrive", KEYED)
            await self._work(request)
            if self._ledger.apply(metadata["x-request-id"], request.call):
                self._ledger.write(request.call, "start", KEYED)
                self._ledger.write(request.call, "finish", KEYED)
            else:
                self._ledger.write(request.call, "duplicate", KEYED)
        finally:
            self._ended()
        return self._id

    async def _stream(self, message: bytes, _context: Context) -> AsyncIterator[bytes]:
        request = Request.decode(message)
        with _Running(self, request, STREAM):
            for _ in range(request.responses):
                await self._work(request)
                yield self._id

    async def _bidi(self, messages: AsyncIterator[bytes], _context: Context) -> AsyncIterator[bytes]:
        running: _Running | None = None
        try:
            async for message in messages:
                request = Request.decode(message)
                if running is None:
                    running = _Running(self, request, BIDI)
                    running.__enter__()
                await self._work(request)
                yield self._id
        except BaseException as error:
            if running is not None:
                running.__exit__(type(error), error, None)
            raise
        if running is not None:
            running.__exit__(None, None, None)

    async def _work(self, request: Request) -> None:
        if self._poison and request.chat == self._poison:
            os.kill(os.getpid(), signal.SIGKILL)
        delay = self._delay + request.delay_ms / 1000
        if delay:
            await asyncio.sleep(delay)  # this is the work

    def _begun(self) -> None:
        self.active += 1
        self.idle.clear()

    def _ended(self) -> None:
        self.active -= 1
        if not self.active:
            self.idle.set()


class _Running:
    """One execution of a call: written down at both ends."""

    def __init__(self, service: LedgerService, request: Request, method: str) -> None:
        self._service = service
        self._request = request
        self._method = method

    def __enter__(self) -> None:
        self._service._begun()
        self._service._ledger.write(self._request.call, "start", self._method)

    def __exit__(self, kind: object, _error: object, _traceback: object) -> None:
        self._service._ledger.write(self._request.call, "finish" if kind is None else "cancel", self._method)
        self._service._ended()


async def _serve(options: argparse.Namespace) -> None:
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    ledger = LedgerWriter(options.ledger, options.id)
    service = LedgerService(options.id, ledger, options.delay, options.poison)
    servicer = health.aio.HealthServicer()
    server = grpc.aio.server(options=OPTIONS)
    server.add_generic_rpc_handlers((service,))
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    server.add_insecure_port(options.address)
    await server.start()
    await servicer.set("", health_pb2.HealthCheckResponse.SERVING)
    print(f"ready {options.address}", flush=True)
    await stop.wait()
    await servicer.enter_graceful_shutdown()
    await asyncio.sleep(options.notice)  # nothing tells a server that every client has heard the news
    stopping = asyncio.ensure_future(server.stop(options.grace))
    await asyncio.wait((stopping, asyncio.ensure_future(service.idle.wait())), return_when=asyncio.FIRST_COMPLETED)
    await asyncio.wait((stopping,), timeout=LINGER)
    await server.stop(None)  # streams of Health.Watch would hold it up to the end of the grace
    await stopping
    ledger.close()


LINGER = 0.25
"""Seconds that the last responses get to leave."""


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--id", required=True)
    parser.add_argument("--address", required=True)
    parser.add_argument("--ledger", type=Path, required=True, help="directory that all servers share")
    parser.add_argument("--delay", type=float, default=0.0, help="seconds of work for each response")
    parser.add_argument("--notice", type=float, default=0.5, help="seconds from NOT_SERVING to the end of new calls")
    parser.add_argument("--grace", type=float, default=10.0, help="seconds that running calls get at SIGTERM")
    parser.add_argument("--poison", default="", help="the chat whose calls kill the process")
    asyncio.run(_serve(parser.parse_args()))


if __name__ == "__main__":
    main()
