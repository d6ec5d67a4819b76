"""The life of one call, from its first header to its last.

A call is one object, built in layers. Each is a module that knows only those before it:

- `buffered`: what is known of the call, and the bytes of it that the proxy holds or owes;
- `answered`: how it is answered, by its server or by the proxy, and how it ends;
- `offered`: how servers get it, one after the other, until one begins its response;
- this one: what its client says, and where that sends it.

Rules of all of them:

1. A call is the only object made per call. It has no task, future or timer of its own; connections call its methods.
2. `up` says where the request goes: while it is None, request bytes wait in `buffer`, and nothing else does.
3. What every call comes by is written out where it happens, though methods get longer: a frame costs every call 1 %.
"""

from __future__ import annotations

from typing import Final

from proxy.cluster.endpoint import Endpoint
from proxy.forwarding.headers import RequestHead
from proxy.forwarding.offered import OfferedCall
from proxy.forwarding.walk import Walk
from proxy.grpc_wire.errors import CallRejected
from proxy.grpc_wire.fields import ABSENT, PENDING
from proxy.grpc_wire.message import FirstMessage, find_key
from proxy.grpc_wire.status import Status, trailers_only
from proxy.grpc_wire.timeout import InvalidTimeout, parse_timeout
from proxy.http2 import ErrorCode

ACCEPT_ENCODING: Final = (b"grpc-accept-encoding", b"identity,deflate,gzip")


class Call(OfferedCall):
    """One call. Made by the downstream connection when request headers arrive, followed by `start`."""

    __slots__ = ()

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

    def _reject(self, head: RequestHead) -> None:
        if head.rejection_limit:
            self._exceeded(head.rejection_limit, "too much metadata")
        self._reply(head.rejection)

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

    def request_trailers(self) -> None:
        """The request ended with trailers. gRPC has none (Request -> Request-Headers *Length-Prefixed-Message EOS), so
        they are dropped and the end is passed on.
        """
        self.request_data(b"", end_stream=True)

    def swept(self, limit: int) -> bool:
        """Called now and then while the key is not known. Whether that was the `limit`th time."""
        self.sweeps += 1
        return self.sweeps >= limit

    def _hoard(self, what: str) -> bool:
        """The request waits here for `what`. Returns False, with the call turned away, if too many bytes do."""
        self._count()
        # Small ones are bounded by the number of calls: whoever hoards does not keep them from their way.
        if self.buffered <= self.forwarder.small_buffer or not self._is_too_much():
            return True
        self._abandon(ErrorCode.CANCEL)
        self._turn_away("request_bytes", Status.RESOURCE_EXHAUSTED, f"too many bytes of requests wait for {what}")
        return False

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
            self._reply([*trailers_only(rejected.status, rejected.message), *known])
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
