"""Peers that say over HTTP/2 what no grpcio would: client and server on python-hyper's h2, not on our engine."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, cast

import h2.config
import h2.connection
import h2.events
import h2.settings

from tests.support.frames import PREFACE
from tests.support.polling import PATIENCE

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

Headers = list[tuple[bytes, bytes]]


RESPONSE: Headers = [(b":status", b"200"), (b"content-type", b"application/grpc")]
OK: Headers = [(b"grpc-status", b"0")]


class RawStream:
    """What came on one stream."""

    def __init__(self) -> None:
        self.headers: dict[bytes, bytes] = {}
        self.trailers: dict[bytes, bytes] = {}
        self.data = bytearray()
        self.ended = False
        """END_STREAM has come."""
        self.reset: int | None = None
        """The code of RST_STREAM, if there was one."""

    @property
    def status(self) -> bytes | None:
        """`grpc-status`, wherever it stood."""
        return self.trailers.get(b"grpc-status", self.headers.get(b"grpc-status"))

    @property
    def message(self) -> str:
        """`grpc-message`, not decoded."""
        return self.trailers.get(b"grpc-message", self.headers.get(b"grpc-message", b"")).decode("ascii")


class RawConnection(asyncio.Protocol):
    """One end of an HTTP/2 connection that keeps what it gets. Its h2 checks nothing that we send."""

    def __init__(
        self,
        *,
        client: bool,
        settings: dict[int, int] | None = None,
        acknowledges: bool = True,
        on_event: Callable[[RawConnection, h2.events.Event], None] | None = None,
    ) -> None:
        """`acknowledges`: gives credit for data at once. `on_event` sees each event after it was noted."""
        self.h2 = h2.connection.H2Connection(
            h2.config.H2Configuration(
                client_side=client,
                header_encoding=None,
                validate_outbound_headers=False,
                normalize_outbound_headers=False,
            )
        )
        if settings:
            codes = {h2.settings.SettingCodes(code): value for code, value in settings.items()}
            self.h2.local_settings = h2.settings.Settings(client=client, initial_values=codes)
        self.streams: defaultdict[int, RawStream] = defaultdict(RawStream)
        self.acknowledges = acknowledges
        self.goaways: list[tuple[int, int | None]] = []
        """(error code, last stream id) of every GOAWAY."""
        self.pongs = 0
        self.pinged_before_goaway = False
        """The peer's first PING came before its first GOAWAY."""
        self.closed = asyncio.Event()
        self.on_made: Callable[[], None] = lambda: None
        """Called when the connection stands."""
        self._on_event = on_event
        self._changed = asyncio.Event()
        self._transport: asyncio.Transport | None = None
        self._unread = b""
        self._preface_expected = not client

    @property
    def transport(self) -> asyncio.Transport:
        """The socket."""
        assert self._transport is not None
        return self._transport

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Say the preface."""
        self._transport = cast("asyncio.Transport", transport)
        self.h2.initiate_connection()
        self.flush()
        self.on_made()

    def data_received(self, data: bytes) -> None:
        """Note what comes."""
        self._unread += data
        while (length := self._next_length()) <= len(self._unread):
            frame, self._unread = self._unread[:length], self._unread[length:]
            state = self.h2.state_machine.state
            for event in self.h2.receive_data(frame):
                self._note(event)
                if isinstance(event, h2.events.ConnectionTerminated):
                    # h2 hears nothing after a GOAWAY, but what runs goes on (RFC 9113, 6.8).
                    self.h2.state_machine.state = state
                if self._on_event is not None:
                    self._on_event(self, event)
            self.flush()  # at once: a GOAWAY makes h2 drop what it has not sent yet
        self._changed.set()

    def _next_length(self) -> int:
        """Bytes of what comes next: the preface or a frame."""
        if self._preface_expected:
            if len(self._unread) < len(PREFACE):
                return len(PREFACE)
            self._preface_expected = False
            return len(PREFACE)
        return 9 + int.from_bytes(self._unread[:3], "big") if len(self._unread) >= 9 else 9

    def connection_lost(self, exc: Exception | None) -> None:
        """Nothing more will come."""
        self.closed.set()
        self._changed.set()

    def _note(self, event: h2.events.Event) -> None:
        if isinstance(event, h2.events.RequestReceived | h2.events.ResponseReceived):
            self.streams[event.stream_id].headers = _dict(event.headers)
        elif isinstance(event, h2.events.TrailersReceived):
            self.streams[event.stream_id].trailers = _dict(event.headers)
        elif isinstance(event, h2.events.DataReceived):
            self.streams[event.stream_id].data += event.data
            if self.acknowledges and event.flow_controlled_length:
                self.h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
        elif isinstance(event, h2.events.StreamEnded):
            self.streams[event.stream_id].ended = True
        elif isinstance(event, h2.events.StreamReset):
            self.streams[event.stream_id].reset = event.error_code
        elif isinstance(event, h2.events.ConnectionTerminated):
            self.goaways.append((int(event.error_code or 0), event.last_stream_id))
        elif isinstance(event, h2.events.PingReceived):
            self.pinged_before_goaway |= not self.goaways
        elif isinstance(event, h2.events.PingAckReceived):
            self.pongs += 1

    # For tests.

    def flush(self) -> None:
        """Send what h2 has to say."""
        data = self.h2.data_to_send()
        if data and self._transport is not None and not self._transport.is_closing():
            self._transport.write(data)

    def request(
        self, path: str | None, *extra: tuple[bytes, bytes], end: bool = False, **replaced: bytes | None
    ) -> int:
        """Open a stream with the headers of a gRPC call; returns its id. `replaced`: pseudo-headers, content_type and
        te by name, `extra` come after them. What is None is left out.
        """
        fields: dict[str, bytes | None] = {
            "method": b"POST",
            "scheme": b"http",
            "path": None if path is None else path.encode(),
            "authority": b"test",
            "content_type": b"application/grpc",
            "te": b"trailers",
            **replaced,
        }
        headers = [
            ((b"" if name in ("content_type", "te") else b":") + name.replace("_", "-").encode(), value)
            for name, value in fields.items()
            if value is not None
        ]
        stream = self.h2.get_next_available_stream_id()
        self.h2.send_headers(stream, [*headers, *extra], end_stream=end)
        self.flush()
        return stream

    def send(self, stream: int, data: bytes, *, end: bool = False) -> None:
        """Send data, which must fit the windows, in as many frames as it takes."""
        for start in range(0, max(len(data), 1), 16_384):
            piece = data[start : start + 16_384]
            self.h2.send_data(stream, piece, end_stream=end and start + 16_384 >= len(data))
        self.flush()

    def answer(self, stream: int, data: bytes, trailers: Headers = OK) -> None:
        """A server's whole response."""
        self.h2.send_headers(stream, RESPONSE)
        self.send(stream, data)
        self.h2.send_headers(stream, trailers, end_stream=True)
        self.flush()

    def reset(self, stream: int, code: int) -> None:
        """Send RST_STREAM."""
        self.h2.reset_stream(stream, code)
        self.flush()

    def goaway(self, last_stream: int, code: int = 0) -> None:
        """Send GOAWAY, and serve the streams up to that one on."""
        state = self.h2.state_machine.state
        self.h2.close_connection(code, last_stream_id=last_stream)
        self.h2.state_machine.state = state
        self.flush()

    async def until(self, condition: Callable[[], object], what: str = "what the peer should do") -> None:
        """Wait until something that came makes the condition true. Fails the test if it does not."""
        try:
            async with asyncio.timeout(PATIENCE):
                while not condition():
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            raise AssertionError(f"{what} did not happen; so far: {self.describe()}") from None

    async def over(self, stream: int) -> RawStream:
        """The stream, once it has ended or was reset."""
        state = self.streams[stream]
        await self.until(lambda: state.ended or state.reset is not None or self.closed.is_set(), "the stream's end")
        return state

    async def pinged(self) -> None:
        """Wait until the peer has answered a PING, and so has dealt with all that was sent before."""
        wanted = self.pongs + 1
        self.h2.ping(b"are-you-")
        self.flush()
        await self.until(lambda: self.pongs >= wanted, "the answer to a PING")

    def describe(self) -> str:
        """What came, for people."""
        streams = {sid: {**vars(stream), "data": len(stream.data)} for sid, stream in self.streams.items()}
        return f"closed={self.closed.is_set()} goaways={self.goaways} streams={streams}"[:2000]


def _dict(headers: object) -> dict[bytes, bytes]:
    return dict(cast("Headers", headers))


@asynccontextmanager
async def raw_client(
    port: int, *, settings: dict[int, int] | None = None, acknowledges: bool = True
) -> AsyncIterator[RawConnection]:
    """A client, connected."""
    loop = asyncio.get_running_loop()
    _, client = await loop.create_connection(
        lambda: RawConnection(client=True, settings=settings, acknowledges=acknowledges), "127.0.0.1", port
    )
    try:
        yield client
    finally:
        client.transport.abort()
        await client.closed.wait()


class RawServer:
    """A server whose every answer is up to the test."""

    def __init__(self, server_id: str) -> None:
        self.id = server_id
        self.port = 0
        self.connections: list[RawConnection] = []
        """All that were ever accepted, oldest first."""

    @property
    def address(self) -> str:
        """Where it listens."""
        return f"127.0.0.1:{self.port}"

    @property
    def requests(self) -> int:
        """Streams opened to it so far, on all connections."""
        return sum(len(connection.streams) for connection in self.connections)


@asynccontextmanager
async def raw_server(
    server_id: str,
    on_event: Callable[[RawConnection, h2.events.Event], None] | None = None,
    *,
    speaks: bool = True,
    settings: dict[int, int] | None = None,
) -> AsyncIterator[RawServer]:
    """A server, listening. Without `speaks` it accepts and says nothing."""
    server = RawServer(server_id)

    def accept() -> RawConnection:
        connection = (RawConnection if speaks else _Mute)(client=False, on_event=on_event, settings=settings)
        connection.on_made = lambda: server.connections.append(connection)
        return connection

    listener = await asyncio.get_running_loop().create_server(accept, "127.0.0.1", 0)
    server.port = listener.sockets[0].getsockname()[1]
    try:
        yield server
    finally:
        listener.close()
        for connection in server.connections:
            connection.transport.abort()
            await connection.closed.wait()


class _Mute(RawConnection):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self.on_made()

    def data_received(self, data: bytes) -> None:
        pass


async def talk(port: int, data: bytes) -> bytes:
    """Send raw bytes and return all that comes until the peer closes. Fails the test if it does not close."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(data)
        async with asyncio.timeout(PATIENCE):
            try:
                return await reader.read()
            except ConnectionResetError:
                return b""
    finally:
        writer.transport.abort()
