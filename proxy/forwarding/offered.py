"""A call as servers get it: offered to one after the other, until one begins its response.

Rules of this file:

1. `endpoint` has the call, parked in its pool or attached to a connection; `up` is that connection.
2. A call is offered while its `buffer` is whole, and to one server at a time.
3. The first response headers commit the call to its server: `buffer` is dropped. Until then a failed attempt may be
   replayed on the next server, if `Walk.may_move` says so.
4. An attempt that failed is left (`_leave`) before the next one begins.
"""

from __future__ import annotations

from functools import partial
from typing import Final

from proxy.cluster.endpoint import Endpoint
from proxy.forwarding.answered import AnsweredCall
from proxy.forwarding.headers import GRPC_TIMEOUT, PUSHBACK, REQUEST_ID, Headers, read_refusal, sole_status
from proxy.forwarding.peers import Upstream
from proxy.forwarding.retry import Outcome
from proxy.forwarding.stats import CANCELLED
from proxy.forwarding.walk import Walk
from proxy.grpc_wire.status import Status, trailers_only
from proxy.grpc_wire.timeout import format_timeout
from proxy.http2 import ErrorCode, NeverIndexedHeader

MAX_PUSHBACK: Final = 10.0
"""Seconds that a server may tell a call to wait before it is tried again; if it asks for more, the client is told."""


class OfferedCall(AnsweredCall):
    """See the module."""

    __slots__ = ()

    # To a server.

    def _offer(self, endpoint: Endpoint) -> None:
        """Give the call to one server's pool, which attaches it to a connection, parks it, or fails the attempt."""
        forwarder = self.forwarder
        if endpoint.active >= endpoint.max_calls:
            why = f"{endpoint.id} has {endpoint.active} calls under way"
            self._turn_away("calls_per_endpoint", Status.RESOURCE_EXHAUSTED, why)
            return
        self.endpoint = endpoint
        endpoint.active += 1
        forwarder.pools[endpoint].submit(self)

    def _offer_next(self, walk: Walk) -> None:
        """Walk to the next server; with none left, the call fails."""
        forwarder = self.forwarder
        detector = forwarder.detector
        quarantined = detector.quarantined_for(self.key, forwarder.now()) if detector.quarantined else 0.0
        endpoint = None if quarantined else walk.next()
        if endpoint is not None:
            if walk.outcome is not None:
                forwarder.stats.retries[walk.outcome] += 1
            self._offer(endpoint)
        elif walk.answer is not None:
            self._pass_on(walk.answer)
        elif quarantined:
            self._turn_back(quarantined)
        else:
            self.refuse(Status.UNAVAILABLE, f"no server could take the call ({walk.story()})")

    def _walk(self) -> Walk:
        """The way on from the first choice, which has failed."""
        walk = self.walk
        if walk is None:
            snapshot = self.snapshot
            assert snapshot is not None  # noqa: S101 - the first choice came from it
            walk = self.walk = Walk(self.forwarder, snapshot, snapshot.candidates(self.key))
        return walk

    def _turn_back(self, seconds: float) -> None:
        """End the call because its key is quarantined for so long."""
        why = f"this chat failed on two servers in a row and is quarantined for {seconds:.0f} s"
        # A negative pushback: the client shall not try again (gRFC A6).
        self._reply([*trailers_only(Status.UNAVAILABLE, why), (PUSHBACK, b"-1")])

    # From the pool.

    def attach(self, up: Upstream) -> None:
        """Send the request on `up`: its headers, and the body so far. Raises ConnectionClosingError, with nothing
        changed, if the connection takes no more streams.
        """
        if self.head.size > up.max_header_list:
            # Sent all the same, it would end the server's connection, and everybody's calls with it.
            why = f"the server takes {up.max_header_list} bytes of metadata at most"
            self._exceeded("metadata_for_server", why)
            self.refuse(Status.RESOURCE_EXHAUSTED, why)
            return
        engine = up.engine
        buffer = self.buffer
        assert buffer is not None  # noqa: S101 - a call is only offered while it can be sent whole
        if not buffer:
            sid = engine.send_request(self._request_headers(), end_stream=self.request_ended)
        else:
            sid = engine.send_request(self._request_headers())
            for data in buffer[:-1]:
                engine.send_data(sid, data)
            engine.send_data(sid, buffer[-1], end_stream=self.request_ended)
        self.up = up
        self.up_sid = up.last_sid = sid
        per_try_timeout = self.head.route.per_try_timeout
        if per_try_timeout is not None:
            self._stop_try()
            self.try_timer = TryTimer(self, per_try_timeout)
        up.calls[sid] = self
        if self.request_unacked > self.down.slack or self.buffered > self.forwarder.small_buffer:
            up.owed.append(self)
        if not up.dirty:
            up.mark_dirty()

    def _request_headers(self) -> Headers:
        head = self.head
        headers = head.headers
        deadline = self.deadline
        if deadline is not None:
            now = self.forwarder.now()
            if now > self.started:
                # Never indexed: a value that no other call has would push everything else out of the HPACK table.
                headers = (*headers, NeverIndexedHeader(GRPC_TIMEOUT, format_timeout(max(deadline - now, 1e-9))))
            elif self.client_timeout is None:
                headers = head.with_route_timeout
            else:
                headers = (*headers, NeverIndexedHeader(GRPC_TIMEOUT, self.client_timeout))
        if head.wants_request_id:
            if not self.request_id:
                self.request_id = next(self.forwarder.request_ids)
            headers = (*headers, NeverIndexedHeader(REQUEST_ID, self.request_id))
        return headers if self.walk is None else self.walk.with_history(headers, self.head, self.key, self.endpoint)

    def take_back(self, limit: int) -> int:
        """Leave the connection that refused the call, to wait for another stream of the same server.

        Returns how often it has done so; 0, with nothing changed, if it cannot be sent again or has `limit` times.
        """
        walk = self._walk()
        if self.buffer is None or walk.refusals >= limit:
            return 0
        walk.refusals += 1
        self.up = None
        return walk.refusals

    # From the upstream connection.

    def attempt_failed(
        self, outcome: Outcome, why: str, status: Status = Status.UNAVAILABLE, *, blame: bool = False
    ) -> None:
        """The server did not answer: `why`, for people. Moves on to the next server if it may, else ends the call with
        `status`. The upstream stream is gone already. `blame`: it counts as a failure of the server.
        """
        endpoint = self.endpoint
        assert endpoint is not None  # noqa: S101 - there was an attempt
        self.forwarder.stats.attempt_failures[endpoint.id, outcome] += 1
        detector = self.forwarder.detector
        if outcome is Outcome.LOST and not self.response_started:
            detector.lost(endpoint, self.key, self.forwarder.now())
        if blame:
            detector.failed(endpoint, self.key, self.forwarder.now())
        if self.response_started:
            self.refuse(status, f"{endpoint.id}: {why}")
            return
        if outcome is Outcome.OVERLOADED:
            self._turn_away("waiting_calls", status, f"{endpoint.id}: {why}")
            return
        if outcome is Outcome.UNPROCESSED and endpoint.available and self._resubmit_once():
            # Its GOAWAY may only mean a new connection (nginx after 1,000 requests): the chat stays with its server.
            self.forwarder.pools[endpoint].submit(self)
            return
        walk = self._leave(endpoint, why, outcome)
        if self.buffer is not None and walk.may_move(outcome, self.head, endpoint, blame=blame):
            self._offer_next(walk)
        else:
            self.refuse(status, f"{endpoint.id}: {why}")

    def _resubmit_once(self) -> bool:
        walk = self._walk()
        if self.buffer is None or walk.resubmitted:
            return False
        walk.resubmitted = True
        self.up = None
        return True

    def _leave(self, endpoint: Endpoint, why: str, outcome: Outcome) -> Walk:
        """Nothing more is expected of `endpoint`."""
        walk = self._walk()
        walk.leave(endpoint, why, outcome)
        self.status = CANCELLED  # what it answered is not what the client gets
        self.reported = False  # each answers for itself
        endpoint.active -= 1
        self.endpoint = None
        self.up = None
        if self.try_timer is not None:
            self._stop_try()
        return walk

    def response_headers(self, headers: Headers, *, end_stream: bool) -> None:
        """The server's response begins (or, a trailers-only response, is all there)."""
        if (end_stream or headers[0][1] != b"200") and self._is_dealt_with(headers, end_stream=end_stream):
            return
        self.buffer = None
        if self.kept:
            self._uncount()
        if self.try_timer is not None:
            self._stop_try()
        if self.walk is not None:
            self.walk.arrived(self.endpoint, self.key)
        forwarder = self.forwarder
        if forwarder.detector.troubled:
            forwarder.detector.began(self.key)
        down = self.down
        # See `response_trailers`.
        if down.fitting_headers is not None and headers != down.fitting_headers and self._has_long_headers(headers):
            if not (end_stream and self.request_ended):
                self._abandon(ErrorCode.CANCEL)
            self._refuse_long(headers)
            return
        self.response_started = True
        down.engine.send_response(self.sid, headers, end_stream=end_stream)
        if not down.dirty:
            down.mark_dirty()
        if end_stream:
            self._response_ended()

    def _is_dealt_with(self, headers: Headers, *, end_stream: bool) -> bool:
        """Whether this answer, which is no beginning of a good response, is not to be passed on."""
        if self._answer_is_repeated(headers, end_stream=end_stream):
            return True
        http = headers[0][1]
        status = sole_status(headers)
        self._report(status, http)
        if status is None:
            # Not from a gRPC server. Its body, if any, is nothing that the client could make use of.
            if not (end_stream and self.request_ended):
                self._abandon(ErrorCode.CANCEL)
            self.refuse(*self._missing_status(http))
        return status is None

    def _answer_is_repeated(self, headers: Headers, *, end_stream: bool) -> bool:
        """The server answered that it cannot serve the call now: leave it and try again, if all the rules allow."""
        up = self.up
        endpoint = self.endpoint
        if up is None or endpoint is None or self.buffer is None or not self.head.route.repeatable:
            return False
        why, pushback = read_refusal(headers, server_is_stopping=up.draining)
        if why is None or pushback is None:
            return False
        self._report(sole_status(headers), headers[0][1])
        if pushback > self._patience():
            return False
        if pushback:
            if not end_stream:
                return False  # the answer could not be kept for the client
        elif not self._walk().may_move(Outcome.ANSWERED, self.head, endpoint):
            return False
        up.calls.pop(self.up_sid)
        if not (end_stream and self.request_ended):
            up.reset(self.up_sid, ErrorCode.CANCEL)
        self.forwarder.stats.attempt_failures[endpoint.id, Outcome.ANSWERED] += 1
        walk = self._leave(endpoint, why, Outcome.ANSWERED)
        walk.answer = headers if end_stream else None
        if pushback:
            self.pause = self.forwarder.call_later(pushback, partial(self._after_pushback, endpoint))
        else:
            self._offer_next(walk)
        return True

    def _pass_on(self, answer: Headers) -> None:
        """Give the client the answer of a server that was left, for want of a better one."""
        if self.down.fitting_headers is not None and self._has_long_headers(answer):
            self._refuse_long(answer)
        else:
            self._reply(answer)

    def _patience(self) -> float:
        """Seconds that a server may tell the call to wait."""
        if self.deadline is None:
            return MAX_PUSHBACK
        return min(MAX_PUSHBACK, self.deadline - self.forwarder.now())

    def _after_pushback(self, endpoint: Endpoint) -> None:
        self.pause = None
        walk = self._walk()
        if walk.may_move(Outcome.ANSWERED, self.head, endpoint):
            self._offer_next(walk)
        elif walk.answer is not None:
            self._pass_on(walk.answer)

    def try_timed_out(self) -> None:
        """The server did not begin its response within the route's `per_try_timeout`."""
        up = self.up
        endpoint = self.endpoint
        self.try_timer = None
        if up is None or endpoint is None or self.buffer is None:
            return
        walk = self._walk()
        if len(walk.left) + 1 >= self.forwarder.max_attempts:
            return
        self.forwarder.detector.failed(endpoint, self.key, self.forwarder.now())
        following = walk.next(avoid=endpoint)
        if following is not None and walk.may_move(Outcome.TIMED_OUT, self.head, endpoint):
            up.calls.pop(self.up_sid)
            up.reset(self.up_sid, ErrorCode.CANCEL)
            self.forwarder.stats.attempt_failures[endpoint.id, Outcome.TIMED_OUT] += 1
            self.forwarder.stats.retries[Outcome.TIMED_OUT] += 1
            self._leave(endpoint, f"did not answer within {self.head.route.per_try_timeout:g} s", Outcome.TIMED_OUT)
            self._offer(following)
        else:
            walk.put_back(following)

    def _abandon(self, code: ErrorCode) -> None:
        """Leave the server alone from here on: nothing of this call matters any more."""
        up = self.up
        if up is not None:
            up.reset(self.up_sid, code)
        elif self.endpoint is not None:
            self.forwarder.pools[self.endpoint].forget(self)
        else:
            self.forwarder.own_health.forget(self)


class TryTimer:
    """Watches one attempt of a call on a route with a `per_try_timeout`."""

    __slots__ = ("_bucket", "_call")

    def __init__(self, call: OfferedCall, seconds: float) -> None:
        self._call = call
        now = call.forwarder.now()
        self._bucket = call.forwarder.deadlines.add(self, now + seconds, now)

    def deadline_exceeded(self) -> None:
        """The attempt's time is over."""
        self._call.try_timed_out()

    def cancel(self) -> None:
        """The attempt is over."""
        self._bucket.discard(self)
