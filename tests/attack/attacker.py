"""A client on a raw socket that says what it likes, as fast as the socket takes it."""

from __future__ import annotations

import contextlib
import select
import socket
import time
from collections import Counter
from typing import TYPE_CHECKING, Self

from hpack import Decoder, Encoder

from tests.support.frames import (
    ACK,
    END_HEADERS,
    END_STREAM,
    GOAWAY,
    HEADERS,
    PING,
    PREFACE,
    RST_STREAM,
    SETTINGS,
    frame,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

Fields = list[tuple[bytes, bytes]]

SECONDS = 0.8
"""How long a flood lasts."""
MAX_BYTES = 8 << 20
"""How much a flood sends."""
BATCH = 100
"""Streams or frames in one write."""
PATIENCE = 20.0
"""Seconds to wait for what the proxy should say."""


class Attacker:
    """One connection, and what came back on it."""

    made = 0
    """Connections so far."""

    def __init__(self, port: int, *, settings: bytes = b"", hello: bool = True, acknowledges: bool = True) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port))
        Attacker.made += 1
        self.socket.setblocking(False)
        self.acknowledges = acknowledges
        """Answers the proxy's SETTINGS and PING."""
        self.reads = True
        self.encoder = Encoder()
        self.decoder = Decoder()
        self.sent = 0
        self.goaway: int | None = None
        """The code of the last one."""
        self.resets: Counter[int] = Counter()
        """By code."""
        self.statuses: Counter[bytes] = Counter()
        """grpc-status, or :status if that is not 200."""
        self.pongs = 0
        self.acks = 0
        self.text = b""
        """All of it, of a peer that does not speak HTTP/2 (kept short)."""
        self.closed = False
        self.next_stream = 1
        self._unread = b""
        if hello:
            self.send(PREFACE + frame(SETTINGS, 0, 0, settings))
            self.wait(lambda: self.acks)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    # Saying.

    def stream(self) -> int:
        """A fresh stream id."""
        self.next_stream += 2
        return self.next_stream - 2

    def headers(self, stream: int, fields: Iterable[tuple[bytes, bytes]], *, end: bool = False) -> bytes:
        """A HEADERS frame, encoded in order: it must be sent before the next one is made."""
        return frame(HEADERS, END_HEADERS | (END_STREAM if end else 0), stream, self.encoder.encode(list(fields)))

    def send(self, data: bytes, until: float | None = None) -> bool:
        """Send it all; False if the peer is gone, or it takes none of it for so long."""
        until = time.monotonic() + PATIENCE if until is None else until
        view = memoryview(data)
        while view and not self.closed:
            if time.monotonic() > until:
                return False
            readable, writable, _ = select.select([self.socket] if self.reads else [], [self.socket], [], 0.05)
            if readable:
                self._read()
            if writable and not self.closed:
                try:
                    count = self.socket.send(view)
                except BlockingIOError:
                    continue
                except OSError:
                    self._drain()
                    break
                self.sent += count
                view = view[count:]
        return not self.closed

    def flood(self, chunks: Iterator[bytes], seconds: float = SECONDS, limit: int = MAX_BYTES) -> None:
        """Send chunk after chunk until the peer ends it, or so much was sent, or so long."""
        until = time.monotonic() + seconds
        for chunk in chunks:
            if not self.send(chunk, until) or self.sent >= limit or time.monotonic() > until:
                return

    def streams(self, fields: Fields, after: Callable[[int], bytes], *, end: bool = False) -> Iterator[bytes]:
        """Chunks of streams with these headers, and what follows each."""
        while True:
            chunk = []
            for _ in range(BATCH):
                stream = self.stream()
                chunk.append(self.headers(stream, fields, end=end) + after(stream))
            yield b"".join(chunk)

    # Hearing.

    def wait(self, condition: Callable[[], object], seconds: float = PATIENCE) -> bool:
        """Read until the condition holds or the peer is gone. Whether it holds."""
        until = time.monotonic() + seconds
        while not condition() and not self.closed and (left := until - time.monotonic()) > 0:
            if select.select([self.socket], [], [], min(left, 0.1))[0]:
                self._read()
        return bool(condition())

    def ended(self, seconds: float = PATIENCE) -> bool:
        """Whether the peer closes."""
        return self.wait(lambda: self.closed, seconds)

    def alive(self) -> bool:
        """Whether the peer still answers a PING."""
        wanted = self.pongs + 1
        return self.send(frame(PING, 0, 0, b"alive???")) and self.wait(lambda: self.pongs >= wanted)

    # Verdicts: what the peer must do. Each returns how many bytes it was sent.

    def ends_with(self, *codes: int) -> int:
        """The peer closed, with one of these codes."""
        assert self.ended(), f"was not stopped; {vars(self)}"
        assert self.goaway in codes, f"GOAWAY {self.goaway}, not {codes}; {self.resets} {self.statuses}"
        return self.sent

    def goes_on(self) -> int:
        """The peer bears it."""
        assert self.alive(), f"the connection ended with GOAWAY {self.goaway}"
        return self.sent

    def _drain(self) -> None:
        """The peer has reset the connection; what it said before may still be there."""
        while not self.closed and select.select([self.socket], [], [], 0.5)[0]:
            self._read()
        self.closed = True

    def _read(self) -> None:
        try:
            data = self.socket.recv(1 << 18)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self.closed = True
            return
        self.text = (self.text + data)[:1000]
        self._unread += data
        position = 0
        while len(self._unread) - position >= 9:
            length = int.from_bytes(self._unread[position : position + 3], "big")
            if len(self._unread) - position < 9 + length:
                break
            kind, flags = self._unread[position + 3 : position + 5]
            self._frame(kind, flags, self._unread[position + 9 : position + 9 + length])
            position += 9 + length
        self._unread = self._unread[position:]

    def _frame(self, kind: int, flags: int, payload: bytes) -> None:
        if kind == HEADERS:
            for name, value in self.decoder.decode(payload, raw=True):
                if name == b"grpc-status" or (name == b":status" and value != b"200"):
                    self.statuses[bytes(value)] += 1
        elif kind == RST_STREAM:
            self.resets[int.from_bytes(payload, "big")] += 1
        elif kind == GOAWAY:
            self.goaway = int.from_bytes(payload[4:8], "big")
        elif kind in (SETTINGS, PING):
            self._acknowledge(kind, flags, payload)

    def _acknowledge(self, kind: int, flags: int, payload: bytes) -> None:
        if flags & ACK:
            self.acks += kind == SETTINGS
            self.pongs += kind == PING
        elif self.acknowledges:
            with contextlib.suppress(OSError):
                self.socket.send(frame(kind, ACK, 0, payload if kind == PING else b""))
