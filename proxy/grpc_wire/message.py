"""The first message of a gRPC call, read only as far as its routing key.

PROTOCOL-HTTP2.md, "Requests": `Length-Prefixed-Message -> Compressed-Flag Message-Length Message`, a byte of 0 or 1
and four bytes big-endian, however it is cut into DATA frames.

- The key decides as soon as its bytes are there; the rest of the message is neither awaited nor looked at. But where
  END_STREAM has come, a message that is not all there is refused even if its key is: none of it should be forwarded.
- The verdict depends on the bytes, not on how they were cut, with two exceptions: END_STREAM may come after the
  verdict, and where compressed data is damaged or at the limit of the ratio, zlib may give more or less of what was
  before.
- Nothing is kept of a message here but what `FieldScanner` keeps; no length that a client declares sizes anything.
- A compressed message is inflated just for the key, a bounded step at a time, under a limit of output and of ratio.
"""

from __future__ import annotations

import struct
import zlib
from typing import TYPE_CHECKING

from proxy.grpc_wire.errors import CallRejected
from proxy.grpc_wire.fields import (
    ABSENT,
    DEFAULT_MAX_KEY,
    PENDING,
    FieldPath,
    FieldScanner,
    InvalidKey,
    MalformedMessage,
    Sentinel,
    TooManyFields,
)
from proxy.grpc_wire.status import Status

if TYPE_CHECKING:
    from zlib import _Decompress

__all__ = ["ABSENT", "DEFAULT_MAX_MESSAGE", "PENDING", "FirstMessage", "Sentinel", "find_key"]

DEFAULT_MAX_MESSAGE = 4 << 20
"""Bytes of a first message before its key: what gRPC servers accept by default."""

PREFIX_BYTES = 5
"""The flag and the length before each message."""

INFLATE_STEP = 16 << 10
"""Bytes inflated at a time: what a bomb can cost before it is looked at."""

MAX_INFLATE_RATIO = 100
"""A bomb is output above this multiple of the input ..."""

INFLATE_FLOOR = 64 << 10
"""... and above this many bytes, since a few bytes of a small honest message can expand well."""

# zlib's window bits choose the format. gRPC's "deflate" is the zlib format of RFC 1950 (doc/compression.md).
_WINDOW_BITS = {b"gzip": 31, b"deflate": 15}

_MAX_PROTOBUF = (1 << 31) - 1

_HEAD = struct.Struct(">BiBB")  # flag, message length (2 GiB and more come out negative), tag, length of the field


def find_key(data: bytes, path: FieldPath, end_stream: bool, max_key: int = DEFAULT_MAX_KEY) -> bytes | None:  # noqa: FBT001
    """The key when the call's first bytes are the common case, else `None`: ask a `FirstMessage` instead.

    Common is: an uncompressed message whose first field is the wanted one, numbered 1 to 15 at the top level, of less
    than 128 bytes, all of it in `data`; with `end_stream` also nothing but that one message, whole. Then the result is
    what a `FirstMessage` would give for the same input. `b""` is an empty field. Raises nothing.
    """
    if len(data) < 7:
        return None
    flag, length, tag, size = _HEAD.unpack_from(data)
    if flag or tag != path.tag or size > 127 or size > max_key or length < size + 2:
        return None
    if len(data) == length + 5 or (not end_stream and len(data) >= size + 7):
        return data[7 : 7 + size]
    return None


class FirstMessage:
    """Reads the beginning of a request's body until the routing key is known.

    `encoding` is the value of the request's `grpc-encoding`, if any. `max_message` bounds what is read and inflated in
    search of the key, `max_key` the key. After a result other than `PENDING`, or an error, the reader is done: feed it
    nothing more.
    """

    __slots__ = (
        "_body",
        "_encoding",
        "_inflater",
        "_length",
        "_max_key",
        "_max_message",
        "_path",
        "_prefix",
        "_scanner",
    )

    def __init__(
        self,
        path: FieldPath,
        encoding: bytes | None = None,
        max_message: int = DEFAULT_MAX_MESSAGE,
        max_key: int = DEFAULT_MAX_KEY,
    ) -> None:
        self._path = path
        self._encoding = encoding
        self._max_message = max_message
        self._max_key = max_key
        self._prefix = b""
        self._length = 0  # declared by the prefix
        self._body = 0  # bytes of the body so far
        self._scanner: FieldScanner | None = None  # set when the prefix is complete
        self._inflater: _Inflater | None = None  # set when the message is compressed

    def feed(self, data: bytes, end_stream: bool) -> bytes | Sentinel:  # noqa: FBT001
        """Take the next bytes of the body; `end_stream` says that they are the last.

        Returns the key (`b""` for an empty field), `PENDING`, or `ABSENT` when the message has no such field or the
        stream ended without any message. Bytes after the first message are not looked at.

        Raises `CallRejected`:
        - INTERNAL: the stream ends inside the message, a flag above 1, compressed without a `grpc-encoding`, or data
          that does not inflate;
        - UNIMPLEMENTED: compressed by something else than gzip or deflate;
        - RESOURCE_EXHAUSTED: no key within `max_message` bytes of a longer message, a compressed message declared or
          inflating to more than that, a bomb, too many fields
          before the key;
        - INVALID_ARGUMENT: not a protobuf message, or the field is no bytes or string, or longer than `max_key`.
        """
        scanner = self._scanner
        if scanner is None:
            taken = PREFIX_BYTES - len(self._prefix)
            self._prefix += data[:taken]
            if len(self._prefix) < PREFIX_BYTES:
                if end_stream and self._prefix:
                    raise CallRejected(Status.INTERNAL, "stream ends inside the length prefix of a message: truncated")
                return ABSENT if end_stream else PENDING
            data = data[taken:]
            scanner = self._scanner = self._open()
        piece = data[: self._length - self._body]
        self._body += len(piece)
        if end_stream and self._body < self._length:
            raise CallRejected(
                Status.INTERNAL, f"stream ends after {self._body} of the {self._length} bytes of a message: truncated"
            )
        try:
            if self._inflater is not None:
                return self._inflater.feed(piece, self._body == self._length, scanner)
            return self._search(piece, scanner)
        except TooManyFields as too_many:
            raise CallRejected(Status.RESOURCE_EXHAUSTED, f"the first message has {too_many}") from None
        except InvalidKey as invalid:
            raise CallRejected(Status.INVALID_ARGUMENT, f"routing key: {invalid}") from None
        except MalformedMessage as malformed:
            raise CallRejected(Status.INVALID_ARGUMENT, f"the first message is not protobuf: {malformed}") from None

    def _search(self, piece: bytes, scanner: FieldScanner) -> bytes | Sentinel:
        """The next bytes of an uncompressed message, none of them beyond the limit however much has come."""
        over = max(0, self._body - self._max_message)
        found = scanner.feed(piece[: len(piece) - over], complete=self._body == self._length and not over)
        if found is PENDING and self._body >= self._max_message:
            raise self._too_large()
        return found

    def _open(self) -> FieldScanner:
        """What to do with the message that this prefix announces."""
        flag = self._prefix[0]
        self._length = length = int.from_bytes(self._prefix[1:])
        if flag > 1:
            raise CallRejected(Status.INTERNAL, f"compressed flag of a message is {flag}, not 0 or 1")
        if not flag:
            # Nothing of 2 GiB is protobuf, so there is no use in waiting for its key. Between max_message and that
            # the key may still come early: refusing at once what declares too much would make the verdict depend on
            # whether the key came in the same read as the prefix.
            if length > _MAX_PROTOBUF:
                raise self._too_large()
            return FieldScanner(self._path, self._max_key, length)
        # doc/compression.md: the flag without an encoding "different from identity" MUST fail with INTERNAL.
        if self._encoding is None or self._encoding == b"identity":
            raise CallRejected(Status.INTERNAL, "message is flagged as compressed, but the call has no grpc-encoding")
        window_bits = _WINDOW_BITS.get(self._encoding)
        if window_bits is None:
            name = self._encoding[:32].decode("ascii", "backslashreplace")
            raise CallRejected(
                Status.UNIMPLEMENTED, f"grpc-encoding {name} is not supported here: use identity, gzip or deflate"
            )
        if length > self._max_message:
            raise self._too_large()
        self._inflater = _Inflater(window_bits, self._max_message)
        return FieldScanner(self._path, self._max_key)

    def _too_large(self) -> CallRejected:
        return CallRejected(
            Status.RESOURCE_EXHAUSTED,
            f"no routing key within the first {self._max_message} bytes of a message of {self._length} bytes",
        )


class _Inflater:
    """Inflates one message for a scanner, and stops at the limits. Only the key is of interest: no output is kept."""

    __slots__ = ("_inflate", "_max_output", "_read", "_written")

    def __init__(self, window_bits: int, max_output: int) -> None:
        self._inflate: _Decompress = zlib.decompressobj(window_bits)
        self._max_output = max_output
        self._read = 0  # bytes of input
        self._written = 0  # bytes of output

    def feed(self, data: bytes, complete: bool, scanner: FieldScanner) -> bytes | Sentinel:  # noqa: FBT001
        """Inflate the next bytes into the scanner until it has a result. Returns and raises as `FirstMessage.feed`."""
        inflate = self._inflate
        self._read += len(data)
        while True:
            # One byte above the limit is enough to know. Never 0, which would mean "no limit" to zlib.
            step = min(INFLATE_STEP, self._max_output + 1 - self._written)
            try:
                piece = inflate.decompress(data, step)
            except zlib.error:
                raise CallRejected(Status.INTERNAL, "the first message does not inflate") from None
            found = scanner.feed(piece, complete=False)
            if found is not PENDING:
                return found
            data = inflate.unconsumed_tail
            self._written += len(piece)
            self._check_limits(self._read - len(data))
            if len(piece) < step:
                break
        if not inflate.eof:
            if complete:
                raise CallRejected(
                    Status.INTERNAL, "the first message does not inflate: its compressed data is cut off"
                )
            return PENDING
        # Also without unused data: bytes that are declared and still to come would be just that.
        if inflate.unused_data or not complete:
            raise CallRejected(
                Status.INTERNAL, "the first message does not inflate: it goes on after its compressed data"
            )
        return scanner.feed(b"", complete=True)

    def _check_limits(self, consumed: int) -> None:
        written = self._written
        if written > self._max_output or written > max(INFLATE_FLOOR, MAX_INFLATE_RATIO * consumed):
            raise CallRejected(
                Status.RESOURCE_EXHAUSTED,
                f"the first message inflates from {consumed} to {written} bytes and more without a routing key",
            )
