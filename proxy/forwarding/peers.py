"""The two connections of a call, as the call sees them.

Classes, not protocols: in the compiled build a call reaches the fields of a class without looking their names up.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from proxy.http2 import Http2Connection

if TYPE_CHECKING:
    from proxy.forwarding.headers import Headers
    from proxy.forwarding.offered import OfferedCall


class Downstream(Http2Connection):
    """The client's connection, as a call sees it."""

    __slots__ = ("address", "fitting_headers", "fitting_trailers", "kept", "max_header_list", "unreleased")

    address: str | None
    """The client's address without its port, if it has one."""
    kept: int
    """Bytes of requests kept for its calls, in the larger replay buffers."""
    unreleased: int
    """Streams that the client has reset, and whose servers have not been told yet."""
    max_header_list: int
    """Its MAX_HEADER_LIST_SIZE, in bytes."""
    fitting_headers: Headers | None
    fitting_trailers: Headers | None
    """The last of a response that were within it; None: it is more than any response may have."""


class Upstream(Http2Connection):
    """A server's connection, as a call sees it."""

    __slots__ = ("calls", "draining", "max_header_list")

    calls: dict[int, OfferedCall]
    """By stream, until the call or its stream is over."""
    draining: bool
    """The server sent GOAWAY: no new calls."""
    max_header_list: int
    """The server's MAX_HEADER_LIST_SIZE, in bytes."""

    def release(self, call: OfferedCall) -> None:
        """Count the stream of `call`, which its client has reset, until the server has been told."""
        raise NotImplementedError
