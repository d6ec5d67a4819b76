"""Real grpc.aio servers in the test's process, for any service: they echo bytes and note what they received."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio

from tests.support.polling import eventually

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
    from pathlib import Path

    Context = grpc.aio.ServicerContext[bytes, bytes]
    Script = Callable[["ReceivedCall", Context], Awaitable[None]]
    """Serves one call with the context's `read` and `write`; what it raises or aborts with ends the call."""

CLIENT_OPTIONS: tuple[tuple[str, Any], ...] = (
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_http_proxy", 0),
    ("grpc.enable_retries", 0),  # so that what the proxy does is what the test sees
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
)
SERVER_OPTIONS: dict[str, int] = {
    "grpc.so_reuseport": 0,
    "grpc.max_send_message_length": -1,
    "grpc.max_receive_message_length": -1,
    "grpc.max_concurrent_streams": 100_000,
}

GATED = "/any.Service/Gated"
"""See `Gate`."""
SERVER_ID = "x-server"
"""Initial metadata in which every server says who it is."""


class ReceivedCall:
    """What a server knows of one call."""

    def __init__(self, method: str, metadata: tuple[tuple[str, str | bytes], ...], remaining: float | None) -> None:
        self.method = method
        self.metadata = metadata
        self.time_remaining = remaining
        """Seconds until the deadline when the call arrived; None without one."""
        self.requests: list[bytes] = []
        """The messages that the default services have read."""
        self.half_closed = False
        """The default services have seen the end of the client's messages."""
        self.cancelled = False
        self.finished = asyncio.Event()
        """The handler has ended, in whatever way."""

    def values(self, name: str) -> list[str | bytes]:
        """The metadata of that name, in order."""
        return [value for key, value in self.metadata if key == name]


class EchoServer(grpc.GenericRpcHandler):
    """A server for every method there is. Start it with `start`; it can be started again after `stop`, on its port.

    The end of a method's name says what it does: `Unary` returns the request, `ServerStream` each 4 KiB of it,
    `ClientStream` the requests joined, anything else echoes message by message. `scripts` (by path) come first.
    """

    def __init__(
        self,
        server_id: str,
        *,
        credentials: grpc.ServerCredentials | None = None,
        socket_path: Path | None = None,
        **options: int,
    ) -> None:
        """`credentials`: speak TLS. `socket_path`: listen on a unix socket there."""
        self.id = server_id
        self.credentials = credentials
        self._socket_path = socket_path
        self.port = 0
        self.calls: list[ReceivedCall] = []
        """Every call it was given, oldest first."""
        self.active = 0
        self.most_active = 0
        self.scripts: dict[str, Script] = {}
        self._options = tuple({**SERVER_OPTIONS, **{f"grpc.{name}": value for name, value in options.items()}}.items())
        self._server: grpc.aio.Server | None = None

    @property
    def address(self) -> str:
        """Where it listens, or did."""
        return f"unix:{self._socket_path}" if self._socket_path is not None else f"127.0.0.1:{self.port}"

    async def start(self) -> None:
        """Listen: on a free port the first time, on the same one later."""
        self._server = grpc.aio.server(options=self._options)
        self._server.add_generic_rpc_handlers((self,))
        if self.credentials is None:
            self.port = self._server.add_insecure_port(self.address)
        else:
            self.port = self._server.add_secure_port(self.address, self.credentials)
        await self._server.start()

    async def stop(self, grace: float | None = None) -> None:
        """End it, by default with all its calls at once. Nothing happens if it does not run."""
        server, self._server = self._server, None
        if server is not None:
            await server.stop(grace)

    def chats(self, name: str = "x-chat-id") -> set[str | bytes]:
        """The keys in metadata that it has seen."""
        return {value for call in self.calls for value in call.values(name)}

    # grpc.GenericRpcHandler

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[bytes, bytes]:
        """The handler of a call that has just arrived."""
        method = handler_call_details.method
        if (script := self.scripts.get(method)) is not None:
            return grpc.stream_stream_rpc_method_handler(self._noted(method, script))
        if method.endswith("ServerStream"):
            return grpc.unary_stream_rpc_method_handler(self._noted_unary(method, _chunks))
        if method.endswith("ClientStream"):
            return grpc.stream_unary_rpc_method_handler(self._joined(method))
        if method.endswith("Unary"):
            return grpc.unary_unary_rpc_method_handler(self._unary(method))
        return grpc.stream_stream_rpc_method_handler(self._noted(method, _echo))

    def _unary(self, method: str) -> Any:
        async def serve(request: bytes, context: Context) -> bytes:
            async with self._call(method, context) as call:
                call.requests.append(request)
                return request
            raise AssertionError

        return serve

    def _noted_unary(self, method: str, script: Script) -> Any:
        async def serve(request: bytes, context: Context) -> None:
            async with self._call(method, context) as call:
                call.requests.append(request)
                await script(call, context)

        return serve

    def _joined(self, method: str) -> Any:
        async def serve(_requests: object, context: Context) -> bytes:
            async with self._call(method, context) as call:
                async for request in messages(context):
                    call.requests.append(request)
                call.half_closed = True
                return b"".join(call.requests)
            raise AssertionError

        return serve

    def _noted(self, method: str, script: Script) -> Any:
        async def serve(_requests: object, context: Context) -> None:
            async with self._call(method, context) as call:
                await script(call, context)

        return serve

    @asynccontextmanager
    async def _call(self, method: str, context: Context) -> AsyncIterator[ReceivedCall]:
        metadata = tuple((str(key), value) for key, value in context.invocation_metadata() or ())
        call = ReceivedCall(method, metadata, context.time_remaining())
        self.calls.append(call)
        self.active += 1
        self.most_active = max(self.most_active, self.active)
        try:
            await context.send_initial_metadata(((SERVER_ID, self.id),))
            yield call
        except asyncio.CancelledError:
            call.cancelled = True
            raise
        except grpc.aio.InternalError as error:
            # How a write says that the call was cancelled while it wrote.
            call.cancelled = True
            raise asyncio.CancelledError from error
        finally:
            self.active -= 1
            call.finished.set()


class Gate:
    """Servers whose calls of `GATED` get their first message back only when the gate is open: so calls are in flight
    together, and not by chance.
    """

    def __init__(self, servers: Sequence[EchoServer]) -> None:
        self.servers = servers
        self._open = asyncio.Event()
        for server in servers:
            server.scripts[GATED] = self._serve

    async def inside(self, calls: int) -> None:
        """Wait for so many calls at the servers."""
        await eventually(lambda: sum(server.active for server in self.servers) >= calls, f"{calls} calls inside")

    def open(self) -> None:
        """Let everything through, from now on."""
        self._open.set()

    async def open_at(self, calls: int) -> None:
        """Let everything through once so many calls are inside."""
        await self.inside(calls)
        self.open()

    async def _serve(self, call: ReceivedCall, context: Context) -> None:
        message = await context.read()
        assert isinstance(message, bytes)
        call.requests.append(message)
        await self._open.wait()
        await context.write(message)


async def messages(context: Context) -> AsyncIterator[bytes]:
    """What the client sends, to the end."""
    while True:
        message: Any = await context.read()
        if message is grpc.aio.EOF:
            return
        yield message


async def _echo(call: ReceivedCall, context: Context) -> None:
    async for message in messages(context):
        call.requests.append(message)
        await context.write(message)
    call.half_closed = True


async def _chunks(call: ReceivedCall, context: Context) -> None:
    for start in range(0, len(call.requests[0]), 4096):
        await context.write(call.requests[0][start : start + 4096])


@asynccontextmanager
async def echo_servers(
    *ids: str, credentials: grpc.ServerCredentials | None = None, **options: int
) -> AsyncIterator[tuple[EchoServer, ...]]:
    """Servers of these names, listening. `options`: of gRPC's core, without the `grpc.` in front."""
    servers = tuple(EchoServer(id_, credentials=credentials, **options) for id_ in ids)
    try:
        for server in servers:
            await server.start()
        yield servers
    finally:
        for server in servers:
            await server.stop()


@asynccontextmanager
async def channel(address: str, *options: tuple[str, Any], **arguments: Any) -> AsyncIterator[grpc.aio.Channel]:
    """A client's channel with a connection of its own. `options` replace those of `CLIENT_OPTIONS`: of an option that
    is given twice, grpcio takes the first.
    """
    merged = tuple({**dict(CLIENT_OPTIONS), **dict(options)}.items())
    async with grpc.aio.insecure_channel(address, options=merged, **arguments) as opened:
        yield opened


async def server_of(call: grpc.aio.Call) -> str:
    """Who answers this call, by its initial metadata."""
    found = dict(await call.initial_metadata())[SERVER_ID]
    assert isinstance(found, str)
    return found
