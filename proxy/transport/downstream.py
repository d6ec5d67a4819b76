"""A client's connection: requests in, responses out."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Final, cast

from proxy.forwarding.call import Call
from proxy.forwarding.forwarder import Forwarder
from proxy.forwarding.headers import GRPC_TIMEOUT, Headers
from proxy.http2 import (
    ConnectionClosed,
    DataReceived,
    EngineError,
    ErrorCode,
    Event,
    Http2Connection,
    Limits,
    Outbox,
    PingAcknowledged,
    RequestReceived,
    SettingsReceived,
    StreamClosed,
    TrailersReceived,
    goaway_frame,
    server_engine,
)
from proxy.transport.containment import contained

log = logging.getLogger(__name__)

WRITE_HIGH_WATER: Final = 262_144
"""Bytes in a transport's buffer above which its connection is not given more."""
LAST_WORDS: Final = 1.0
"""Seconds that a client gets to read what was written before its connection is closed."""

NOT_HTTP2: Final = (
    b"HTTP/1.1 505 HTTP Version Not Supported\r\ncontent-type: text/plain\r\ncontent-length: 40\r\n"
    b"connection: close\r\n\r\nThis port speaks gRPC over HTTP/2 only.\n"
)


class DownstreamConnection(Http2Connection, asyncio.Protocol):
    """One client. `on_open` and `on_close` keep the listener's set of connections."""

    __slots__ = (
        "_finished",
        "_noticed",
        "_on_close",
        "_on_open",
        "calls",
        "forwarder",
        "greeted",
        "timeout_index",
    )

    def __init__(
        self,
        forwarder: Forwarder,
        limits: Limits,
        outbox: Outbox,
        on_open: Callable[[DownstreamConnection], None],
        on_close: Callable[[DownstreamConnection], None],
    ) -> None:
        super().__init__(server_engine(limits), outbox)
        self.forwarder = forwarder
        self._on_open = on_open
        self._on_close = on_close
        self._noticed = False
        """The first GOAWAY of our drain is under way."""
        self._finished = False
        """The final one is."""
        self.calls: dict[int, Call] = {}
        self.greeted = False
        """The client's preface and SETTINGS were good HTTP/2."""
        self.timeout_index = 0
        """Where in its header lists this client puts `grpc-timeout`; 0 until it sent one."""

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The client is connected."""
        # Not isinstance: uvloop's transports have the interface, but not the base class.
        wire = cast("asyncio.Transport", transport)
        wire.set_write_buffer_limits(high=WRITE_HIGH_WATER)
        self.wire = wire
        self._on_open(self)
        # Our SETTINGS wait for the client's first bytes: if those are HTTP/1, the answer must be too.

    data_received = Http2Connection.receive

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - why a client left changes nothing
        """The client is gone: nothing of its calls matters any more."""
        self.closed = True
        self.wire = None
        self.end_calls()
        self._on_close(self)

    def end_calls(self) -> None:
        """See `Http2Connection.end_calls`."""
        for call in tuple(self.calls.values()):
            with contained(call):
                call.cancelled()
        owed, self.owed = self.owed, []
        for call in owed:
            if call.response_unacked:
                with contained(call):
                    call.pay_response(call.response_unacked)
        self.tails.clear()

    # Events of the engine.

    def on_request(self, event: RequestReceived) -> None:
        """A call begins."""
        headers = event.headers
        index = self.timeout_index
        timeout = None
        if index and index < len(headers) and headers[index][0] == GRPC_TIMEOUT:
            timeout = headers[index][1]
            headers = headers[:index] + headers[index + 1 :]
        head = self.forwarder.heads.memo.get(headers)
        if head is None:
            timeout, headers = self._split_timeout(event.headers)
            head = self.forwarder.heads.find(headers)
        sid = event.stream_id
        self.calls[sid] = call = Call(self.forwarder, self, sid, head, timeout)
        call.start(end_stream=event.end_stream)

    def _split_timeout(self, headers: Headers) -> tuple[bytes | None, Headers]:
        names = [name for name, _ in headers]
        if GRPC_TIMEOUT not in names:
            return None, headers
        self.timeout_index = index = names.index(GRPC_TIMEOUT)
        return headers[index][1], tuple(header for header in headers if header[0] != GRPC_TIMEOUT)

    def on_data(self, event: DataReceived) -> None:
        """A piece of a request."""
        call = self.calls.get(event.stream_id)
        if call is not None:
            call.request_data(event.data, end_stream=event.end_stream)
        elif event.data:
            # The call is over, but its bytes still count against the connection's window.
            self.engine.acknowledge_received_data(len(event.data), event.stream_id)

    def on_trailers(self, event: TrailersReceived) -> None:
        """A request ended with trailers."""
        call = self.calls.get(event.stream_id)
        if call is not None:
            call.request_trailers()

    def on_stream_closed(self, event: StreamClosed) -> None:
        """A stream is over, in good order or not."""
        call = self.calls.pop(event.stream_id, None)
        if call is not None:
            call.cancelled()
        if event.error_code:
            if self.owed:
                self.mark_dirty()  # what was queued on it is gone, so there is credit to return
            if self.tails and event.stream_id in self.tails:
                self.tails.remove(event.stream_id)

    def on_settings(self, event: SettingsReceived) -> None:  # noqa: ARG002 - the engine applies them
        """The client speaks HTTP/2."""
        self.greeted = True

    def on_ping_acknowledged(self, event: PingAcknowledged) -> None:  # noqa: ARG002 - we send one kind only
        """The client has seen the first GOAWAY of our drain, if there was one: what it starts from here on can be
        refused.
        """
        if self._noticed:
            self.finish_drain()

    def on_connection_closed(self, event: ConnectionClosed) -> None:  # noqa: ARG002 - the peer was told
        """The engine has nothing more to say or to hear."""
        self.close()

    def on_engine_failure(self, error: EngineError, data: bytes) -> None:
        """The client broke the protocol in a way that the engine cannot answer: say why, and close."""
        wire = self.wire
        if wire is not None:
            if not self.greeted and data[:1].isalpha():
                wire.write(NOT_HTTP2)
            else:
                wire.write(goaway_frame(error))
        log.debug("client connection ended: %s", error)
        self.close()

    def on_handler_failure(self, event: Event, error: Exception) -> None:
        """See `Http2Connection.on_handler_failure`."""
        log.error("a bug ended a call at %s", type(event).__name__, exc_info=error)
        call = self.calls.get(getattr(event, "stream_id", 0))
        if call is not None:
            call.broken()

    def fail(self, error: Exception) -> None:
        """Give up this connection because of a bug of ours."""
        log.error("a bug ended a client connection", exc_info=error)
        self.abort()

    def close(self) -> None:
        """See `Http2Connection.close`. A client that does not read its last bytes is cut off after a moment."""
        super().close()
        if self.wire is not None:
            self.forwarder.call_later(LAST_WORDS, self._cut_off)

    def _cut_off(self) -> None:
        if self.wire is not None:
            self.wire.abort()

    # Credit.

    def settle(self) -> None:
        """Servers get credit for the response bytes that have left for the client."""
        engine = self.engine
        owed, self.owed = self.owed, []
        all_left = not engine.queued_body_size()
        for call in owed:
            queued = 0 if all_left else engine.queued_body_size(call.sid)
            left = call.response_unacked - queued
            if left > 0:
                # `Call.pay_response` written out: twice a call, its frame is 1 % of the call's cost.
                call.response_unacked = queued
                up = call.up
                if up is not None and not up.closed:
                    up.engine.acknowledge_received_data(left, call.up_sid)
                    if not up.dirty and up.engine.want_write:
                        up.mark_dirty()
            if queued:
                self.owed.append(call)

    # Drain (RFC 9113, 6.8: a server sends a first GOAWAY with the highest stream id, then the real one).

    def start_drain(self) -> None:
        """Ask the client for no more calls; `finish_drain` must follow."""
        if not self.closed:
            self._noticed = True
            self.engine.send_shutdown_notice()
            # Written first: the engine lets PINGs overtake, and then their ACK would not prove that GOAWAY was seen.
            self.flush()
        if not self.closed:
            self.engine.ping()
            self.mark_dirty()

    def finish_drain(self) -> None:
        """Take no more calls. The connection closes when the running ones are done. May be called twice."""
        if not self.closed and not self._finished:
            self._finished = True
            self.engine.send_goaway(ErrorCode.NO_ERROR)
            self.mark_dirty()
