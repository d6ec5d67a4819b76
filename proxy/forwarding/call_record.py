"""What one call has come to, for logs, traces and the list of recent decisions."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    from proxy.forwarding.buffered import BufferedCall


class Attempt(NamedTuple):
    """A server that was given the call."""

    endpoint: str
    outcome: str
    """`answered`, `cancelled` (the call ended while it had it), or the name of what went wrong."""
    seconds: float
    """After the call began."""


class CallRecord(NamedTuple):
    """One call, when it is over."""

    method: str
    route: str
    """The pattern of the route."""
    key: bytes
    owner: str
    """The id of the server that owns the key; empty without a key."""
    endpoint: str
    """The id of the server that had the call in the end; empty: none."""
    status: bytes
    """`grpc-status` that the client got."""
    seconds: float
    """From its first byte here to its last."""
    attempts: tuple[Attempt, ...]
    """Empty if nobody watched."""
    reasons: str
    """Whom it walked past and why, for people."""
    traceparent: bytes
    """As the client sent it; empty if it did not."""


class Watcher(Protocol):
    """Takes the records."""

    def ended(self, record: CallRecord, *, sampled: bool) -> None:
        """A watched call is over. Not `sampled`: it was watched for another reason than being one in so many."""

    def slow(self, record: CallRecord) -> None:
        """A call took longer than it should, watched or not."""


def record_of(call: BufferedCall, seconds: float, attempts: tuple[Attempt, ...] = ()) -> CallRecord:
    """What is known of a call that is about to end."""
    fields = dict(reversed(call.head.headers))
    owner = call.snapshot.owner(call.key).id if call.snapshot is not None and call.key else ""
    return CallRecord(
        method=fields.get(b":path", b"").decode("latin-1"),
        route=call.head.route.method,
        key=call.key,
        owner=owner,
        endpoint=call.endpoint.id if call.endpoint is not None else "",
        status=call.status,
        seconds=seconds,
        attempts=attempts,
        reasons=call.walk.story() if call.walk is not None else "",
        traceparent=fields.get(b"traceparent", b""),
    )
