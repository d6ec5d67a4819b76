"""What an HTTP/2 endpoint had to say about a peer's bytes, as a class that endpoints can be compared by."""

from __future__ import annotations

from proxy.http2 import ErrorCode
from tests.support.frames import GOAWAY, RST_STREAM, frames

SANE = {
    "none",
    "closed",
    "GOAWAY PROTOCOL_ERROR",
    "GOAWAY FRAME_SIZE_ERROR",
    "GOAWAY COMPRESSION_ERROR",
    "GOAWAY FLOW_CONTROL_ERROR",
    "GOAWAY STREAM_CLOSED",
    "GOAWAY ENHANCE_YOUR_CALM",
    "RST PROTOCOL_ERROR",
    "RST CANCEL",
    "RST REFUSED_STREAM",
    "RST FLOW_CONTROL_ERROR",
    "RST STREAM_CLOSED",
}
"""INTERNAL_ERROR is not: nothing that a peer sends is a bug of ours."""


def code_name(code: int) -> str:
    """The name of an error code, or its number."""
    try:
        return ErrorCode(code).name
    except ValueError:
        return str(code)


def verdict(data: bytes, *, closed: bool) -> str:
    """The gravest thing in what an endpoint sent: `GOAWAY code`, `RST code, ...`, `closed`, or `none`.

    NO_ERROR is no verdict: a GOAWAY with it is a farewell, a RST_STREAM with it only ends a request early.
    """
    if data.startswith(b"HTTP/1.1 "):
        return "closed"
    resets = set()
    for kind, _, _, payload in frames(data):
        if kind == GOAWAY and (code := int.from_bytes(payload[4:8], "big")):
            return f"GOAWAY {code_name(code)}"
        if kind == RST_STREAM and (code := int.from_bytes(payload[:4], "big")):
            resets.add(code_name(code))
    if resets:
        return f"RST {', '.join(sorted(resets))}"
    return "closed" if closed else "none"
