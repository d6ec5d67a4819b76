"""A client's connection: requests in, responses out."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Final, cast

from proxy.forwarding.call import Call
from proxy.forwarding.forwarder import Forwarder
from proxy.forwarding.headers import GRPC_TIMEOUT, Headers
from proxy.forwarding.peers import Downstream
from proxy.forwarding.watched import WatchedCall
from proxy.http2 import (
    EMPTY_SETTINGS,
    NO_LIMIT,
    ConnectionClosed,
    DataReceived,
    EngineError,
    ErrorCode,
    Event,
    LimitExceeded,
    Outbox,
    PingAcknowledged,
    RequestReceived,
    Setting,
    SettingsAcknowledged,
    SettingsReceived,
    StreamClosed,
    TokenBucket,
    TrailersReceived,
    code_of,
    goaway_frame,
    server_engine,
)
from proxy.transport.client_clock import ClientClock, ClientLimits, Stall
from proxy.transport.containment import contained

log = logging.getLogger(__name__)

WRITE_HIGH_WATER: Final = 262_144
"""Bytes in a transport's buffer above which its connection is not given more."""
LAST_WORDS: Final = 1.0
"""Seconds that a client gets to read what was written before its connection is closed."""

MIN_UNRELEASED: Final = 100
"""Streams that may be reset faster than servers are told in any case: they are told once in a pass of the loop."""
LONGEST_RESPONSE: Final = 131_072
"""Bytes that no header list of a response has: 65,536 from a server (the most that `upstream.max_header_list_size` may
be), and what we add to them. grpc-go's clients take 16 MiB, C-core's 16 KiB, Netty's 8 KiB."""
DRAIN_PING: Final = b"draining"
FRAME_PING: Final = b"in-frame"
"""What our PINGs carry: one follows the GOAWAY of a drain, the other asks whether the client can answer at all."""

NOT_HTTP2: Final = (
    b"HTTP/1.1 505 HTTP Version Not Supported\r\ncontent-type: text/plain\r\ncontent-length: 40\r\n"
    b"connection: close\r\n\r\nThis port speaks gRPC over HTTP/2 only.\n"
)

HTTP1_METHODS: Final = (b"GET", b"HEAD", b"POST", b"PUT", b"DELETE", b"CONNECT", b"OPTIONS", b"TRACE", b"PATCH")


def _is_http1(data: bytes) -> bool:
    """Whether a connection that begins so is of a client of HTTP/1: as far as can be told by the first bytes alone."""
    method = data.partition(b" ")[0]
    return bool(method) and any(each.startswith(method) for each in HTTP1_METHODS)


class DownstreamConnection(Downstream):
    """One client. `on_open` and `on_close` keep the listener's set of connections."""

    __slots__ = (
        "_changes",
        "_finished",
        "_on_close",
        "_on_open",
        "_resets",
        "calls",
        "clock",
        "forwarder",
        "greeted",
        "limits",
        "noticed",
        "settled",
        "stalled",
        "timeout_index",
    )

    def __init__(
        self,
        forwarder: Forwarder,
        limits: ClientLimits,
        outbox: Outbox,
        on_open: Callable[[DownstreamConnection], None],
        on_close: Callable[[DownstreamConnection], None],
    ) -> None:
        super().__init__(server_engine(limits.engine), limits.engine, outbox)
        self.forwarder = forwarder
        self.limits = limits
        self._on_open = on_open
        self._on_close = on_close
        self.noticed = False
        """The first GOAWAY of our drain is under way."""
        self._finished = False
        """The final one is."""
        self.calls: dict[int, Call] = {}
        """By stream, until the stream is closed: a call that is done stays while its last bytes wait for the client."""
        self.address: str | None = None
        self.greeted = False
        """The client's preface and SETTINGS were good HTTP/2."""
        self.settled = False
        """The client has acknowledged our SETTINGS."""
        self.clock = ClientClock()
        self.stalled: dict[Call, Stall] = {}
        """Calls whose bytes wait for the client, of which not one has left since the last look."""
        self.kept = 0
        self.unreleased = 0
        self._resets = TokenBucket(*limits.premature_resets)
        self._changes = TokenBucket(*limits.engine.glitches)
        self.max_header_list = NO_LIMIT
        self.fitting_headers: Headers | None = None
        self.fitting_trailers: Headers | None = None
        """See `Downstream`."""
        self.timeout_index = 0
        """Where in its header lists this client puts `grpc-timeout`; 0 until it sent one."""

    # asyncio.BufferedProtocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The client is connected."""
        # Not isinstance: uvloop's transports have the interface, but not the base class.
        wire = cast("asyncio.Transport", transport)
        wire.set_write_buffer_limits(high=WRITE_HIGH_WATER)
        self.wire = wire
        self._on_open(self)
        # Our SETTINGS wait for the client's first bytes: if those are HTTP/1, the answer must be too.

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - why a client left changes nothing
        """The client is gone: nothing of its calls matters any more."""
        self.wire = None
        self._end()
        self._on_close(self)

    def end_calls(self) -> None:
        """See `Http2Connection.end_calls`."""
        calls, self.calls = self.calls, {}
        for call in calls.values():
            if not call.done:
                with contained(call):
                    call.cancelled()
        owed, self.owed = self.owed, []
        for call in owed:
            if call.response_unacked:
                with contained(call):
                    call.pay_response(call.response_unacked)
        self.tails.clear()
        self.stalled.clear()

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
        self.last_sid = sid = event.stream_id
        forwarder = self.forwarder
        forwarder.unwatched -= 1
        if head.watched or not forwarder.unwatched:
            call: Call = WatchedCall(forwarder, self, sid, head, timeout)
        else:
            call = Call(forwarder, self, sid, head, timeout)
        self.calls[sid] = call
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
        if call is not None and not call.done:
            call.request_data(event.data, end_stream=event.end_stream)
        elif event.data and not self.closed:
            # The call is over, but its bytes still count against the connection's window.
            self.engine.acknowledge_received_data(len(event.data), event.stream_id)

    def on_trailers(self, event: TrailersReceived) -> None:
        """A request ended with trailers."""
        call = self.calls.get(event.stream_id)
        if call is not None and not call.done:
            call.request_trailers()

    def on_stream_closed(self, event: StreamClosed) -> None:
        """A stream is over, in good order or not."""
        sid = event.stream_id
        call = self.calls.pop(sid, None)
        if event.error_code:
            if self.owed or self.waiting:
                self.mark_dirty()  # what was queued on it is gone: there is credit to return, or less to be counted
            if self.tails and sid in self.tails:
                self.tails.remove(sid)
            # Without a call, the engine refused the request itself.
            if call is None or not (call.done or call.response_started):
                self._reset_early(sid, call)
        if call is not None and not call.done:
            call.cancelled()

    def _reset_early(self, sid: int, call: Call | None) -> None:
        """A stream was reset before its response began: by the client, or by the engine because of the client.

        Cheap for the client and not for us (CVE-2023-44487, CVE-2025-8671), and yet what every user does who stops
        waiting: so only those of young streams count, and a stream counts until its server has been told.
        """
        if call is not None:
            with contained(call):
                call.cancelled()
            if call.up is not None:
                call.up.release(call)
        if sid > self.clock.old_sid and not self._resets.take(self.forwarder.now()):
            burst, rate = self.limits.premature_resets
            raise LimitExceeded(
                "premature_resets", f"more than {burst} streams, and {rate} a second, were reset before their response"
            )
        if self.unreleased > max(MIN_UNRELEASED, self.limits.engine.max_concurrent_streams):
            raise LimitExceeded(
                "unreleased_streams", f"{self.unreleased} streams were reset faster than servers hear of it"
            )

    def on_settings(self, event: SettingsReceived) -> None:
        """The client speaks HTTP/2, or changes what it wants, which costs us a look at every stream."""
        if not self.greeted:
            self.greeted = True
        elif not self._changes.take(self.forwarder.now()):
            raise LimitExceeded("settings_changes", "it changes its SETTINGS all the time")
        limit = event.settings.get(Setting.MAX_HEADER_LIST_SIZE)
        if limit is not None:
            self.max_header_list = limit
            self.fitting_headers = self.fitting_trailers = () if limit < LONGEST_RESPONSE else None

    def on_settings_acknowledged(self, event: SettingsAcknowledged) -> None:  # noqa: ARG002 - we send one SETTINGS only
        """The client keeps to our limits from here on."""
        self.settled = True

    def on_ping_acknowledged(self, event: PingAcknowledged) -> None:
        """The client is not in the middle of a frame; or it has seen the first GOAWAY of our drain, and what it starts
        from here on can be refused.
        """
        if event.opaque_data != DRAIN_PING:
            self.clock.pinged_at = 0.0
        elif self.noticed:
            self.finish_drain()

    def on_connection_closed(self, event: ConnectionClosed) -> None:
        """The engine has nothing more to say or to hear."""
        if event.error_code == ErrorCode.ENHANCE_YOUR_CALM:
            self._exceeded("engine", "too many frames of no use")
        self.close()

    def on_engine_failure(self, error: EngineError, data: bytes) -> None:
        """The client broke the protocol in a way that the engine cannot answer: say why, and close."""
        wire = self.wire
        code = code_of(error)
        if code == ErrorCode.ENHANCE_YOUR_CALM:
            self._exceeded("engine", str(error))
        if wire is not None:
            if not self.greeted and _is_http1(data):
                wire.write(NOT_HTTP2)
            else:
                wire.write(goaway_frame(code, str(error)))
        log.debug("client connection ended: %s", error)
        self.close()

    def on_limit(self, error: LimitExceeded) -> None:
        """See `Http2Connection.on_limit`."""
        self.cut_off(error.limit, error.detail, error.code)

    def cut_off(self, limit: str, detail: str, code: ErrorCode = ErrorCode.ENHANCE_YOUR_CALM) -> None:
        """The client went beyond `limit`: say so, and close; also if the engine has nothing more to say by itself."""
        self._exceeded(limit, detail)
        if self.wire is not None:
            self.wire.write((b"" if self.greeted else EMPTY_SETTINGS) + goaway_frame(code, detail))
        self.close()

    def turn_away(self, limit: str, detail: str) -> None:
        """Take nothing from a client that has just connected: it may try again elsewhere, or later."""
        self._exceeded(limit, detail)
        if self.wire is not None:
            self.wire.write(EMPTY_SETTINGS + goaway_frame(ErrorCode.ENHANCE_YOUR_CALM, detail, last_stream_id=0))
        self.close()

    def _exceeded(self, limit: str, detail: str) -> None:
        self.forwarder.watch.exceeded(limit, f"client {self.client or 'unknown'}: {detail}")

    @property
    def client(self) -> str | None:
        """The client's address without its port; None where there is none, as on a Unix socket."""
        peer = self.wire.get_extra_info("peername") if self.wire is not None else None
        return str(peer[0]) if isinstance(peer, tuple) else None

    def on_handler_failure(self, event: Event, error: Exception) -> None:
        """See `Http2Connection.on_handler_failure`."""
        log.error("a bug ended a call at %s", type(event).__name__, exc_info=error)
        call = self.calls.get(getattr(event, "stream_id", 0))
        if call is not None:
            call.broken()  # nothing happens if it is done

    def fail(self, error: Exception) -> None:
        """Give up this connection because of a bug of ours."""
        log.error("a bug ended a client connection", exc_info=error)
        self.abort()

    def excess(self, limit: int) -> int:
        """See `Holder.excess`."""
        return self.waiting - limit

    def give_up_calls(self, amount: int) -> int:
        """See `Http2Connection.give_up_calls`."""
        queued = self.engine.queued_body_size
        given_up = 0
        for held, call in sorted(((queued(each.sid), each) for each in self.calls.values()), key=lambda each: -each[0]):
            if given_up >= amount or not held:
                break
            given_up += held
            with contained(call):
                self.drop(call)
        return given_up

    def drop(self, call: Call) -> None:
        """Give up a call whose bytes the client does not take. gRPC reads the code as RESOURCE_EXHAUSTED."""
        if not call.done:
            call.drop(ErrorCode.ENHANCE_YOUR_CALM)
        elif call.sid in self.calls:
            self.reset(call.sid, ErrorCode.ENHANCE_YOUR_CALM)

    def close(self) -> None:
        """See `Http2Connection.close`. A client that does not read its last bytes is cut off after a moment."""
        super().close()
        if self.wire is not None:
            # Not a method of this connection: the timer would keep it, 12 KB of memory, after it is gone.
            self.forwarder.call_later(LAST_WORDS, self.wire.abort)

    # Credit.

    def settle(self) -> None:
        """Servers get credit for the response bytes that have left for the client."""
        engine = self.engine
        owed: list[Call] = self.owed
        self.owed = []
        waiting = engine.queued_body_size()
        stalled = self.stalled
        for call in owed:
            up = call.up
            if up is None:
                continue  # nobody to pay
            # Also when `up` is closed, and takes no pay: whether the client takes its bytes shows only here.
            queued = engine.queued_body_size(call.sid) if waiting else 0
            left = call.response_unacked - queued
            if left > 0:
                if stalled:
                    stalled.pop(call, None)
                call.pay_response(left)
            if queued > up.slack or (queued and call.done):
                self.owed.append(call)
        if waiting != self.waiting:
            self.outbox.backlog.put(self, waiting)

    # Drain (RFC 9113, 6.8: a server sends a first GOAWAY with the highest stream id, then the real one).

    def start_drain(self) -> None:
        """Ask the client for no more calls; `finish_drain` must follow."""
        if not self.closed:
            self.noticed = True
            self.engine.send_shutdown_notice()
            # Written first: the engine lets PINGs overtake, and then their ACK would not prove that GOAWAY was seen.
            self.flush()
        if not self.closed:
            self.engine.ping(DRAIN_PING)
            self.mark_dirty()

    def finish_drain(self) -> None:
        """Take no more calls. The connection closes when the running ones are done. May be called twice."""
        if not self.closed and not self._finished:
            self._finished = True
            self.engine.send_goaway(ErrorCode.NO_ERROR)
            self.mark_dirty()
