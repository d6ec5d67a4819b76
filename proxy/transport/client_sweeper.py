"""Looks at every client's connection now and then, for what takes too long.

A timer per connection, let alone per call, would cost every one of them; a sweep costs those a fraction of a
microsecond a second. All times are therefore noticed late, by up to a quarter of the shortest of them. The sweep goes
over the connections in slices, so that ten thousand of them do not stop the loop at once.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

from proxy.grpc_wire.status import Status
from proxy.http2 import ErrorCode
from proxy.transport.client_clock import Stall
from proxy.transport.containment import contained
from proxy.transport.downstream import FRAME_PING
from proxy.transport.progress import Progress

if TYPE_CHECKING:
    from collections.abc import Iterable

    from proxy.forwarding.call import Call
    from proxy.forwarding.limits import LimitWatch
    from proxy.transport.downstream import DownstreamConnection
    from proxy.transport.reactor import Handle, Reactor
    from proxy.transport.settings import ListenerSettings

SWEEPS: Final = 4
"""Looks during the shortest of the times."""
SLICES: Final = 10
"""Parts of a sweep."""
DRAIN_NOTICE: Final = 5.0
"""Seconds that a client gets to acknowledge the first GOAWAY of a drain; grpc-go waits as long."""
NEVER: Final = 3.2e9
"""Seconds; a hundred years."""


class ClientSweeper:
    """Sweeps `connections`, which others keep, from `start` until `stop`."""

    def __init__(
        self,
        settings: ListenerSettings,
        connections: Iterable[DownstreamConnection],
        watch: LimitWatch,
        reactor: Reactor,
    ) -> None:
        self._connections = connections
        self._watch = watch
        self._reactor = reactor
        self._round: list[DownstreamConnection] = []
        self._slice = 0
        self._timer: Handle | None = None
        self.configure(settings)

    def configure(self, settings: ListenerSettings) -> None:
        """Go by these settings from the next look on."""
        self._settings = settings
        shortest = min(
            settings.first_message_timeout,
            settings.preface_timeout,
            settings.settings_timeout,
            settings.frame_timeout,
            settings.stall_timeout,
        )
        self.period = shortest / SWEEPS
        """Seconds between two looks at the same connection."""
        # One more: the first look may come right after the beginning.
        self._first_message_sweeps = math.ceil(settings.first_message_timeout / self.period) + 1
        self._stall_sweeps = math.ceil(settings.stall_timeout / self.period) + 1

    def start(self) -> None:
        """Begin."""
        self._timer = self._reactor.call_later(self.period / SLICES, self._sweep)

    def stop(self) -> None:
        """End. Nothing happens if it was not started."""
        if self._timer is not None:
            self._timer.cancel()

    def _sweep(self) -> None:
        if not self._slice:
            self._round = list(self._connections)
        now = self._reactor.now()
        for connection in self._round[self._slice :: SLICES]:
            if not connection.closed:
                try:
                    self.look_at(connection, now)
                except Exception as error:
                    connection.fail(error)
        self._slice = (self._slice + 1) % SLICES
        self.start()

    def opened(self, connection: DownstreamConnection) -> None:
        """`connection` has just been accepted."""
        clock = connection.clock
        clock.opened_at = now = self._reactor.now()
        # gRFC A9: 10 % of jitter, so that connections opened together do not end together.
        clock.expires_at = now + (self._settings.max_connection_age or NEVER) * (0.9 + self._reactor.random() / 5)

    def look_at(self, connection: DownstreamConnection, now: float) -> None:
        """One look at one connection that is not closed."""
        if not connection.settled and self._is_late_to_begin(connection, now):
            return
        if connection.fragments != connection.clock.fragments or connection.clock.pinged_at:
            self._look_for_fragments(connection, now)
        self._look_at_age(connection, now)
        waiting = self._look_at_calls(connection) if connection.calls else []
        wire = connection.wire
        buffered = wire is not None and wire.get_write_buffer_size() > 0
        if waiting or buffered:
            self._look_for_stalls(connection, waiting, now, buffered=buffered)
        elif connection.clock.progress is not None:
            connection.clock.progress.end(connection)
            connection.clock.progress = None
            connection.clock.blocked_since = 0.0
            connection.stalled.clear()

    def _is_late_to_begin(self, connection: DownstreamConnection, now: float) -> bool:
        settings = self._settings
        clock = connection.clock
        if not connection.greeted:
            late = now - clock.opened_at >= settings.preface_timeout
            if late:
                detail = f"no HTTP/2 preface and SETTINGS within {settings.preface_timeout:g} s"
                connection.cut_off("preface_timeout", detail, ErrorCode.PROTOCOL_ERROR)
            return late
        if not clock.greeted_at:
            clock.greeted_at = now
        late = now - clock.greeted_at >= settings.settings_timeout
        if late:
            # RFC 9113, 6.5.3: a sender whose SETTINGS are not acknowledged may say SETTINGS_TIMEOUT.
            detail = f"our SETTINGS were not acknowledged within {settings.settings_timeout:g} s"
            connection.cut_off("settings_timeout", detail, ErrorCode.SETTINGS_TIMEOUT)
        return late

    def _look_for_fragments(self, connection: DownstreamConnection, now: float) -> None:
        """A frame, or a header block, that comes in pieces may never end, and the engine does not tell. But nobody can
        answer a PING in the middle of one (RFC 9113, 4.1 and 4.3). Over a slow line the answer may stand behind many
        seconds of DATA: while that comes, the client is in the middle of nothing for long.
        """
        clock = connection.clock
        window = connection.engine.local_window_size
        if not clock.pinged_at:
            clock.fragments = connection.fragments
            clock.pinged_at = now
            clock.window = window
            connection.engine.ping(FRAME_PING)
            connection.mark_dirty()
        elif window != clock.window:
            clock.pinged_at = now
            clock.window = window
        elif now - clock.pinged_at >= self._settings.frame_timeout:
            detail = f"in the middle of a frame or of a header block for {self._settings.frame_timeout:g} s"
            connection.cut_off("frame_timeout", detail)

    def _look_at_age(self, connection: DownstreamConnection, now: float) -> None:
        settings = self._settings
        clock = connection.clock
        if connection.calls or connection.last_sid != clock.newest_sid:
            clock.idle_since = 0.0
        elif not clock.idle_since:
            clock.idle_since = now
        clock.old_sid, clock.newest_sid = clock.newest_sid, connection.last_sid
        if clock.noticed_at:
            if now - clock.noticed_at >= DRAIN_NOTICE:
                connection.finish_drain()
            if settings.max_connection_age_grace and now - clock.noticed_at >= settings.max_connection_age_grace:
                for call in [each for each in connection.calls.values() if not each.done]:
                    with contained(call):
                        call.shut_down("the connection is too old")
        elif connection.noticed:
            pass  # the listener drains
        elif now >= clock.expires_at:
            self._drain(connection, "connection_age", "asked to connect afresh, because of its age", now)
        elif settings.idle_timeout and clock.idle_since and now - clock.idle_since >= settings.idle_timeout:
            self._drain(connection, "idle_timeout", f"no calls for {settings.idle_timeout:g} s", now)

    def _drain(self, connection: DownstreamConnection, limit: str, detail: str, now: float) -> None:
        self._watch.exceeded(limit, f"client {connection.client or 'unknown'}: {detail}")
        connection.clock.noticed_at = now
        connection.start_drain()

    def _look_at_calls(self, connection: DownstreamConnection) -> Iterable[Call]:
        """Refuses those whose first message does not come. Returns those whose bytes wait for the client."""
        first_message_sweeps = self._first_message_sweeps
        waiting = dict.fromkeys(connection.owed)
        for call in tuple(connection.calls.values()):
            if call.done:
                waiting[call] = None  # its last bytes, or only its trailers, wait for the client's window
            elif not call.routed and call.swept(first_message_sweeps):
                with contained(call):
                    call.refuse(Status.DEADLINE_EXCEEDED, "the first message did not come in time")
                detail = f"no first message within {self._settings.first_message_timeout:g} s"
                self._watch.exceeded("first_message_timeout", f"client {connection.client or 'unknown'}: {detail}")
        return waiting

    def _look_for_stalls(
        self, connection: DownstreamConnection, waiting: Iterable[Call], now: float, *, buffered: bool
    ) -> None:
        """A client may be slow. It stalls when for `stall_timeout` not one byte arrives of what its transport holds; or
        when, after all has arrived that was on its way before, not one leaves of a call that has some for it.
        """
        clock = connection.clock
        progress = clock.progress
        if progress is None:
            progress = clock.progress = Progress()
        moved = progress.look(connection)
        if moved or not buffered:
            clock.blocked_since = now
        elif now - clock.blocked_since >= self._settings.stall_timeout:
            self._stalls(connection, f"read nothing for {self._settings.stall_timeout:g} s")
            connection.abort()
            return
        queued_of = connection.engine.queued_body_size
        ahead = progress.delivered + progress.in_flight
        stalled = {}
        for call in waiting:
            queued = queued_of(call.sid)
            stall = connection.stalled.get(call)
            if stall is None or queued < stall.queued:
                stall = Stall(1, queued, ahead)
            elif moved and progress.delivered < stall.behind:
                stall = Stall(1, queued, stall.behind)
            else:
                stall = Stall(stall.sweeps + 1, queued, stall.behind)
            stalled[call] = stall
        connection.stalled = stalled
        for call in [call for call, stall in stalled.items() if stall.sweeps >= self._stall_sweeps]:
            del stalled[call]
            self._stalls(connection, f"took not one byte of a call in {self._settings.stall_timeout:g} s")
            connection.drop(call)

    def _stalls(self, connection: DownstreamConnection, detail: str) -> None:
        self._watch.exceeded("stall_timeout", f"client {connection.client or 'unknown'}: {detail}")
