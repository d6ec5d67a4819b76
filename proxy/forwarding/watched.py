"""A call that keeps a record of itself: where it was offered, what became of that, how it ended.

Few calls do: a sample of all, those whose client asks for an explanation, those that are traced. Which kind a call is
decides its class when it is made, so that what is done here costs the other calls nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from proxy.forwarding.call import Call
from proxy.forwarding.call_record import Attempt, CallRecord, record_of
from proxy.forwarding.headers import INTERNAL_PREFIX, Headers, size_of
from proxy.grpc_wire.status import bounded

if TYPE_CHECKING:
    from proxy.cluster.endpoint import Endpoint
    from proxy.forwarding.forwarder import Forwarder
    from proxy.forwarding.headers import RequestHead
    from proxy.forwarding.peers import Downstream
    from proxy.forwarding.retry import Outcome
    from proxy.forwarding.walk import Walk

ANSWERED: Final = "answered"


class WatchedCall(Call):
    """See the module."""

    __slots__ = ("_attempts", "_sampled")

    def __init__(
        self, forwarder: Forwarder, down: Downstream, sid: int, head: RequestHead, client_timeout: bytes | None
    ) -> None:
        super().__init__(forwarder, down, sid, head, client_timeout)
        self._attempts: list[Attempt] = []
        self._sampled = not forwarder.unwatched
        if self._sampled:
            forwarder.unwatched = forwarder.watch_every

    def _offer(self, endpoint: Endpoint) -> None:
        self._attempts.append(Attempt(endpoint.id, "", self.forwarder.clock.read() - self.arrived))
        super()._offer(endpoint)

    def _leave(self, endpoint: Endpoint, why: str, outcome: Outcome) -> Walk:
        self._close_attempt(outcome.name.lower())
        return super()._leave(endpoint, why, outcome)

    def _close_attempt(self, outcome: str) -> None:
        if self._attempts and not self._attempts[-1].outcome:
            self._attempts[-1] = self._attempts[-1]._replace(outcome=outcome)

    def _end(self) -> None:
        # What ended the call without an answer has not left the server: the client, the deadline, the proxy's own end.
        self._close_attempt(ANSWERED if self.reported else "cancelled")
        record = self._record(self.forwarder.clock.time - self.arrived)
        super()._end()
        if self.forwarder.watcher is not None:
            self.forwarder.watcher.ended(record, sampled=self._sampled)

    def _record(self, seconds: float) -> CallRecord:
        return record_of(self, seconds, tuple(self._attempts))

    # Explained to the client.

    def response_headers(self, headers: Headers, *, end_stream: bool) -> None:
        """See `Call.response_headers`."""
        super().response_headers(self._annotated(headers) if end_stream else headers, end_stream=end_stream)

    def response_trailers(self, headers: Headers) -> None:
        """See `Call.response_trailers`."""
        super().response_trailers(self._annotated(headers))

    def _annotated(self, headers: Headers) -> Headers:
        if not self.head.explain:
            return headers
        said = tuple(each for each in headers if not each[0].startswith(INTERNAL_PREFIX))
        explained = (*said, *self._explanation())
        return explained if size_of(explained) <= self.down.max_header_list else said

    def _explanation(self) -> Headers:
        snapshot = self.snapshot
        fields = [
            ("endpoint", self.endpoint.id if self.endpoint is not None else ""),
            ("owner", snapshot.owner(self.key).id if snapshot is not None and self.key else ""),
            ("attempts", str(len(self._attempts))),
            ("reasons", self.walk.story() if self.walk is not None else ""),
            ("snapshot", f"{snapshot.version}-{snapshot.ring.fingerprint}" if snapshot is not None else ""),
        ]
        return tuple((INTERNAL_PREFIX + name.encode(), bounded(value)) for name, value in fields if value)
