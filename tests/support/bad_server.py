"""A server that misbehaves by script: any frame, delay, reset, GOAWAY, silence or close, at any point of a call.

It speaks HTTP/2 by frames (hyperframe) and HPACK alone, so nothing keeps it from breaking rules. What a script does not
do is done well: SETTINGS and PINGs are acknowledged, credit is given.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, cast

import hpack
from hyperframe.frame import (
    DataFrame,
    Frame,
    GoAwayFrame,
    HeadersFrame,
    PingFrame,
    RstStreamFrame,
    SettingsFrame,
    WindowUpdateFrame,
)

from tests.support.frames import PREFACE
from tests.support.messages import framed

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine

    Script = Callable[["BadCall"], Coroutine[object, object, None]]
    """What a server does with one call."""

Headers = list[tuple[bytes, bytes]]
RESPONSE: Headers = [(b":status", b"200"), (b"content-type", b"application/grpc")]
OK: Headers = [(b"grpc-status", b"0")]
HIGHEST = 2**31 - 1

REFUSED_STREAM = 7


@dataclass(eq=False, slots=True)
class BadCall:
    """One request as the server got it, and the means to answer it badly. Scripts get one each."""

    connection: BadConnection
    stream: int
    headers: dict[bytes, bytes] = field(default_factory=dict)
    body: bytearray = field(default_factory=bytearray)
    complete: asyncio.Event = field(default_factory=asyncio.Event)
    """The whole request is here."""
    over: asyncio.Event = field(default_factory=asyncio.Event)
    """The proxy reset it, or the connection is gone."""
    reset_by_peer: int | None = None

    @property
    def server(self) -> BadServer:
        """Whose it is."""
        return self.connection.server

    @property
    def message(self) -> bytes:
        """The first message, without its prefix."""
        return bytes(self.body[5:])

    def header_frame(self, headers: Headers, *, end: bool = False) -> HeadersFrame:
        """HEADERS, not sent. Its fields enter the table of the HPACK encoder, so send it next."""
        flags = ["END_HEADERS", *(["END_STREAM"] if end else [])]
        return HeadersFrame(self.stream, self.connection.encoder.encode(headers), flags=flags)

    def send_headers(self, headers: Headers | None = None, *, end: bool = False) -> None:
        """The response's beginning, or its trailers."""
        self.connection.send(self.header_frame(RESPONSE if headers is None else headers, end=end))

    def send_data(self, data: bytes, *, end: bool = False) -> None:
        """DATA, whatever the window says."""
        self.connection.send(DataFrame(self.stream, data, flags=["END_STREAM"] if end else []))

    def answer(self, message: bytes | None = None, trailers: Headers = OK) -> None:
        """A whole good response, by default with the request's own message."""
        self.send_headers()
        self.send_data(bytes(self.body) if message is None else framed(message))
        self.send_headers(trailers, end=True)

    def reset(self, code: int) -> None:
        """RST_STREAM."""
        self.connection.send(RstStreamFrame(self.stream, code))


class BadConnection(asyncio.Protocol):
    """One connection from the proxy."""

    def __init__(self, server: BadServer) -> None:
        self.server = server
        self.encoder = hpack.Encoder()
        self.decoder = hpack.Decoder()
        self.calls: dict[int, BadCall] = {}
        """All it ever had, by stream."""
        self.closed = asyncio.Event()
        self.highest = 0
        """The newest stream that was read."""
        self._transport: asyncio.Transport | None = None
        self._unread = b""
        self._preface = len(PREFACE)

    @property
    def transport(self) -> asyncio.Transport:
        """The socket."""
        assert self._transport is not None
        return self._transport

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Say SETTINGS, unless the server is mute."""
        self._transport = cast("asyncio.Transport", transport)
        self.server.connections.append(self)
        if not self.server.mute:
            self.send(SettingsFrame(0, settings=self.server.settings))
            self.send(WindowUpdateFrame(0, window_increment=2**30))

    def data_received(self, data: bytes) -> None:
        """Read frames."""
        if self.server.mute:
            return
        skipped = min(self._preface, len(data))
        self._preface -= skipped
        self._unread += data[skipped:]
        while len(self._unread) >= 9:
            frame, length = Frame.parse_frame_header(memoryview(self._unread[:9]))
            if len(self._unread) < 9 + length:
                return
            frame.parse_body(memoryview(self._unread[9 : 9 + length]))
            self._unread = self._unread[9 + length :]
            self._take(frame)

    def connection_lost(self, exc: Exception | None) -> None:
        """Nothing more will come."""
        self.closed.set()
        for call in self.calls.values():
            call.over.set()

    def _take(self, frame: Frame) -> None:
        if isinstance(frame, SettingsFrame) and "ACK" not in frame.flags:
            self.send(SettingsFrame(0, flags=["ACK"]))
        elif isinstance(frame, PingFrame) and "ACK" not in frame.flags:
            self.send(PingFrame(0, frame.opaque_data, flags=["ACK"]))
        elif isinstance(frame, HeadersFrame):
            assert "END_HEADERS" in frame.flags, "the proxy's headers fit one frame"
            self.highest = frame.stream_id
            call = self.calls[frame.stream_id] = BadCall(self, frame.stream_id)
            call.headers = dict(cast("Headers", self.decoder.decode(frame.data, raw=True)))
            self._ended(frame, call)
            self.server.begin(call)
        elif isinstance(frame, DataFrame):
            call = self.calls[frame.stream_id]
            call.body += frame.data
            if frame.flow_controlled_length and "END_STREAM" not in frame.flags:
                self.send(WindowUpdateFrame(frame.stream_id, window_increment=frame.flow_controlled_length))
            self._ended(frame, call)
        elif isinstance(frame, RstStreamFrame):
            self.calls[frame.stream_id].reset_by_peer = frame.error_code
            self.calls[frame.stream_id].over.set()

    def _ended(self, frame: Frame, call: BadCall) -> None:
        if "END_STREAM" in frame.flags:
            call.complete.set()

    # For scripts.

    def send(self, *frames: Frame | bytes) -> None:
        """Frames, or any bytes, in one write. Nothing happens if the connection is gone."""
        if self._transport is not None and not self._transport.is_closing():
            data = b"".join(frame if isinstance(frame, bytes) else frame.serialize() for frame in frames)
            self._transport.write(data)

    def goaway(self, last_stream: int, code: int = 0) -> None:
        """GOAWAY, and no more."""
        self.send(GoAwayFrame(0, last_stream_id=last_stream, error_code=code))

    def finish(self) -> None:
        """FIN after what was written, and read on, as nginx does ("lingering close"): close with unread bytes would be
        a RST, which takes along what the proxy has not read yet.
        """
        if not self.transport.is_closing() and self.transport.can_write_eof():
            self.transport.write_eof()

    def close(self) -> None:
        """FIN after what was written, or RST if there are unread bytes."""
        self.transport.close()

    def abort(self) -> None:
        """RST of TCP, at once."""
        sock = self.transport.get_extra_info("socket")
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.transport.abort()


class BadServer:
    """The scripted server. Every call is given to `script` when its headers are here."""

    def __init__(self, server_id: str, script: Script, *, mute: bool) -> None:
        self.id = server_id
        self.script = script
        self.mute = mute
        """It accepts connections and says nothing."""
        self.settings: dict[int, int] = {SettingsFrame.INITIAL_WINDOW_SIZE: 2**24}
        self.connections: list[BadConnection] = []
        """All that were ever accepted, oldest first."""
        self.address = ""
        self._listener: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self.errors: list[BaseException] = []
        """What scripts raised."""

    @property
    def calls(self) -> list[BadCall]:
        """All calls it was ever given, by connection."""
        return [call for connection in self.connections for call in connection.calls.values()]

    def begin(self, call: BadCall) -> None:
        """Run the script for a call that has just arrived."""
        task = asyncio.get_running_loop().create_task(self.script(call), name=f"{self.id} {call.stream}")
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self.errors.append(error)

    async def listen(self) -> None:
        """On a free port the first time, on the same one later."""
        host, _, port = (self.address or "127.0.0.1:0").rpartition(":")
        loop = asyncio.get_running_loop()
        self._listener = await loop.create_server(lambda: BadConnection(self), host, int(port))
        self.address = "{}:{}".format(*self._listener.sockets[0].getsockname()[:2])

    def refuse(self) -> None:
        """Close the port; connections stay."""
        if self._listener is not None:
            self._listener.close()
            self._listener = None

    async def end(self) -> None:
        """Everything."""
        self.refuse()
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for connection in self.connections:
            connection.transport.abort()
            await connection.closed.wait()


async def echo(call: BadCall) -> None:
    """The script of a good server."""
    await call.complete.wait()
    call.answer()


async def silence(call: BadCall) -> None:
    """The script of a server that never answers."""
    await call.over.wait()


@asynccontextmanager
async def bad_server(server_id: str, script: Script = echo, *, mute: bool = False) -> AsyncIterator[BadServer]:
    """A server, listening. A script that raised fails the test at the end."""
    server = BadServer(server_id, script, mute=mute)
    await server.listen()
    try:
        yield server
    finally:
        await server.end()
    assert not server.errors, server.errors
