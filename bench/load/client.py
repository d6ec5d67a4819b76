"""One HTTP/2 client connection of the load generator: bytes in, bytes out, as few instructions as can be.

Not a library: it knows the one kind of call it makes. The header fields that all calls share are put into the HPACK
table with the first call and are one byte each from then on, as every gRPC client does it; those that differ from call
to call (`grpc-timeout`, a routing header) are literals without indexing (RFC 7541, 6.2.2). Of responses it reads the
frame headers, counts bytes and ends, and decodes no field: what it costs is the same for every proxy.
"""

from __future__ import annotations

import struct

from bench.errors import BenchError

Headers = tuple[tuple[bytes, bytes], ...]

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_FRAME = struct.Struct(">BHBBI")  # RFC 9113, 4.1: length in 24 bits, type, flags, stream
_DATA, _HEADERS, _RST, _SETTINGS, _PING, _GOAWAY, _WINDOW_UPDATE = 0, 1, 3, 4, 6, 7, 8
_ACK = END_STREAM = 0x1
_END_HEADERS = 0x4
_MAX_WINDOW = 2**31 - 1
_DEFAULT_WINDOW = 65_535
_ENTRIES_BEFORE_OURS = 61  # RFC 7541, 2.3.3: the static table


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    """A whole frame of less than 16 MiB."""
    length = len(payload)
    return _FRAME.pack(length >> 16, length & 0xFFFF, kind, flags, stream) + payload


def literal(name: bytes, value: bytes, *, index: bool = False) -> bytes:
    """A header field with its name spelled out, not Huffman-coded; `index`: to be remembered by the other side."""
    return (b"\x40" if index else b"\x00") + _string(name) + _string(value)


def _string(text: bytes) -> bytes:
    length = len(text)
    if length < 127:
        return bytes([length]) + text
    # RFC 7541, 5.1: 127 in the prefix, the rest in groups of seven bits.
    rest, octets = length - 127, bytearray([127])
    while rest > 127:
        octets.append(rest & 127 | 128)
        rest >>= 7
    return bytes([*octets, rest]) + text


class ClientConnection:
    """What was sent and received. `headers` are those that every call has, pseudo-headers first."""

    def __init__(self, headers: Headers) -> None:
        settings = struct.pack(">HIHI", 2, 0, 4, _MAX_WINDOW)  # no push; the largest stream window
        grow = struct.pack(">I", _MAX_WINDOW - _DEFAULT_WINDOW)
        self.out = PREFACE + frame(_SETTINGS, 0, 0, settings) + frame(_WINDOW_UPDATE, 0, 0, grow)
        """Bytes that wait to be sent, besides the calls."""
        self.running: dict[int, float] = {}
        """The calls under way: their stream and when they were due."""
        self.next_stream = 1
        self.latencies: list[float] = []
        """Of the calls that ended, in seconds."""
        self.data_bytes = 0
        """Of all responses."""
        self.resets = 0
        self._block = b"".join(literal(name, value, index=True) for name, value in headers)
        count = len(headers)
        self._short_block = bytes(0x80 | _ENTRIES_BEFORE_OURS + count - n for n in range(count))
        self._credit = _DEFAULT_WINDOW
        """What the other side lets us send on the connection; bodies are far below any stream's window."""
        self._tail = b""

    def call(self, extra: bytes, body: bytes, due: float) -> bytes:
        """The bytes of a call with `extra` encoded fields and a length-prefixed message, counted as begun at `due`."""
        stream = self.next_stream
        self.next_stream = stream + 2
        self.running[stream] = due
        fields = self._block + extra
        self._block = self._short_block
        size = len(body)
        self._credit -= size
        if self._credit < 0:
            raise BenchError("the proxy gives no credit for request bytes: its window is full")
        return (
            _FRAME.pack(0, len(fields), _HEADERS, _END_HEADERS, stream)
            + fields
            + _FRAME.pack(0, size, _DATA, END_STREAM, stream)
            + body
        )

    def received(self, data: bytes, now: float) -> int:
        """Take bytes from the proxy; how many calls ended with them. BenchError when it says GOAWAY."""
        if self._tail:
            data = self._tail + data
        position, end, ended = 0, len(data), 0
        running = self.running
        while end - position >= 9:
            high, low, kind, flags, stream = _FRAME.unpack_from(data, position)
            following = position + 9 + (high << 16 | low)
            if following > end:
                break
            if kind <= _HEADERS:
                if kind == _DATA:
                    self.data_bytes += low
                if flags & END_STREAM:
                    self.latencies.append(now - running.pop(stream))
                    ended += 1
            else:
                ended += self._control(kind, flags, stream, data[position + 9 : following])
            position = following
        self._tail = data[position:]
        return ended

    def _control(self, kind: int, flags: int, stream: int, payload: bytes) -> int:
        if kind == _WINDOW_UPDATE:
            if stream == 0:
                self._credit += int.from_bytes(payload)
        elif kind in (_SETTINGS, _PING):
            if not flags & _ACK:
                self.out += frame(kind, _ACK, 0, payload if kind == _PING else b"")
        elif kind == _GOAWAY:
            raise BenchError(f"the proxy said GOAWAY with error {int.from_bytes(payload[4:8])}")
        elif kind == _RST and self.running.pop(stream, None) is not None:
            self.resets += 1
            return 1
        return 0
