"""Setting up the HTTP/2 engine: roles, limits, windows.

Seen of ngh2 0.3.0 and relied upon (check again on every upgrade):

- With `auto_window_update=False`, credit goes back by `acknowledge_received_data`, also for a stream already closed.
- `queued_body_size(stream)` is what waits for the peer's window; it is our back-pressure signal.
- `reset_stream` in the same output pass as queued data drops that data.
- A header block over `max_inbound_header_list_size` or `max_inbound_header_count` ends the whole connection.
- `reset_stream` frees what is queued on the stream in the next output pass, not before.
- What the engine refuses as a flood (`DenialOfServiceError`, or a GOAWAY of its own with ENHANCE_YOUR_CALM): more
  unsent acknowledgements, CONTINUATION frames or settings than allowed, or the glitch bucket empty. Frames that are
  unknown, PRIORITY, empty DATA and refused streams are glitches; PING, SETTINGS and WINDOW_UPDATE are not.
- Trailers, like an empty final DATA frame, wait until both windows are above zero.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import ngh2
from ngh2 import DenialOfServiceError, ErrorCode, NGH2Error, Setting

Engine = ngh2.Connection

MAX_WINDOW = 2**31 - 1  # RFC 9113, 6.9.1
MAX_STREAM_ID = 2**31 - 1  # RFC 9113, 5.1.1

# RFC 9113, 6.5.2 and 4.3: what both sides use to compress, and what grpc-go, Envoy and nginx send.
HEADER_TABLE_SIZE = 4096

NO_LIMIT = 2**32 - 1


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
    glitches: tuple[int, int] = (1_000, 100)
    """Nuisances that are no errors: at once, and a second."""
    max_queued_acks: int = 1_000
    """Acknowledgements of PING and SETTINGS that wait to be sent."""
    max_continuations: int = 8
    """CONTINUATION frames of one header block."""
    max_settings_entries: int = 32
    """Entries of one SETTINGS frame."""
    tolerance: int = 1
    """How many times a header list may exceed what we announce before it ends the connection. In between the call alone
    is refused, which is then the caller's job: the engine itself knows no limit for one stream."""


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
        max_inbound_header_list_size=limits.max_header_list_size * limits.tolerance,
        max_inbound_header_count=limits.max_header_count * limits.tolerance,
        # Chat clients cancel streams as a matter of course. The engine cannot tell those from the resets of an attack,
        # and ends the connection with INTERNAL_ERROR: we count ourselves (`DownstreamConnection.on_stream_closed`).
        stream_reset_rate_limit=(NO_LIMIT, NO_LIMIT),
        glitch_rate_limit=limits.glitches,
        max_outbound_ack=limits.max_queued_acks,
        max_continuations=limits.max_continuations,
        max_settings=limits.max_settings_entries,
    )


EMPTY_SETTINGS: Final = bytes(3) + b"\x04" + bytes(5)
"""A SETTINGS frame that changes nothing: what a server has to say before anything else (RFC 9113, 3.4)."""


def code_of(error: NGH2Error) -> ErrorCode:
    """What to tell the peer whose input the engine failed over (RFC 9113, 7)."""
    return ErrorCode.ENHANCE_YOUR_CALM if isinstance(error, DenialOfServiceError) else ErrorCode.PROTOCOL_ERROR


def goaway_frame(code: ErrorCode, text: str, last_stream_id: int = MAX_STREAM_ID) -> bytes:
    """A GOAWAY frame made by hand, for when the engine cannot say it: it failed over the peer's input, or is not to.

    The last stream id is the highest unless told otherwise, so that no call counts as unprocessed that may have run.
    """
    payload = last_stream_id.to_bytes(4, "big") + code.to_bytes(4, "big") + text.encode()[:128]
    return len(payload).to_bytes(3, "big") + b"\x07\x00" + bytes(4) + payload  # RFC 9113, 4.1 and 6.8
