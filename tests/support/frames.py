"""HTTP/2 frames made by hand (RFC 9113, 4.1 and 6), right or wrong."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = range(10)
END_STREAM, ACK, END_HEADERS, PADDED = 1, 1, 4, 8

NO_ERROR, PROTOCOL_ERROR, INTERNAL_ERROR, FLOW_CONTROL_ERROR, SETTINGS_TIMEOUT, STREAM_CLOSED = range(6)
FRAME_SIZE_ERROR, REFUSED_STREAM, CANCEL, COMPRESSION_ERROR, CONNECT_ERROR, ENHANCE_YOUR_CALM = range(6, 12)
"""Codes of GOAWAY and RST_STREAM (RFC 9113, 7)."""


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """Any frame."""
    return len(payload).to_bytes(3, "big") + bytes((kind, flags)) + stream.to_bytes(4, "big") + payload


def frames(data: bytes) -> Iterator[tuple[int, int, int, bytes]]:
    """Type, flags, stream and payload of each whole frame (RFC 9113, 4.1); a client's preface is skipped."""
    at = len(PREFACE) if data.startswith(PREFACE) else 0
    while (end := at + 9 + int.from_bytes(data[at : at + 3], "big")) <= len(data):
        stream = int.from_bytes(data[at + 5 : at + 9], "big") & 0x7FFFFFFF
        yield data[at + 3], data[at + 4], stream, data[at + 9 : end]
        at = end


EMPTY_SETTINGS = frame(SETTINGS, 0, 0)
HELLO = PREFACE + EMPTY_SETTINGS + frame(SETTINGS, ACK, 0)
"""What a client says first, and its answer to the server's SETTINGS."""


def number(value: int) -> bytes:
    """32 bits."""
    return value.to_bytes(4, "big")


def setting(code: int, value: int) -> bytes:
    """An entry of SETTINGS."""
    return code.to_bytes(2, "big") + number(value)


def literal_named(index: int) -> bytes:
    """An empty literal with incremental indexing, its name an entry of the tables (RFC 7541, 6.2.1): 63 to 190."""
    return bytes((0x7F, index - 63, 0))
