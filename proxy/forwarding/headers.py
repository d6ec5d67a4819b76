"""What a call's request headers say, and what is sent on.

Most calls of a client carry the same headers, so what was learned of a header list is remembered by the list itself,
without its `grpc-timeout`, which many clients make different for every call.
"""

from __future__ import annotations

from typing import Final

from proxy.forwarding.routes import Route, RouteTable
from proxy.forwarding.settings import KeySource, RouteSettings
from proxy.grpc_wire.status import Status, trailers_only
from proxy.grpc_wire.timeout import format_timeout
from proxy.http2 import Header

GRPC_TIMEOUT: Final = b"grpc-timeout"
PREVIOUS_ATTEMPTS: Final = b"grpc-previous-rpc-attempts"  # gRFC A6
PUSHBACK: Final = b"grpc-retry-pushback-ms"  # gRFC A6
REQUEST_ID: Final = b"x-request-id"
INTERNAL_PREFIX: Final = b"x-districhat-"
"""Metadata that only the proxy may write; from a client it is dropped."""
ADDED: Final = 3 * 32 + 128
"""Bytes that `grpc-timeout`, `x-request-id` and `grpc-previous-rpc-attempts` can add to a header list."""
MAX_MEMO: Final = 1024
"""Header lists remembered."""
MAX_MEMO_LIST: Final = 2048
"""Bytes of the longest header list worth remembering."""

Headers = tuple[Header, ...]

HEALTH_PREFIX: Final = "/grpc.health.v1.Health/"
HEALTH_ROUTE: Final = Route(RouteSettings(method=HEALTH_PREFIX + "*", key=KeySource(field="1")))
"""HealthCheckRequest { string service = 1; }: the "key" is the name of the service, and only looked at."""


class RequestHead:
    """What a header list means for the call that carries it."""

    __slots__ = (
        "encoding",
        "headers",
        "health",
        "key",
        "previous_attempts",
        "rejection",
        "route",
        "size",
        "wants_request_id",
        "with_route_timeout",
    )

    def __init__(self, headers: Headers, route: Route, fields: dict[bytes, bytes], rejection: Headers) -> None:
        self.headers = headers
        """To be sent on, without `grpc-timeout`."""
        self.route = route
        self.encoding = fields.get(b"grpc-encoding")
        """`grpc-encoding`: how messages with the compressed flag are compressed."""
        self.key = fields.get(route.metadata, b"") if route.metadata is not None else b""
        """The key, on a route that takes it from metadata; empty if it is not there."""
        self.size = sum(len(name) + len(value) + 32 for name, value in headers) + ADDED
        """What the list counts for at a server (RFC 9113, 6.5.2: 32 bytes a field), with what we may add to it."""
        self.rejection = rejection
        """If not empty: answer with these headers and END_STREAM instead of forwarding."""
        self.health: str | None = None
        """The method, if this is `grpc.health.v1.Health` and the proxy answers for itself."""
        self.wants_request_id = route.with_id and REQUEST_ID not in fields
        attempts = fields.get(PREVIOUS_ATTEMPTS, b"")
        self.previous_attempts = int(attempts) if attempts.isdigit() and len(attempts) < 9 else 0
        """What the client tried before by itself."""
        self.with_route_timeout = headers
        """`headers` and the route's own timeout, for calls that bring none."""
        if route.timeout is not None:
            self.with_route_timeout = (*headers, (GRPC_TIMEOUT, format_timeout(route.timeout)))


class RequestHeads:
    """The memo of header lists, on top of the rules that fill it."""

    __slots__ = ("_own_health", "_routes", "memo")

    def __init__(self, routes: RouteTable, *, own_health: bool) -> None:
        """`own_health`: the proxy answers `grpc.health.v1.Health` itself for the empty service name."""
        self._routes = routes
        self._own_health = own_health
        self.memo: dict[Headers, RequestHead] = {}
        """What is remembered. Hot callers look here themselves before they call `find`."""

    def find(self, headers: Headers) -> RequestHead:
        """The meaning of a header list that has no `grpc-timeout`."""
        head = self.memo.get(headers)
        if head is not None:
            return head
        head = self._parse(headers)
        if sum(len(name) + len(value) for name, value in headers) <= MAX_MEMO_LIST:
            if len(self.memo) >= MAX_MEMO:
                self.memo.clear()
            self.memo[headers] = head
        return head

    def _parse(self, headers: Headers) -> RequestHead:
        fields = dict(reversed(headers))  # the first of several wins
        path = fields.get(b":path", b"").decode("latin-1")
        route = self._routes.find(path)
        forwarded = tuple(
            header for header in headers if not header[0].startswith(INTERNAL_PREFIX) and header[0] != GRPC_TIMEOUT
        )
        if not (self._own_health and path.startswith(HEALTH_PREFIX)):
            return RequestHead(forwarded, route, fields, _rejection(fields, path))
        head = RequestHead(forwarded, HEALTH_ROUTE, fields, _rejection(fields, path))
        head.health = path[len(HEALTH_PREFIX) :]
        return head


def _rejection(fields: dict[bytes, bytes], path: str) -> Headers:
    content_type = fields.get(b"content-type", b"")
    # gRPC over HTTP/2, "Requests": "If Content-Type does not begin with "application/grpc", gRPC servers SHOULD
    # respond with HTTP status of 415".
    if not content_type.startswith(b"application/grpc") or content_type[16:17] not in (b"", b"+", b";"):
        return ((b":status", b"415"),)
    if fields.get(b":method") != b"POST":
        return ((b":status", b"405"), (b"allow", b"POST"))
    if not path.startswith("/"):  # grpc-go CVE-2026-33186: a path without the slash slips past rules made for it
        return tuple(trailers_only(Status.UNIMPLEMENTED, f"malformed method name: {path!r}"))
    return ()


# Trailers-only statuses after which the same call may do better elsewhere or later (gRPC, "Status codes").
_TRY_AGAIN = {
    b"8": "RESOURCE_EXHAUSTED",
    b"10": "ABORTED",
    b"14": "UNAVAILABLE",
}
_HTTP_TRY_AGAIN = frozenset({b"502", b"503", b"504"})


def grpc_status(headers: Headers) -> bytes | None:
    """The value of `grpc-status`, if it is there."""
    for name, value in headers:
        if name == b"grpc-status":
            return value
    return None


def read_refusal(headers: Headers, *, server_is_stopping: bool) -> tuple[str | None, float | None]:
    """Why a response says that the server could not serve the call now, and the seconds to wait before it is repeated.

    No reason: it does not say so. No seconds: the server forbids to repeat it (gRFC A6: a pushback that is negative or
    not a number). A server that is stopping (it sent GOAWAY) also means it by CANCELLED: C-core answers so to what
    arrives during its shutdown.
    """
    fields = dict(reversed(headers))
    status = fields.get(b"grpc-status")
    if status is None:
        code = fields[b":status"]
        why = f"answered HTTP {code.decode()}" if code in _HTTP_TRY_AGAIN else None
    elif status == b"1" and server_is_stopping:
        why = "answered CANCELLED while it stops"
    else:
        name = _TRY_AGAIN.get(status)
        why = None if name is None else f"answered {name}"
    pushback = fields.get(PUSHBACK)
    if pushback is None:
        return why, 0.0
    return why, int(pushback) / 1000 if pushback.isdigit() and len(pushback) < 9 else None
