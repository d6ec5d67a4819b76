"""HTTP/2 frames made by hand (RFC 9113, 4.1 and 6), right or wrong."""

from __future__ import annotations

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = range(10)
END_STREAM, ACK, END_HEADERS, PADDED = 1, 1, 4, 8

NO_ERROR, PROTOCOL_ERROR, INTERNAL_ERROR, FLOW_CONTROL_ERROR, SETTINGS_TIMEOUT, STREAM_CLOSED = range(6)
FRAME_SIZE_ERROR, REFUSED_STREAM, CANCEL, COMPRESSION_ERROR, CONNECT_ERROR, ENHANCE_YOUR_CALM = range(6, 12)
"""Codes of GOAWAY and RST_STREAM (RFC 9113, 7)."""


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """Any frame."""
    return len(payload).to_bytes(3, "big") + bytes((kind, flags)) + stream.to_bytes(4, "big") + payload


EMPTY_SETTINGS = frame(SETTINGS, 0, 0)


def number(value: int) -> bytes:
    """32 bits."""
    return value.to_bytes(4, "big")


def setting(code: int, value: int) -> bytes:
    """An entry of SETTINGS."""
    return code.to_bytes(2, "big") + number(value)


def literal_named(index: int) -> bytes:
    """An empty literal with incremental indexing, its name an entry of the tables (RFC 7541, 6.2.1): 63 to 190."""
    return bytes((0x7F, index - 63, 0))
