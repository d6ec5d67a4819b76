"""Setting up the HTTP/2 engine: roles, limits, windows.

Seen of ngh2 0.3.0 and relied upon (check again on every upgrade):

- With `auto_window_update=False`, credit goes back by `acknowledge_received_data`, also for a stream already closed.
- `queued_body_size(stream)` is what waits for the peer's window; it is our back-pressure signal.
- `reset_stream` in the same output pass as queued data drops that data.
- A header block over `max_inbound_header_list_size` or `max_inbound_header_count` ends the whole connection.
- Trailers, like an empty final DATA frame, wait until both windows are above zero.
"""

from __future__ import annotations

from typing import NamedTuple

import ngh2
from ngh2 import DenialOfServiceError, ErrorCode, NGH2Error, Setting

Engine = ngh2.Connection

MAX_WINDOW = 2**31 - 1  # RFC 9113, 6.9.1
MAX_STREAM_ID = 2**31 - 1  # RFC 9113, 5.1.1

# RFC 9113, 6.5.2 and 4.3: what both sides use to compress, and what grpc-go, Envoy and nginx send.
HEADER_TABLE_SIZE = 4096


class Limits(NamedTuple):
    """What a peer may cost us on one connection."""

    max_concurrent_streams: int
    """Streams the connection may have open."""
    stream_window: int
    """Bytes of one stream that the peer may send ahead of our consumer."""
    max_header_list_size: int
    """Bytes of one decoded header list, with 32 bytes of overhead a field (RFC 9113, 6.5.2)."""
    max_header_count: int
    """Fields of one header list."""


def connection_window(limits: Limits) -> int:
    """The connection's receive window in bytes: room for every stream to fill its own.

    A smaller one lets a few stalled streams starve all others of their connection (linkerd2 #638, netty #4423), so
    memory is bounded per stream instead.
    """
    return min(MAX_WINDOW, limits.stream_window * limits.max_concurrent_streams)


def server_engine(limits: Limits) -> Engine:
    """An engine for a connection that a client opened; its SETTINGS wait to be sent."""
    engine = ngh2.Connection(ngh2.Role.SERVER, _configuration(limits))
    engine.initiate_connection(
        {
            Setting.MAX_CONCURRENT_STREAMS: limits.max_concurrent_streams,
            Setting.INITIAL_WINDOW_SIZE: limits.stream_window,
            Setting.MAX_HEADER_LIST_SIZE: limits.max_header_list_size,
        }
    )
    engine.set_local_window_size(connection_window(limits))
    return engine


def client_engine(limits: Limits) -> Engine:
    """An engine for a connection that we open; its preface and SETTINGS wait to be sent."""
    engine = ngh2.Connection(ngh2.Role.CLIENT, _configuration(limits))
    engine.initiate_connection(
        {
            Setting.ENABLE_PUSH: 0,
            Setting.INITIAL_WINDOW_SIZE: limits.stream_window,
            Setting.MAX_HEADER_LIST_SIZE: limits.max_header_list_size,
        }
    )
    engine.set_local_window_size(connection_window(limits))
    return engine


def _configuration(limits: Limits) -> ngh2.Configuration:
    return ngh2.Configuration(
        auto_window_update=False,
        max_deflate_dynamic_table_size=HEADER_TABLE_SIZE,
        max_inbound_header_list_size=limits.max_header_list_size,
        max_inbound_header_count=limits.max_header_count,
        # Chat clients cancel streams as a matter of course, so the engine's 33 resets a second would cut off a busy
        # one; what a reset costs us is small as long as the key is not known yet.
        stream_reset_rate_limit=(2_000, 1_000),
        glitch_rate_limit=(1_000, 100),
    )


def goaway_frame(error: NGH2Error) -> bytes:
    """A GOAWAY frame made by hand, for the one case where the engine cannot: it failed over the peer's input.

    The code is ENHANCE_YOUR_CALM for a limit, else PROTOCOL_ERROR (RFC 9113, 7); the last stream id is the highest,
    so that no call counts as unprocessed that may have run.
    """
    code = ErrorCode.ENHANCE_YOUR_CALM if isinstance(error, DenialOfServiceError) else ErrorCode.PROTOCOL_ERROR
    text = str(error).encode()[:128]
    payload = MAX_STREAM_ID.to_bytes(4, "big") + code.to_bytes(4, "big") + text
    return len(payload).to_bytes(3, "big") + b"\x07\x00" + bytes(4) + payload  # RFC 9113, 4.1 and 6.8
