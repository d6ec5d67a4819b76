"""How a call is answered, by its server or by the proxy itself, and how it ends.

Rules of this file:

1. The client gets one answer. Once the response has begun, what the proxy itself has to say comes as trailers.
2. Whoever ends a call before its server has answered leaves that server alone first (`_abandon`).
3. A call ends exactly once, in `_end`, which gives back whatever it has taken.
"""

from __future__ import annotations

from bisect import bisect_left
from contextlib import suppress
from typing import Final

from proxy.forwarding.buffered import BufferedCall
from proxy.forwarding.call_record import CallRecord, record_of
from proxy.forwarding.headers import PUSHBACK, Headers, cut_to, size_of, sole_status, with_status
from proxy.forwarding.stats import CALL_BOUNDS, UNKNOWN, Tally
from proxy.forwarding.walk import Walk
from proxy.grpc_wire.status import Status, from_http_status, trailers, trailers_only
from proxy.http2 import ErrorCode, StreamUnavailableError

RESPONSE_HEADERS: Final = ((b":status", b"200"), (b"content-type", b"application/grpc"))
UNAVAILABLE: Final = b"14"
HTTP_UNAVAILABLE: Final = frozenset({b"502", b"503", b"504"})


class AnsweredCall(BufferedCall):
    """See the module."""

    __slots__ = ()

    # By its server.

    def response_data(self, data: bytes, *, end_stream: bool) -> None:
        """A piece of the response body. `end_stream`: the last one, with no trailers after it."""
        down = self.down
        down.engine.send_data(self.sid, data)
        unacked = self.response_unacked
        self.response_unacked = grown = unacked + len(data)
        up = self.up
        if up is not None and grown > up.slack >= unacked:
            down.owed.append(self)
        if not down.dirty:
            down.mark_dirty()
        if end_stream:
            self.response_trailers(())

    def response_trailers(self, headers: Headers) -> None:
        """The response ends with its status. One is made up for it if it has none, or several."""
        down = self.down
        status = sole_status(headers)
        if status is None:
            headers = with_status(headers, *self._missing_status(b"200"))
        # Nearly always the same as the last: comparing them costs 50 ns, to add up their sizes 250 ns.
        if down.fitting_trailers is not None and headers != down.fitting_trailers and self._has_long_trailers(headers):
            self._report(status)
            if not self.request_ended:
                self._abandon(ErrorCode.CANCEL)
            self._refuse_long(headers)
            return
        down.engine.send_trailers(self.sid, headers)
        if not down.dirty:
            down.mark_dirty()
        self._report(status)
        if self.request_ended:
            self._end()
        else:
            self._response_ended()

    def _has_long_headers(self, headers: Headers) -> bool:
        """Whether they are more than the client takes; if not, they are remembered."""
        if size_of(headers) > self.down.max_header_list:
            return True
        self.down.fitting_headers = headers
        return False

    def _has_long_trailers(self, headers: Headers) -> bool:
        """Whether they are more than the client takes; if not, they are remembered."""
        if size_of(headers) > self.down.max_header_list:
            return True
        self.down.fitting_trailers = headers
        return False

    def _refuse_long(self, headers: Headers) -> None:
        """End the call instead of sending `headers`: some clients would end the connection, and all their calls with it
        (Netty does). gRPC's C-core gives the same status.
        """
        limit = self.down.max_header_list
        why = f"the response has {size_of(headers)} bytes of metadata, and the client takes {limit} at most"
        self._exceeded("metadata_for_client", why)
        self.refuse(Status.RESOURCE_EXHAUSTED, why)

    def _missing_status(self, http: bytes) -> tuple[Status, str]:
        """What a response with the HTTP status `http` counts as that does not say one grpc-status."""
        server = self.endpoint.id if self.endpoint is not None else "the server"
        return from_http_status(int(http)), f"{server}: answered HTTP {http.decode()} without one grpc-status"

    def _report(self, status: bytes | None, http: bytes = b"200") -> None:
        """Tell those who watch the servers how this one answered: its grpc-status, if there is one, and HTTP status."""
        self.status = status or UNKNOWN
        forwarder = self.forwarder
        detector = forwarder.detector
        endpoint = self.endpoint
        if endpoint is None or self.reported:
            return
        self.reported = True
        if status == UNAVAILABLE or (status is None and http in HTTP_UNAVAILABLE):
            again = self.walk is not None and self.walk.was_refused
            detector.failed(endpoint, self.key, forwarder.now(), again=again)
        elif detector.troubled:
            detector.succeeded(endpoint, self.key)
        if status == b"0" and forwarder.budget.tokens < forwarder.budget.max_tokens:
            forwarder.budget.succeeded()

    def _response_ended(self) -> None:
        if not self.request_ended:
            # The server answered without reading to the end. RFC 9113, 8.1: the client must get all of the response
            # before it is told to stop; the server needs no more.
            self.down.reset_after_tail(self.sid)
            up = self.up
            if up is not None:
                up.reset(self.up_sid, ErrorCode.CANCEL)
        self._end()

    # By us.

    def refuse(self, status: Status, message: str) -> None:
        """End the call with a status of our own."""
        self.forwarder.clock.tick()
        if self.response_started:
            self.status = b"%d" % status
            down = self.down
            headers = self._fitted(tuple(trailers(status, message)))
            if not headers:
                self._hang_up()
            elif not down.closed:
                down.engine.send_trailers(self.sid, headers)
                down.mark_dirty()
                if not self.request_ended:
                    down.reset_after_tail(self.sid)
            self._end()
        else:
            self._reply(trailers_only(status, message))

    def _turn_away(self, limit: str, status: Status, message: str) -> None:
        """End the call because of a limit on what is to do, and tell the client when to come back."""
        self._exceeded(limit, message)
        if self.response_started:  # by us: it watches our health, and goes on speaking
            self.refuse(status, message)
            return
        pushback = b"%d" % round(self.forwarder.limits.pushback * 1000)
        self._reply([*trailers_only(status, message), (PUSHBACK, pushback)])

    def _exceeded(self, limit: str, message: str) -> None:
        self.forwarder.watch.exceeded(limit, f"client {self.down.address or 'unknown'}: {message}")

    def _reply(self, headers: Headers | list[tuple[bytes, bytes]]) -> None:
        self.forwarder.clock.tick()
        self.status = sole_status(headers) or UNKNOWN
        down = self.down
        said = self._fitted(tuple(headers))
        if not said:
            self._hang_up()
        elif not down.closed:
            try:
                down.engine.send_response(self.sid, said, end_stream=True)
            except StreamUnavailableError:
                pass  # reset in the same bytes that opened it; its StreamClosed event is on its way
            else:
                down.mark_dirty()
                if not self.request_ended:
                    down.reset_after_tail(self.sid)
        self._end()

    def respond(self, message: bytes, *, last: bool) -> None:
        """Answer the call ourselves, with a length-prefixed message. `last`: and with OK."""
        down = self.down
        if down.fitting_headers is not None and self._has_long_headers(RESPONSE_HEADERS):
            self._abandon(ErrorCode.CANCEL)
            self._refuse_long(RESPONSE_HEADERS)
            return
        try:
            if not down.closed:
                down.engine.send_response(self.sid, RESPONSE_HEADERS)
                self.response_started = True
        except StreamUnavailableError:
            pass  # see `_reply`
        if not self.response_started:
            self.cancelled()
            return
        self.say(message)
        if last:
            self.refuse(Status.OK, "")

    def say(self, message: bytes) -> None:
        """One more message of an answer of ours."""
        self.down.engine.send_data(self.sid, message)
        self.down.mark_dirty()

    def _fitted(self, headers: Headers) -> Headers:
        """An answer of our own, as far as the client takes it. Empty: it does not even take a status."""
        headers = self._annotated(headers)
        return headers if self.down.fitting_headers is None else cut_to(headers, self.down.max_header_list)

    def _hang_up(self) -> None:
        """Answer a client that takes not even a status. gRPC reads the code as RESOURCE_EXHAUSTED."""
        self.status = b"%d" % Status.RESOURCE_EXHAUSTED
        with suppress(StreamUnavailableError):  # see `_reply`
            self.down.reset(self.sid, ErrorCode.ENHANCE_YOUR_CALM)

    def _annotated(self, headers: Headers) -> Headers:
        """Headers with a status of ours, and what else the client wants to be told."""
        return headers

    # Cut short.

    def cancelled(self) -> None:
        """The client reset the stream, or is gone."""
        self.forwarder.clock.tick()
        self._abandon(ErrorCode.CANCEL)
        self._end()

    def deadline_exceeded(self) -> None:
        """The time is over: free the server, answer the client."""
        self.bucket = None
        self._abandon(ErrorCode.CANCEL)
        self.refuse(Status.DEADLINE_EXCEEDED, "deadline exceeded at the proxy")

    def drop(self, code: ErrorCode) -> None:
        """The client does not take its bytes: free both sides. The client gets `code`, as trailers would wait too."""
        self.forwarder.clock.tick()
        self._abandon(ErrorCode.CANCEL)
        self.down.reset(self.sid, code)
        self._end()

    def overrun(self, why: str) -> None:
        """The server does not take its bytes, and they have become too many."""
        self._abandon(ErrorCode.CANCEL)
        self.refuse(Status.RESOURCE_EXHAUSTED, why)

    def shut_down(self, why: str = "the proxy is shutting down") -> None:
        """The proxy, or the client's connection, ends and cannot wait for this call."""
        self._abandon(ErrorCode.CANCEL)
        self.refuse(Status.UNAVAILABLE, why)

    def broken(self) -> None:
        """A bug of the proxy met this call: end it on both sides, with as little of our own code as can be."""
        if not self.done:
            try:
                self._abandon(ErrorCode.INTERNAL_ERROR)
                self.down.reset(self.sid, ErrorCode.INTERNAL_ERROR)
            finally:
                self._end()

    def _abandon(self, code: ErrorCode) -> None:
        """Leave the server alone from here on: nothing of this call matters any more. See `OfferedCall`."""
        raise NotImplementedError

    # The end.

    def _end(self) -> None:  # noqa: C901 - a call has many things to give back; a method more costs every call 1 %
        """The only end of a call."""
        self.done = True
        forwarder = self.forwarder
        forwarder.active -= 1
        if forwarder.counting:
            tallies = self.head.tallies
            try:
                tally = tallies[self.endpoint]
            except KeyError:
                tally = tallies[self.endpoint] = Tally()
            if self.status != b"0":
                tally.add(self.status)
            seconds = forwarder.clock.time - self.arrived
            tally.seconds += seconds
            tally.buckets[bisect_left(CALL_BOUNDS, seconds)] += 1
            if seconds > forwarder.slow:
                forwarder.report_slow(self._record(seconds))
        up = self.up
        if up is not None:
            up.calls.pop(self.up_sid, None)
            if 0 < self.response_unacked <= up.slack:
                self.pay_response(self.response_unacked)
        if self.endpoint is not None:
            self.endpoint.active -= 1
            self.endpoint = None
        if self.bucket is not None:
            self.bucket.discard(self)
            self.bucket = None
        self.buffer = None
        if self.kept:
            self._uncount()
        if self.walk is not None:
            self._end_walk(self.walk)
        if self.try_timer is not None:
            self._stop_try()
        if forwarder.calls_by_chat is not None and self.key:
            self._uncount_chat(forwarder.calls_by_chat)
        if self.request_unacked:
            self.pay_request(self.request_unacked)

    def _end_walk(self, walk: Walk) -> None:
        walk.end()
        if self.pause is not None:
            self.pause.cancel()

    def _stop_try(self) -> None:
        if self.try_timer is not None:
            self.try_timer.cancel()
            self.try_timer = None

    def _uncount_chat(self, calls: dict[bytes, int]) -> None:
        under_way = calls.pop(self.key, 1) - 1  # none, if the limit is younger than the call
        if under_way:
            calls[self.key] = under_way

    def _record(self, seconds: float) -> CallRecord:
        """What is known of it, before it ends."""
        return record_of(self, seconds)
