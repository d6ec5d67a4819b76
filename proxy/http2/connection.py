"""One HTTP/2 connection without I/O: bytes in, handler calls out, one write per event-loop pass.

Rules of this file:

1. It does not know which side of a call it serves; that is what the subclasses are for.
2. Reading never waits for writing (helidon #12182): `buffer_updated` parses everything at once, whatever is blocked.
3. What was received stays owed to its sender until the other side's connection has taken it: see `owed` and `slack`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, Final, Protocol

from ngh2 import (
    ConnectionClosed,
    DataReceived,
    ErrorCode,
    Event,
    GoAwayReceived,
    NGH2Error,
    PingAcknowledged,
    RequestReceived,
    ResponseReceived,
    SettingsAcknowledged,
    SettingsReceived,
    StreamClosed,
    StreamUnavailableError,
    TrailersReceived,
)

from proxy.http2.engine import Engine, Limits
from proxy.http2.limits import LimitExceeded
from proxy.http2.outbox import Outbox
from proxy.http2.turns import FAIR, FIRST_ROOM, MAX_ROOM, MIN_ROOM, fair_room

EVENTS: dict[str, type[Event]] = {
    "on_request": RequestReceived,
    "on_response": ResponseReceived,
    "on_data": DataReceived,
    "on_trailers": TrailersReceived,
    "on_stream_closed": StreamClosed,
    "on_settings": SettingsReceived,
    "on_goaway": GoAwayReceived,
    "on_settings_acknowledged": SettingsAcknowledged,
    "on_ping_acknowledged": PingAcknowledged,
    "on_connection_closed": ConnectionClosed,
}
"""Name of a handler method -> the engine's event it takes. Events without a handler are dropped: a received PING and
SETTINGS are answered by the engine, a 1xx response is not the response, a reset also arrives as StreamClosed."""


AHEAD: Final = 1024
AHEAD_PIECES: Final = 64
"""Bytes of a piece, and pieces, written at most to a transport that is full."""

ARRIVALS: Final = memoryview(bytearray(MAX_ROOM))
"""Where bytes from the network are put, for all connections: they are parsed before the next are read. Spares each read
an object and a copy (large responses 7 % cheaper, large requests 3 %)."""
_FIRST: Final = ARRIVALS[:FIRST_ROOM]

MAX_SLACK: Final = 4096
"""The largest `slack`. Most calls and tokens are shorter: they return all of their credit at the call's end, at once,
instead of watching each message leave (saves 1.1 us of 14 a call, 1 us of 8 a message)."""


class Wire(Protocol):
    """The transport below, as far as it is needed here (a part of asyncio.Transport)."""

    def write(self, data: bytes) -> None:
        """Send, or buffer for sending."""

    def pause_reading(self) -> None:
        """Give no more bytes until told otherwise."""

    def resume_reading(self) -> None:
        """Give bytes again."""

    def close(self) -> None:
        """Close once everything written has left."""

    def abort(self) -> None:
        """Close now."""

    def get_extra_info(self, name: str) -> Any:
        """What asyncio.BaseTransport knows by that name, or None."""

    def get_write_buffer_size(self) -> int:
        """Bytes written that have not left."""


def _ignore(_connection: object, _event: Event) -> None:
    """For events that change nothing here."""


class Http2Connection:
    """The engine, its output and the credit it owes. Subclasses define the handlers named in `EVENTS`."""

    __slots__ = (
        "closed",
        "dirty",
        "engine",
        "flushed_sid",
        "fragments",
        "last_sid",
        "outbox",
        "owed",
        "pass_clock",
        "paused",
        "room",
        "slack",
        "tails",
        "turn",
        "waiting",
        "wire",
    )

    _handlers: ClassVar[dict[type[Event], Callable[[Any, Any], None]]] = {}

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        handlers = {event: getattr(cls, name) for name, event in EVENTS.items() if hasattr(cls, name)}
        # Every event has an entry, so that the hot path need not ask.
        cls._handlers = dict.fromkeys(Event.__subclasses__(), _ignore) | handlers

    def __init__(self, engine: Engine, limits: Limits, outbox: Outbox) -> None:
        self.engine = engine
        self.slack = min(MAX_SLACK, limits.stream_window // 4)
        """Bytes of each of its streams that the peer is owed without being in anybody's `owed`. Less than half of the
        window, so that the peer can always send on: that brings the total over it, and then they are watched."""
        self.outbox = outbox
        self.pass_clock = outbox.clock
        self.room = _FIRST
        """Where the next bytes are put, so many of them at most."""
        self.turn = 0.0
        """Seconds of timed reads since the last one that left room, or the last wait for a turn."""
        self.wire: Wire | None = None
        self.dirty = False
        """In the outbox, or about to be."""
        self.paused = False
        """The transport's buffer is full; what the engine holds stays there, and so does the credit for it."""
        self.closed = False
        """No more engine calls: it failed, or the transport is gone."""
        self.owed: list[Any] = []
        """Calls with more bytes in this engine that their sender has no credit for yet than that sender's `slack`."""
        self.tails: list[int] = []
        """Streams to be reset once everything queued on them has left."""
        self.waiting = 0
        """Bytes that the peer did not take at the last look; see `Backlog`."""
        self.fragments = 0
        """Reads that meant nothing by themselves: a piece of a frame, or frames that say nothing."""
        self.last_sid = 0
        """The newest stream that was opened: from here, or by a client."""
        self.flushed_sid = 0
        """The newest of them that was written: not a byte of a later one can have arrived anywhere."""

    def mark_dirty(self) -> None:
        """There is something to send. Hot callers test `dirty` themselves and save the call."""
        if not self.dirty and not self.closed:
            self.dirty = True
            # `Outbox.add` written out: its frame, twice a call, is 1 % of it.
            outbox = self.outbox
            if not outbox.pending:
                outbox.schedule()
            outbox.pending.append(self)

    # asyncio.BufferedProtocol

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002 - the event loop's wish, not its demand
        """Where the event loop shall put the next bytes. It tells of them before it asks on behalf of anybody else."""
        return self.room

    def buffer_updated(self, nbytes: int) -> None:
        """So many bytes are there: take them, and hand out what they mean."""
        if self.closed:
            return
        data = ARRIVALS[:nbytes]
        begun = self.outbox.turns.now() if nbytes >= MIN_ROOM else None
        clock = self.pass_clock
        if not clock.fresh:
            clock.time = clock.read()
            clock.fresh = True
        engine = self.engine
        try:
            engine.receive_data(data)
        except NGH2Error as error:
            self.on_engine_failure(error, bytes(data))
            if not self.outbox.pending:
                clock.fresh = False
            return
        events = engine.events()
        if events:
            self._dispatch(events)
        else:
            self.fragments += 1
        if begun is not None:
            self._take_turns(nbytes, begun)
        if not self.dirty:
            outbox = self.outbox
            if not self.closed and engine.want_write:
                self.dirty = True
                outbox.add(self)
            elif not outbox.pending:
                clock.fresh = False

    def _take_turns(self, nbytes: int, begun: float) -> None:
        """The peer has said much: let others speak in between, if there is more, and not longer than fair."""
        wire = self.wire
        if self.closed or wire is None:
            return
        turns = self.outbox.turns
        seconds = turns.now() - begun
        room = len(self.room)
        self.room = ARRIVALS[: fair_room(room, nbytes, seconds)]
        self.turn += seconds
        if nbytes < room:
            self.turn = 0.0
        elif self.turn >= FAIR:
            self.turn = 0.0
            wire.pause_reading()
            turns.wait(self)

    def read_on(self) -> None:
        """It is this connection's turn again."""
        if self.wire is not None and not self.closed:
            self.wire.resume_reading()

    def flush(self) -> None:
        """Write out what the engine has to say; give back the credit for what it took."""
        self.dirty = False
        wire = self.wire
        paused = self.paused  # not tested directly: writing may change it, which mypy would not believe
        if paused or self.closed or wire is None:
            if wire is not None and not self.closed:
                self._weigh(wire)
            return
        engine = self.engine
        data = engine.data_to_send()
        self.flushed_sid = self.last_sid
        if data:
            wire.write(data)
        events = engine.events()
        if events:
            self._dispatch(events)
        # A write may have filled the transport's buffer: then nothing was taken yet.
        if not self.closed and (self.owed or self.tails or self.waiting or engine.queued_body_size()):
            if self.paused:
                self._weigh(wire)
                return
            self.settle()
            if self.tails:
                self._reset_tails()

    def _weigh(self, wire: Wire) -> None:
        """Account for what waits while the transport is full."""
        self.outbox.backlog.put(self, self.engine.queued_body_size() + wire.get_write_buffer_size())

    def _dispatch(self, events: list[Event]) -> None:
        if type(events[-1]) is ConnectionClosed:
            # The engine takes no more calls although earlier events are still to be told: nothing may be asked of it.
            self.closed = True
        handlers = self._handlers
        for event in events:
            try:
                handlers[type(event)](self, event)
            except LimitExceeded as exceeded:
                self.on_limit(exceeded)
                return
            except Exception as error:
                self.on_handler_failure(event, error)

    def reset(self, stream_id: int, code: int) -> None:
        """Reset the stream at once; data queued on it is dropped. Nothing happens if the connection is closed."""
        if not self.closed:
            self.engine.reset_stream(stream_id, code)
            self.mark_dirty()

    def reset_after_tail(self, stream_id: int) -> None:
        """Reset the stream with NO_ERROR once everything queued on it, trailers included, has left (RFC 9113, 8.1)."""
        self.tails.append(stream_id)
        self.mark_dirty()

    def _reset_tails(self) -> None:
        engine = self.engine
        remaining = []
        for stream_id in self.tails:
            try:
                # With a window at zero the engine holds back trailers even when no data is queued.
                open_windows = engine.stream_remote_window_size(stream_id) > 0 and engine.remote_window_size > 0
            except StreamUnavailableError:
                continue
            if open_windows and not engine.queued_body_size(stream_id):
                engine.reset_stream(stream_id, ErrorCode.NO_ERROR)
                self.mark_dirty()
            else:
                remaining.append(stream_id)
        self.tails = remaining

    def settle(self) -> None:
        """Return credit for the bytes in `owed` that have left this engine."""
        raise NotImplementedError

    def excess(self, limit: int) -> int:
        """See `Holder.excess`."""
        raise NotImplementedError

    def shed(self, amount: int) -> int:
        """See `Holder.shed`."""
        queued = self.engine.queued_body_size()
        given_up = self.give_up_calls(amount)
        wire = self.wire
        if not self.paused or self.closed or wire is None:
            return given_up
        # Only in an output pass the engine lets go of what it holds for streams that were reset. Resets go out before
        # data, so it takes but a few small pieces, although the transport is full.
        if wire.get_write_buffer_size() > self.outbox.backlog.max_per_connection:
            self.abort()
            return given_up
        for _ in range(AHEAD_PIECES):
            data = self.engine.data_to_send(AHEAD)
            self.flushed_sid = self.last_sid
            if data:
                wire.write(data)
            if events := self.engine.events():
                self._dispatch(events)
            if self.closed or self.engine.queued_body_size() <= queued - given_up:
                break
        return given_up

    def give_up_calls(self, amount: int) -> int:
        """End calls for which the engine holds `amount` bytes or more, as far as there are such. Returns how many."""
        raise NotImplementedError

    def on_limit(self, error: LimitExceeded) -> None:
        """The peer went beyond a limit: give up the connection."""
        raise NotImplementedError

    def on_engine_failure(self, error: NGH2Error, data: bytes) -> None:
        """The engine gave up on the peer's bytes `data` and can say nothing more."""
        raise NotImplementedError

    def on_handler_failure(self, event: Event, error: Exception) -> None:
        """A bug of ours met `event`. It must cost one call at most: the connection carries those of many clients."""
        raise NotImplementedError

    def fail(self, error: Exception) -> None:
        """Give up this connection because of a bug of ours."""
        raise NotImplementedError

    def end_calls(self) -> None:
        """The connection is of no more use: its calls end, or move on. May be called twice."""
        raise NotImplementedError

    def pause_writing(self) -> None:
        """The transport's buffer is above its high-water mark."""
        self.paused = True

    def resume_writing(self) -> None:
        """The transport's buffer has drained."""
        self.paused = False
        self.mark_dirty()

    def close(self) -> None:
        """End the calls, and close the transport after what was written has left. No more engine calls from here on."""
        self._end()
        if self.wire is not None:
            self.wire.close()

    def abort(self) -> None:
        """End the calls, and close the transport at once. No more engine calls from here on."""
        self._end()
        if self.wire is not None:
            self.wire.abort()

    def _end(self) -> None:
        self.closed = True
        if self.waiting:
            self.outbox.backlog.put(self, 0)
        self.end_calls()
