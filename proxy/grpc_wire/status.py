"""gRPC status codes, the trailers that carry them, and what other protocols' failures become.

Sources: PROTOCOL-HTTP2.md ("Responses", "Errors"), doc/statuscodes.md and doc/http-grpc-status-mapping.md of
github.com/grpc/grpc.
"""

from __future__ import annotations

import re
from enum import IntEnum

Headers = list[tuple[bytes, bytes]]


class Status(IntEnum):
    """The 17 codes of gRPC (doc/statuscodes.md)."""

    OK = 0
    CANCELLED = 1
    UNKNOWN = 2
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    ABORTED = 10
    OUT_OF_RANGE = 11
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    DATA_LOSS = 15
    UNAUTHENTICATED = 16


MAX_MESSAGE_BYTES = 1024
"""Longest `grpc-message` this program writes, in percent-encoded bytes: peers limit all trailers together to 8 KiB."""

# PROTOCOL-HTTP2.md, "Responses": everything outside space .. tilde, and the percent sign itself, is encoded.
_MUST_ENCODE = re.compile(rb"[^ -$&-~]")


def percent_encode(message: str) -> bytes:
    """A status message as the value of `grpc-message`: UTF-8, percent-encoded. Lone surrogates become `?`."""
    return _MUST_ENCODE.sub(lambda match: b"%%%02X" % match[0][0], message.encode("utf-8", "replace"))


def trailers(status: Status, message: str = "") -> Headers:
    """The trailers that end a call: `grpc-status`, and `grpc-message` when there is a message.

    The message is cut to `MAX_MESSAGE_BYTES` after encoding, between characters.
    """
    fields = [(b"grpc-status", b"%d" % status)]
    if message:
        fields.append((b"grpc-message", bounded(message)))
    return fields


def trailers_only(status: Status, message: str = "") -> Headers:
    """The single header block that answers a call without a message (to be sent with END_STREAM).

    HTTP status 200 and the content type come first, then what `trailers` gives.
    """
    return [(b":status", b"200"), (b"content-type", b"application/grpc"), *trailers(status, message)]


def bounded(message: str) -> bytes:
    """`percent_encode`, cut to `MAX_MESSAGE_BYTES` between characters."""
    # A character takes at least one byte, so no more than the first MAX_MESSAGE_BYTES characters can be in the result.
    encoded = percent_encode(message[:MAX_MESSAGE_BYTES])
    if len(encoded) <= MAX_MESSAGE_BYTES:
        return encoded
    kept = bytearray()
    for character in message[:MAX_MESSAGE_BYTES]:
        piece = percent_encode(character)
        if len(kept) + len(piece) > MAX_MESSAGE_BYTES:
            break
        kept += piece
    return bytes(kept)


# doc/http-grpc-status-mapping.md, the whole table; it is for answers that carry no grpc-status.
_FROM_HTTP = {
    400: Status.INTERNAL,
    401: Status.UNAUTHENTICATED,
    403: Status.PERMISSION_DENIED,
    404: Status.UNIMPLEMENTED,
    429: Status.UNAVAILABLE,
    431: Status.INTERNAL,
    502: Status.UNAVAILABLE,
    503: Status.UNAVAILABLE,
    504: Status.UNAVAILABLE,
}


def from_http_status(code: int) -> Status:
    """The status of an answer with this HTTP status and no `grpc-status`; 200 included, as it lacks one too."""
    return _FROM_HTTP.get(code, Status.UNKNOWN)


# PROTOCOL-HTTP2.md, "Errors": the rows that are not INTERNAL. The table has no row for HTTP_1_1_REQUIRED (13) and no
# status for STREAM_CLOSED (5); RFC 9113 section 7 lets unknown codes count as INTERNAL_ERROR.
_FROM_RST = {
    7: Status.UNAVAILABLE,  # REFUSED_STREAM: not processed
    8: Status.CANCELLED,  # CANCEL
    11: Status.RESOURCE_EXHAUSTED,  # ENHANCE_YOUR_CALM
    12: Status.PERMISSION_DENIED,  # INADEQUATE_SECURITY
}


def from_rst_code(code: int) -> Status:
    """The status of a call whose stream the server reset with this HTTP/2 error code, before any trailers.

    `NO_ERROR` gives INTERNAL, as in the table: a reset is not how a good call ends.
    """
    return _FROM_RST.get(code, Status.INTERNAL)
