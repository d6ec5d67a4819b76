"""The life of one call, from its first header to its last.

Rules of this file:

1. A call is the only object made per call. It has no task, future or timer of its own; connections call its methods.
2. `up` says where the request goes: while it is None, request bytes wait in `buffer`, and nothing else does.
3. The first response headers commit the call to its server: `buffer` is dropped. Until then a failed attempt may be
   replayed on the next server, if `Walk.may_move` says so.
4. Bytes are owed to their sender (`request_unacked`, `response_unacked`) until the other side's engine has sent them;
   the connections settle that after each flush. Up to the sender's `slack` nobody watches them: the call pays at its
   end. A call that ends early pays at once.
5. A call ends exactly once, in `_end`.
"""

from __future__ import annotations

from bisect import bisect_left
from functools import partial
from typing import TYPE_CHECKING, Final

from proxy.cluster.endpoint import Endpoint
from proxy.cluster.snapshot import ClusterSnapshot
from proxy.forwarding.call_record import CallRecord, record_of
from proxy.forwarding.deadlines import Timed
from proxy.forwarding.failback import PREVIOUS_OWNER
from proxy.forwarding.headers import (
    GRPC_TIMEOUT,
    PREVIOUS_ATTEMPTS,
    PUSHBACK,
    REQUEST_ID,
    Headers,
    RequestHead,
    read_refusal,
    sole_status,
    with_status,
)
from proxy.forwarding.peers import Downstream, Upstream
from proxy.forwarding.retry import Outcome
from proxy.forwarding.stats import CALL_BOUNDS, CANCELLED, UNKNOWN, Tally
from proxy.forwarding.walk import Walk
from proxy.grpc_wire.errors import CallRejected
from proxy.grpc_wire.fields import ABSENT, PENDING
from proxy.grpc_wire.message import FirstMessage, find_key
from proxy.grpc_wire.status import Status, from_http_status, trailers, trailers_only
from proxy.grpc_wire.timeout import InvalidTimeout, format_timeout, parse_timeout
from proxy.http2 import ErrorCode, NeverIndexedHeader, StreamUnavailableError

if TYPE_CHECKING:
    from proxy.forwarding.forwarder import Forwarder, Handle

ACCEPT_ENCODING: Final = (b"grpc-accept-encoding", b"identity,deflate,gzip")
RESPONSE_HEADERS: Final = ((b":status", b"200"), (b"content-type", b"application/grpc"))
UNAVAILABLE: Final = b"14"
HTTP_UNAVAILABLE: Final = frozenset({b"502", b"503", b"504"})
MAX_PUSHBACK: Final = 10.0
"""Seconds that a server may tell a call to wait before it is tried again; if it asks for more, the client is told."""


class Call:
    """One call. Made by the downstream connection when request headers arrive, followed by `start`."""

    __slots__ = (
        "arrived",
        "bucket",
        "buffer",
        "buffered",
        "client_timeout",
        "deadline",
        "done",
        "down",
        "endpoint",
        "first_message",
        "forwarder",
        "head",
        "kept",
        "key",
        "pause",
        "reported",
        "request_ended",
        "request_id",
        "request_unacked",
        "response_started",
        "response_unacked",
        "routed",
        "sid",
        "snapshot",
        "started",
        "status",
        "sweeps",
        "try_timer",
        "up",
        "up_sid",
        "walk",
    )

    def __init__(
        self, forwarder: Forwarder, down: Downstream, sid: int, head: RequestHead, client_timeout: bytes | None
    ) -> None:
        self.forwarder = forwarder
        self.down = down
        self.sid = sid
        self.head = head
        self.client_timeout = client_timeout
        """`grpc-timeout` as the client sent it; None too if the route's own timeout is shorter."""
        self.arrived = forwarder.clock.time
        """By the clock of the passes, as far as calls are counted."""
        self.started = 0.0
        self.deadline: float | None = None
        self.bucket: set[Timed] | None = None
        """Where the deadline wheel holds it."""

        self.routed = False
        """The key is known, or known to be missing."""
        self.key = b""
        self.snapshot: ClusterSnapshot | None = None
        self.first_message: FirstMessage | None = None
        self.up: Upstream | None = None
        self.up_sid = 0
        self.endpoint: Endpoint | None = None
        """The server that has been given the call, attached or parked."""
        self.walk: Walk | None = None
        """The way along the ring, once the first choice has failed."""
        self.try_timer: TryTimer | None = None
        self.pause: Handle | None = None
        """Ends the wait that a server asked for."""
        self.sweeps = 0
        """How often the call was seen without its first message."""
        self.request_id = b""

        self.buffer: list[bytes] | None = []
        """All of the request body so far; None once it cannot be sent again."""
        self.buffered = 0
        self.kept = 0
        """Bytes of it that count against the total of all calls."""
        self.request_ended = False
        self.response_started = False
        self.status = CANCELLED
        """`grpc-status` that the client gets; until there is one, the client has gone before."""
        self.reported = False
        """Those who watch the servers know how it ended."""
        self.done = False
        self.request_unacked = 0
        self.response_unacked = 0

    # From the downstream connection.

    def start(self, *, end_stream: bool) -> None:
        """The request headers are here. `end_stream`: and that is all."""
        forwarder = self.forwarder
        forwarder.active += 1
        head = self.head
        self.request_ended = end_stream
        if head.rejection:
            self._reject(head)
            return
        if forwarder.active > forwarder.max_calls:
            self._turn_away("calls", Status.UNAVAILABLE, f"the proxy has {forwarder.max_calls} calls under way")
            return
        timeout = head.route.timeout
        if self.client_timeout is not None:
            try:
                wanted = parse_timeout(self.client_timeout)
            except InvalidTimeout as error:
                self.refuse(Status.INVALID_ARGUMENT, str(error))
                return
            if timeout is None or wanted < timeout:
                timeout = wanted
            else:
                self.client_timeout = None
        if timeout is not None:
            self.started = now = forwarder.now()
            if not timeout:
                self.refuse(Status.DEADLINE_EXCEEDED, "the deadline had passed when the call arrived")
                return
            self.deadline = now + timeout
            self.bucket = forwarder.deadlines.add(self, self.deadline, now)
        if head.route.path is None:
            self._route(head.key)
        elif end_stream:
            self._route(b"")

    def request_data(self, data: bytes, *, end_stream: bool) -> None:
        """A piece of the request body. `end_stream`: the last one."""
        if end_stream:
            self.request_ended = True
        up = self.up
        if up is not None:
            if self.buffer is not None:
                self._keep(data)
            up.engine.send_data(self.up_sid, data, end_stream=end_stream)
            unacked = self.request_unacked
            self.request_unacked = grown = unacked + len(data)
            if grown > self.down.slack >= unacked:
                up.owed.append(self)
            if not up.dirty:
                up.mark_dirty()
            return
        self.request_unacked += len(data)
        buffer = self.buffer
        assert buffer is not None  # noqa: S101 - only dropped once there is an upstream
        buffer.append(data)
        self.buffered += len(data)
        if not self.routed:
            self._look_for_key(data, end_stream=end_stream)
        elif self.buffered > self.forwarder.small_buffer:
            self._hoard("its server")

    def swept(self, limit: int) -> bool:
        """Called now and then while the key is not known. Whether that was the `limit`th time."""
        self.sweeps += 1
        return self.sweeps >= limit

    def request_trailers(self) -> None:
        """The request ended with trailers. gRPC has none (Request -> Request-Headers *Length-Prefixed-Message EOS), so
        they are dropped and the end is passed on.
        """
        self.request_data(b"", end_stream=True)

    def cancelled(self) -> None:
        """The client reset the stream, or is gone."""
        self.forwarder.clock.tick()
        self._abandon(ErrorCode.CANCEL)
        self._end()

    # Routing.

    def _look_for_key(self, data: bytes, *, end_stream: bool) -> None:
        route = self.head.route
        path = route.path
        assert path is not None  # noqa: S101 - other routes are routed by their headers
        try:
            if self.first_message is None:
                # Nearly every call: the whole first message in one piece, the key in front.
                key = find_key(data, path, end_stream)
                if key is not None:
                    self._route(key)
                    return
                self.first_message = FirstMessage(path, self.head.encoding, self.forwarder.max_first_message)
            found = self.first_message.feed(data, end_stream)
        except CallRejected as rejected:
            if rejected.status is Status.RESOURCE_EXHAUSTED:
                self._exceeded("first_message_bytes", rejected.message)
            # gRPC "Compression": UNIMPLEMENTED for an unknown encoding says which ones are known.
            known = [ACCEPT_ENCODING] if rejected.status is Status.UNIMPLEMENTED else []
            self._reply([*trailers_only(rejected.status, str(rejected)), *known])
            return
        if found is PENDING:
            # The key may come after more than a window of bytes: they count as taken, under the limits of the message
            # and of all calls.
            if self._hoard("its key"):
                self.pay_request(self.request_unacked)
        elif found is ABSENT:
            self._route(b"")
        else:
            self._route(found)

    def _route(self, key: bytes) -> None:
        """Offer the call to the server that `key` names; an empty key names none."""
        self.routed = True
        self.first_message = None
        forwarder = self.forwarder
        snapshot = self.snapshot = forwarder.cluster.snapshot
        head = self.head
        route = head.route
        if key and not route.by_id and head.health is None:
            self.key = key
            if forwarder.calls_by_chat is not None and self._chat_is_full(forwarder.calls_by_chat, key):
                return
            detector = forwarder.detector
            if detector.quarantined and (seconds := detector.quarantined_for(key, forwarder.now())):
                self._turn_back(seconds)
                return
            first = snapshot.owner(key)
            if forwarder.displaced.watching:
                first = self._where_displaced(key, first)
            if first.available:
                self._offer(first)
                return
            self.walk = Walk(forwarder, snapshot, snapshot.candidates(key))
        elif head.health is not None and not key:
            forwarder.own_health.serve(self, head.health)
            return
        elif route.by_id and (named := snapshot.by_id.get(key.decode("utf-8", "replace"))) is not None:
            self.walk = Walk(forwarder, snapshot, iter((named,)))
        elif route.reject_missing and not key:
            self.refuse(Status.INVALID_ARGUMENT, f"the call has no key, and the route {route.method!r} demands one")
            return
        else:
            forwarder.stats.keyless += 1
            self.walk = Walk(forwarder, snapshot, snapshot.least_loaded())
        self._offer_next(self.walk)

    def _where_displaced(self, key: bytes, owner: Endpoint) -> Endpoint:
        """The server that has the chat of `key`: its owner, unless it was displaced. A chat that moves gets its walk
        now, so that the server is told, and its answer is noticed.
        """
        forwarder = self.forwarder
        displaced = forwarder.displaced
        now = forwarder.now()
        first = displaced.find(key, now) or owner
        if first is not owner:
            forwarder.stats.off_owner["displaced"] += 1
        if displaced.moved_from(key, owner, first, now):
            self._walk()
        return first

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
            self._reply(walk.answer)
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

    def _chat_is_full(self, calls: dict[bytes, int], key: bytes) -> bool:
        """Count the call to its chat, or answer it if the chat has all the calls it may have."""
        limit = self.forwarder.limits.max_calls_per_chat
        under_way = calls.get(key, 0)
        if under_way >= limit:
            self.key = b""  # not counted, so not to be given back
            self._turn_away("calls_per_chat", Status.RESOURCE_EXHAUSTED, f"this chat has {limit} calls under way")
            return True
        calls[key] = under_way + 1
        return False

    def _uncount_chat(self, calls: dict[bytes, int]) -> None:
        under_way = calls.pop(self.key, 1) - 1  # none, if the limit is younger than the call
        if under_way:
            calls[self.key] = under_way

    # From the pool and the upstream connection.

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

    def take_back(self, limit: int) -> bool:
        """Leave the connection that refused the call, to wait for another stream of the same server.

        Returns False, with nothing changed, if it cannot be sent again or was refused `limit` times.
        """
        walk = self._walk()
        if self.buffer is None or walk.refusals >= limit:
            return False
        walk.refusals += 1
        self.up = None
        return True

    def _leave(self, endpoint: Endpoint, why: str, outcome: Outcome) -> Walk:
        """Nothing more is expected of `endpoint`."""
        walk = self._walk()
        walk.leave(endpoint, why, outcome)
        self.status = CANCELLED  # what it answered is not what the client gets
        endpoint.active -= 1
        self.endpoint = None
        self.up = None
        if self.try_timer is not None:
            self._stop_try()
        return walk

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
            self._reply(walk.answer)

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

    def _stop_try(self) -> None:
        if self.try_timer is not None:
            self.try_timer.stop()
            self.try_timer = None

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
            detector.failed(endpoint, self.key, forwarder.now())
        elif detector.troubled:
            detector.succeeded(endpoint, self.key)
        if status == b"0" and forwarder.budget.tokens < forwarder.budget.max_tokens:
            forwarder.budget.succeeded()

    def _settle_down(self) -> None:
        """A server answers that the walk came to: the chat may stay with it."""
        endpoint, snapshot, walk = self.endpoint, self.snapshot, self.walk
        stats = self.forwarder.stats
        if endpoint is None or snapshot is None or walk is None:
            return
        if walk.outcome is not None:
            stats.failovers += 1
        if not self.key:
            return
        owner = snapshot.owner(self.key)
        if owner is endpoint:
            self.forwarder.displaced.came_home(self.key)
            return
        reason = walk.why_left(owner)
        stats.off_owner[reason] += 1
        if self.forwarder.displaced.served(self.key, endpoint, self.forwarder.now()):
            stats.chats_moved[reason] += 1

    def response_headers(self, headers: Headers, *, end_stream: bool) -> None:
        """The server's response begins (or, a trailers-only response, is all there)."""
        if (end_stream or headers[0][1] != b"200") and self._is_dealt_with(headers, end_stream=end_stream):
            return
        self.buffer = None
        if self.kept:
            self._uncount()
        self.response_started = True
        if self.try_timer is not None:
            self._stop_try()
        if self.walk is not None:
            self._settle_down()
        forwarder = self.forwarder
        if forwarder.detector.troubled:
            forwarder.detector.began(self.key)
        down = self.down
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
        down.engine.send_trailers(self.sid, headers)
        if not down.dirty:
            down.mark_dirty()
        self._report(status)
        if self.request_ended:
            self._end()
        else:
            self._response_ended()

    def _missing_status(self, http: bytes) -> tuple[Status, str]:
        """What a response with the HTTP status `http` counts as that does not say one grpc-status."""
        server = self.endpoint.id if self.endpoint is not None else "the server"
        return from_http_status(int(http)), f"{server}: answered HTTP {http.decode()} without one grpc-status"

    def broken(self) -> None:
        """A bug of the proxy met this call: end it on both sides, with as little of our own code as can be."""
        if not self.done:
            try:
                self._abandon(ErrorCode.INTERNAL_ERROR)
                self.down.reset(self.sid, ErrorCode.INTERNAL_ERROR)
            finally:
                self._end()

    def shut_down(self, why: str = "the proxy is shutting down") -> None:
        """The proxy, or the client's connection, ends and cannot wait for this call."""
        self._abandon(ErrorCode.CANCEL)
        self.refuse(Status.UNAVAILABLE, why)

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

    # From the clock.

    def deadline_exceeded(self) -> None:
        """The time is over: free the server, answer the client."""
        self.bucket = None
        self._abandon(ErrorCode.CANCEL)
        self.refuse(Status.DEADLINE_EXCEEDED, "deadline exceeded at the proxy")

    # Ends.

    def _response_ended(self) -> None:
        if not self.request_ended:
            # The server answered without reading to the end. RFC 9113, 8.1: the client must get all of the response
            # before it is told to stop; the server needs no more.
            self.down.reset_after_tail(self.sid)
            up = self.up
            if up is not None:
                up.reset(self.up_sid, ErrorCode.CANCEL)
        self._end()

    def refuse(self, status: Status, message: str) -> None:
        """End the call with a status of our own."""
        self.forwarder.clock.tick()
        if self.response_started:
            self.status = b"%d" % status
            down = self.down
            if not down.closed:
                down.engine.send_trailers(self.sid, self._annotated(tuple(trailers(status, message))))
                down.mark_dirty()
                if not self.request_ended:
                    down.reset_after_tail(self.sid)
            self._end()
        else:
            self._reply(trailers_only(status, message))

    def _reject(self, head: RequestHead) -> None:
        if head.rejection_limit:
            self._exceeded(head.rejection_limit, "too much metadata")
        self._reply(head.rejection)

    def _turn_away(self, limit: str, status: Status, message: str) -> None:
        """End the call because of a limit on what is to do, and tell the client when to come back."""
        self._exceeded(limit, message)
        pushback = b"%d" % round(self.forwarder.limits.pushback * 1000)
        self._reply([*trailers_only(status, message), (PUSHBACK, pushback)])

    def _exceeded(self, limit: str, message: str) -> None:
        self.forwarder.watch.exceeded(limit, f"client {self.down.address or 'unknown'}: {message}")

    def respond(self, message: bytes, *, last: bool) -> None:
        """Answer the call ourselves, with a length-prefixed message. `last`: and with OK."""
        try:
            if not self.down.closed:
                self.down.engine.send_response(self.sid, RESPONSE_HEADERS)
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

    def _reply(self, headers: Headers | list[tuple[bytes, bytes]]) -> None:
        self.forwarder.clock.tick()
        self.status = sole_status(headers) or UNKNOWN
        down = self.down
        if not down.closed:
            try:
                down.engine.send_response(self.sid, self._annotated(tuple(headers)), end_stream=True)
            except StreamUnavailableError:
                pass  # reset in the same bytes that opened it; its StreamClosed event is on its way
            else:
                down.mark_dirty()
                if not self.request_ended:
                    down.reset_after_tail(self.sid)
        self._end()

    def _abandon(self, code: ErrorCode) -> None:
        """Leave the server alone from here on: nothing of this call matters any more."""
        up = self.up
        if up is not None:
            up.reset(self.up_sid, code)
        elif self.endpoint is not None:
            self.forwarder.pools[self.endpoint].forget(self)
        else:
            self.forwarder.own_health.forget(self)

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

    def _record(self, seconds: float) -> CallRecord:
        """What is known of it, before it ends."""
        return record_of(self, seconds)

    def _annotated(self, headers: Headers) -> Headers:
        """Headers with a status of ours, and what else the client wants to be told."""
        return headers

    # Bytes and credit.

    def _keep(self, data: bytes) -> None:
        """Add to the replay buffer, or give it up when it gets too long."""
        self.buffered += len(data)
        if self.buffer is not None:
            self.buffer.append(data)
            if self.buffered > self.forwarder.small_buffer:
                self.trim_replay()

    def pay_request(self, amount: int) -> None:
        """The client gets credit for `amount` bytes."""
        self.request_unacked -= amount
        down = self.down
        if not down.closed:
            down.engine.acknowledge_received_data(amount, self.sid)
            if not down.dirty and down.engine.want_write:
                down.mark_dirty()

    def pay_response(self, amount: int) -> None:
        """The server gets credit for `amount` bytes."""
        self.response_unacked -= amount
        up = self.up
        if up is not None and not up.closed:
            up.engine.acknowledge_received_data(amount, self.up_sid)
            if not up.dirty and up.engine.want_write:
                up.mark_dirty()

    def trim_replay(self) -> None:
        """The request has been written: keep it for a replay only as long as it is short enough, and there is room."""
        self._count()
        if self.buffered > self.forwarder.retry.replay_buffer or self._is_too_much():
            self.buffer = None
            self._uncount()

    def _hoard(self, what: str) -> bool:
        """The request waits here for `what`. Returns False, with the call turned away, if too many bytes do."""
        self._count()
        # Small ones are bounded by the number of calls: whoever hoards does not keep them from their way.
        if self.buffered <= self.forwarder.small_buffer or not self._is_too_much():
            return True
        self._turn_away("request_bytes", Status.RESOURCE_EXHAUSTED, f"too many bytes of requests wait for {what}")
        return False

    def _is_too_much(self) -> bool:
        forwarder = self.forwarder
        return (
            forwarder.kept > forwarder.retry.replay_buffer_total
            or self.down.kept > forwarder.limits.max_buffered_per_connection
        )

    def _count(self) -> None:
        more = self.buffered - self.kept
        self.kept += more
        self.forwarder.kept += more
        self.down.kept += more

    def _uncount(self) -> None:
        self.forwarder.kept -= self.kept
        self.down.kept -= self.kept
        self.kept = 0

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
        return headers if self.walk is None else self._headers_of_walk(headers, self.walk)

    def _headers_of_walk(self, headers: Headers, walk: Walk) -> Headers:
        """What a server is told that is not the call's first choice, or gets a chat that another one had."""
        forwarder, endpoint, snapshot = self.forwarder, self.endpoint, self.snapshot
        if walk.repeats:
            attempts = b"%d" % (self.head.previous_attempts + walk.repeats)
            headers = (*(each for each in headers if each[0] != PREVIOUS_ATTEMPTS), (PREVIOUS_ATTEMPTS, attempts))
        if self.key and endpoint is not None and snapshot is not None:
            owner = snapshot.owner(self.key)
            if before := forwarder.displaced.moved_from(self.key, owner, endpoint, forwarder.now()):
                headers = (*headers, (PREVIOUS_OWNER, before.encode()))
        return headers


class TryTimer:
    """Watches one attempt of a call on a route with a `per_try_timeout`."""

    __slots__ = ("_bucket", "_call")

    def __init__(self, call: Call, seconds: float) -> None:
        self._call = call
        now = call.forwarder.now()
        self._bucket = call.forwarder.deadlines.add(self, now + seconds, now)

    def deadline_exceeded(self) -> None:
        """The attempt's time is over."""
        self._call.try_timed_out()

    def stop(self) -> None:
        """The attempt is over."""
        self._bucket.discard(self)
