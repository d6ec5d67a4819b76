"""A connection to a server: requests out, responses in."""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, cast

from proxy.forwarding.offered import OfferedCall
from proxy.forwarding.peers import Downstream, Upstream
from proxy.forwarding.retry import Outcome
from proxy.grpc_wire.status import from_rst_code
from proxy.http2 import (
    NO_LIMIT,
    ConnectionClosed,
    ConnectionClosingError,
    DataReceived,
    EngineError,
    ErrorCode,
    Event,
    GoAwayReceived,
    LimitExceeded,
    Limits,
    Outbox,
    PingAcknowledged,
    ResponseReceived,
    Setting,
    SettingsReceived,
    StreamClosed,
    TrailersReceived,
    client_engine,
)
from proxy.transport.containment import contained
from proxy.transport.downstream import WRITE_HIGH_WATER
from proxy.transport.reactor import Handle, reason

if TYPE_CHECKING:
    from proxy.transport.pool import UpstreamPool

log = logging.getLogger(__name__)


class UpstreamConnection(Upstream):
    """One connection of a pool. It is ready for calls once the server's first SETTINGS are here."""

    __slots__ = (
        "_last_goaway",
        "_next_ping",
        "_patience",
        "_pinged",
        "_refused",
        "_why",
        "aged",
        "max_streams",
        "opened_at",
        "pool",
        "ready",
        "releasing",
        "timers",
    )

    def __init__(self, pool: UpstreamPool, limits: Limits, outbox: Outbox) -> None:
        super().__init__(client_engine(limits), limits, outbox)
        self.pool = pool
        self.calls: dict[int, OfferedCall] = {}
        self.ready = False
        self.draining = False
        self.max_streams = NO_LIMIT
        """The server's MAX_CONCURRENT_STREAMS."""
        self.max_header_list = NO_LIMIT
        self.opened_at = 0.0
        self.aged = False
        """To be replaced as soon as there is another."""
        self.timers: list[Handle] = []
        """What is to happen to this connection later; called off when it ends."""
        self.releasing: dict[int, Downstream] = {}
        """Streams reset by their clients, until the server has been told."""
        self._refused = 0
        """Streams that the server did not take."""
        self._pinged = False
        self._next_ping: Handle | None = None
        self._patience: Handle | None = None
        """Ends the wait for the answer to a PING."""
        self._last_goaway = ""
        self._why = ""

    # asyncio.BufferedProtocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Connected, and secured if that is asked for; our preface goes out."""
        # Not isinstance: uvloop's transports have the interface, but not the base class.
        wire = cast("asyncio.Transport", transport)
        if self.closed:
            wire.abort()  # given up while it connected
            return
        wire.set_write_buffer_limits(high=WRITE_HIGH_WATER)
        self.wire = wire
        self.pool.opened(self)
        tls = self.pool.tls
        if tls is not None and (objection := tls.objection(wire.get_extra_info("ssl_object"))):
            self._why = objection
            self.close()
            return
        user_timeout = self.pool.settings.tcp_user_timeout
        peer: socket.socket | None = wire.get_extra_info("socket")
        if user_timeout and peer is not None and peer.family != socket.AF_UNIX and hasattr(socket, "TCP_USER_TIMEOUT"):
            # RFC 5482: how long what was sent may stay unacknowledged. A peer that is cut off shows only by that.
            peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, round(user_timeout * 1000))
        self.mark_dirty()

    def connection_lost(self, exc: Exception | None) -> None:
        """The server is gone: its calls end here or move on."""
        wire, self.wire = self.wire, None
        if wire is not None and (tls := wire.get_extra_info("ssl_object")) is not None:
            self._read_rest(tls)
        if not self._why:
            self._why = reason(exc) if exc is not None else self._last_goaway or "connection closed by the server"
        self._end()
        self.pool.disconnected(self)

    def _read_rest(self, tls: ssl.SSLObject) -> None:
        """Take what the server had said when it hung up. uvloop's TLS gives no more of that once the connection has
        ended, to somebody whose room was full or whose turn it was not: it would be the end of a response.
        """
        with suppress(ssl.SSLError):  # that is all, or its end is missing
            while not self.closed:
                room = self.get_buffer(-1)
                data = tls.read(len(room))
                if not data:
                    return
                room[: len(data)] = data
                self.buffer_updated(len(data))

    def end_calls(self) -> None:
        """See `Http2Connection.end_calls`."""
        why = self._why or self._last_goaway or "the proxy closed the connection"
        # First the pool, so that a call that moves on is not given this connection again.
        self.pool.lost(self, why)
        owed, self.owed = self.owed, []
        for call in owed:
            if call.up is self and call.request_unacked:
                with contained(call):
                    call.pay_request(call.request_unacked)
        for timer in (*self.timers, self._next_ping, self._patience):
            if timer is not None:
                timer.cancel()
        self.timers = []
        self._next_ping = self._patience = None
        for down in self.releasing.values():
            down.unreleased -= 1
        self.releasing = {}
        calls, self.calls = self.calls, {}
        blame = True
        for sid, call in calls.items():
            with contained(call):
                if sid > self.flushed_sid:
                    call.attempt_failed(Outcome.NOT_SENT, why)
                else:
                    lost = f"{why}, before it answered; the call may have run"
                    call.attempt_failed(Outcome.LOST, lost, blame=blame)
                    blame = False  # one lost connection is one failure, however many calls were on it

    @property
    def has_ended_streams(self) -> bool:
        """Whether there were streams here that the server took and that are over."""
        # A client's streams are 1, 3, 5 and so on (RFC 9113, 5.1.1).
        return (self.last_sid + 1) // 2 > len(self.calls) + self._refused

    # Events of the engine.

    def on_settings(self, event: SettingsReceived) -> None:
        """The server speaks HTTP/2, or changed its mind about something."""
        limit = event.settings.get(Setting.MAX_CONCURRENT_STREAMS)
        if limit is not None:
            self.max_streams = limit
        self.max_header_list = event.settings.get(Setting.MAX_HEADER_LIST_SIZE, self.max_header_list)
        if not self.ready:
            self.ready = True
            self.pool.connected(self)
        elif limit is not None:
            self.pool.dispatch()

    def on_response(self, event: ResponseReceived) -> None:
        """A response begins."""
        call = self.calls.get(event.stream_id)
        if call is not None:
            call.response_headers(event.headers, end_stream=event.end_stream)

    def on_data(self, event: DataReceived) -> None:
        """A piece of a response."""
        call = self.calls.get(event.stream_id)
        if call is not None:
            call.response_data(event.data, end_stream=event.end_stream)
        elif event.data and not self.closed:
            self.engine.acknowledge_received_data(len(event.data), event.stream_id)

    def on_trailers(self, event: TrailersReceived) -> None:
        """A response ends with its status."""
        call = self.calls.get(event.stream_id)
        if call is not None:
            call.response_trailers(event.headers)

    def on_stream_closed(self, event: StreamClosed) -> None:
        """A stream is over. If its call is still here, it ended before the response did."""
        call = self.calls.pop(event.stream_id, None)
        if call is not None:
            if self.waiting:
                self.mark_dirty()  # what was queued on it is gone, so it is to be weighed anew
            with contained(call):
                self._fail_attempt(call, event)
        elif self.releasing and (down := self.releasing.pop(event.stream_id, None)) is not None:
            down.unreleased -= 1
        if self.pool.waiting:
            self.pool.dispatch()

    def _fail_attempt(self, call: OfferedCall, event: StreamClosed) -> None:
        code = event.error_code
        if isinstance(event.local_error, ConnectionClosingError):
            # The engine itself held the request back, because of a GOAWAY: not a byte of it has left.
            call.attempt_failed(Outcome.UNPROCESSED, "the server is going away")
        elif event.local_error is not None:
            call.attempt_failed(Outcome.RESET, str(event.local_error), from_rst_code(ErrorCode.INTERNAL_ERROR))
        elif code == ErrorCode.REFUSED_STREAM and self.draining:
            call.attempt_failed(Outcome.UNPROCESSED, "the server is going away")
        elif code == ErrorCode.REFUSED_STREAM:
            self._refused += 1
            if not self.pool.take_back(call, self):
                call.attempt_failed(Outcome.REFUSED, "refused the call (REFUSED_STREAM)")
        elif code in (ErrorCode.INADEQUATE_SECURITY, ErrorCode.HTTP_1_1_REQUIRED):
            why = f"refused the connection's set-up ({code_name(code)})"
            call.attempt_failed(Outcome.UNSUITABLE, why, from_rst_code(code))
        else:
            blame = code not in (ErrorCode.NO_ERROR, ErrorCode.CANCEL)
            why = f"reset the call ({code_name(code)})"
            call.attempt_failed(Outcome.RESET, why, from_rst_code(code), blame=blame)

    def on_goaway(self, event: GoAwayReceived) -> None:
        """The server takes no new calls here. Those it has not begun come back as StreamClosed (RFC 9113, 6.8)."""
        self.draining = True
        self._last_goaway = f"the server said GOAWAY ({code_name(event.error_code)})"
        self.pool.retire(self)

    def on_connection_closed(self, event: ConnectionClosed) -> None:
        """The engine has nothing more to say or to hear."""
        if not self._last_goaway:
            self._why = f"the server broke the protocol ({code_name(event.error_code)})"
        self.close()

    def on_engine_failure(self, error: EngineError, data: bytes) -> None:  # noqa: ARG002 - the server's bytes do not help
        """The server broke the protocol in a way that the engine cannot answer."""
        self._why = f"the server broke the protocol: {error}"
        log.warning("%s: %s", self.pool.endpoint.id, self._why)
        self.abort()

    def on_limit(self, error: LimitExceeded) -> None:
        """See `Http2Connection.on_limit`."""
        self.fail(error)

    def on_handler_failure(self, event: Event, error: Exception) -> None:
        """See `Http2Connection.on_handler_failure`."""
        log.error("a bug ended a call to %s at %s", self.pool.endpoint.id, type(event).__name__, exc_info=error)
        call = self.calls.get(getattr(event, "stream_id", 0))
        if call is not None:
            call.broken()

    def fail(self, error: Exception) -> None:
        """Give up this connection because of a bug of ours."""
        self._why = "a bug of the proxy ended the connection"
        log.error("a bug ended a connection to %s", self.pool.endpoint.id, exc_info=error)
        self.abort()

    # Age and keepalive.

    def keep_alive(self) -> None:
        """Ask every `keepalive_interval` from now on, while calls depend on it, whether the server is there; not any
        more if that is 0. Called again when the interval has changed.
        """
        if self._next_ping is not None:
            self._next_ping.cancel()
            self._next_ping = None
        interval = self.pool.settings.keepalive_interval
        if interval and not self.closed:
            self._next_ping = self.pool.reactor.call_later(interval, self._ping)

    def _ping(self) -> None:
        if self.calls and not self._pinged:
            self._pinged = True
            self.engine.ping()
            self.mark_dirty()
            self._wait_for_answer()
        self.keep_alive()

    def on_ping_acknowledged(self, event: PingAcknowledged) -> None:  # noqa: ARG002 - we send one kind only
        """The server is there."""
        self._pinged = False

    def _wait_for_answer(self) -> None:
        look = partial(self._expect_answer, self.engine.local_window_size)
        self._patience = self.pool.reactor.call_later(self.pool.settings.keepalive_timeout, look)

    def _expect_answer(self, window: int) -> None:
        """`window`: the bytes that the server might still send, when it was looked at last."""
        if not self._pinged or self.closed:
            return
        if self.engine.local_window_size != window:
            # The answer waits behind responses, as over a slow line; while those come, the server is there (gRFC A8: a
            # client pings when there was no activity, and any is).
            self._wait_for_answer()
        else:
            self._why = f"no answer to a PING within {self.pool.settings.keepalive_timeout:g} s"
            log.warning("%s: %s", self.pool.endpoint.id, self._why)
            self.abort()

    def release(self, call: OfferedCall) -> None:
        """`call` was reset by its client, before the response: it counts there until its reset has left for the server,
        or else a client could have many times more streams under way than it is allowed (CVE-2023-44487).
        """
        if not self.closed:
            self.releasing[call.up_sid] = call.down
            call.down.unreleased += 1

    def finish(self) -> None:
        """No new calls; close when the running ones are done."""
        if not self.closed:
            self.engine.send_goaway(ErrorCode.NO_ERROR)
            self.mark_dirty()

    def settle(self) -> None:
        """Clients get credit for the request bytes that have left for the server."""
        engine = self.engine
        owed: list[OfferedCall] = self.owed
        self.owed = []
        waiting = engine.queued_body_size()
        for call in owed:
            if call.up is not self or call.done:
                continue
            queued = engine.queued_body_size(call.up_sid) if waiting else 0
            left = call.request_unacked - queued
            if left > 0:
                call.pay_request(left)
            if queued > call.down.slack:
                self.owed.append(call)
            elif call.buffered > call.forwarder.small_buffer and call.buffer is not None:
                call.trim_replay()
        if waiting != self.waiting:
            self.outbox.backlog.put(self, waiting)

    def excess(self, limit: int) -> int:
        """See `Holder.excess`. Each client counts for itself: a slow server is no reason to end the calls of all."""
        return max((held for held, _ in self._by_client()), default=0) - limit

    def give_up_calls(self, amount: int) -> int:
        """See `Http2Connection.give_up_calls`. Those of the client that holds most come first."""
        given_up = 0
        for _, calls in sorted(self._by_client(), key=lambda each: -each[0]):
            for held, call in sorted(calls, key=lambda each: -each[0]):
                if given_up >= amount or not held:
                    break
                given_up += held
                with contained(call):
                    call.overrun(f"{self.pool.endpoint.id} does not take the request as fast as it comes")
        return given_up

    def _by_client(self) -> list[tuple[int, list[tuple[int, OfferedCall]]]]:
        """For each client: bytes that wait for the server in all, and in each of its calls."""
        queued = self.engine.queued_body_size
        clients: dict[Downstream, list[tuple[int, OfferedCall]]] = {}
        for call in self.calls.values():
            if not call.done:
                clients.setdefault(call.down, []).append((queued(call.up_sid), call))
        return [(sum(held for held, _ in calls), calls) for calls in clients.values()]


def code_name(code: int) -> str:
    """The name of an HTTP/2 error code, or its number if it has none."""
    try:
        return ErrorCode(code).name
    except ValueError:
        return str(code)
