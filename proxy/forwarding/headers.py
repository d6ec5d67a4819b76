"""What a call's request headers say, and what is sent on.

Most calls of a client carry the same headers, so what was learned of a header list is remembered by the list itself,
without its `grpc-timeout`, which many clients make different for every call.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

from proxy.forwarding.routes import Route, RouteTable
from proxy.forwarding.settings import KeySource, RouteSettings
from proxy.forwarding.stats import Stats, Tallies
from proxy.grpc_wire.fields import DEFAULT_MAX_KEY
from proxy.grpc_wire.status import Status, trailers, trailers_only
from proxy.grpc_wire.timeout import format_timeout
from proxy.http2 import Header

GRPC_TIMEOUT: Final = b"grpc-timeout"
PREVIOUS_ATTEMPTS: Final = b"grpc-previous-rpc-attempts"  # gRFC A6
PUSHBACK: Final = b"grpc-retry-pushback-ms"  # gRFC A6
REQUEST_ID: Final = b"x-request-id"
TE_TRAILERS: Final = (b"te", b"trailers")
INTERNAL_PREFIX: Final = b"x-districhat-"
"""Metadata that only the proxy may write; from a client it is dropped."""
EXPLAIN: Final = b"x-districhat-explain"
TRACEPARENT: Final = b"traceparent"
ADDED: Final = 4 * 32 + 128 + 27 + 256
"""Bytes that `grpc-timeout`, `x-request-id`, `grpc-previous-rpc-attempts` and `x-districhat-previous-owner` (with an
endpoint's id) can add to a header list."""
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
        "explain",
        "headers",
        "health",
        "key",
        "previous_attempts",
        "rejection",
        "rejection_limit",
        "route",
        "size",
        "tallies",
        "wants_request_id",
        "watched",
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
        self.size = size_of(headers) + ADDED
        """What the list counts for at a server, with what we may add to it."""
        self.explain = False
        """The client wants to be told where the call went, and why."""
        self.watched = False
        """The call keeps a record of itself: it is explained or traced."""
        self.tallies: Tallies = {}
        """Where calls are counted."""
        self.rejection = rejection
        """If not empty: answer with these headers and END_STREAM instead of forwarding."""
        self.rejection_limit = ""
        """The limit that it broke, if that is why."""
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

    __slots__ = ("_explain", "_max_count", "_max_size", "_own_health", "_routes", "_trace", "memo", "stats")

    def __init__(
        self,
        routes: RouteTable,
        stats: Stats,
        *,
        own_health: bool,
        max_size: int,
        max_count: int,
        explain: bool = False,
        trace: bool = False,
    ) -> None:
        """`stats`: where the calls will be counted. `own_health`: the proxy answers `grpc.health.v1.Health` itself for
        the empty service name. `max_size` bytes (32 a field included, RFC 9113, 6.5.2) and `max_count` fields are what
        a list may have. `explain`: clients may ask where their calls go. `trace`: calls whose `traceparent` says that
        they are recorded are watched.
        """
        self._routes = routes
        self.stats = stats
        self._own_health = own_health
        self._explain = explain
        self._trace = trace
        self._max_size = max_size
        self._max_count = max_count
        self.memo: dict[Headers, RequestHead] = {}
        """What is remembered. Hot callers look here themselves before they call `find`."""

    def find(self, headers: Headers) -> RequestHead:
        """The meaning of a header list that has no `grpc-timeout`."""
        head = self.memo.get(headers)
        if head is not None:
            return head
        head = self._parse(headers)
        head.tallies = self.stats.of_route(head.route.method)
        self.stats.head_misses += 1
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
        if b"te" not in fields:
            # gRPC over HTTP/2, "Requests": TE "is used to detect incompatible proxies"; servers may insist on it.
            forwarded = (*forwarded, TE_TRAILERS)
        own = self._own_health and path.startswith(HEALTH_PREFIX)
        head = RequestHead(forwarded, HEALTH_ROUTE if own else route, fields, _rejection(fields, path))
        if own:
            head.health = path[len(HEALTH_PREFIX) :]
        if not head.rejection:
            problem = _malformed(headers, fields) or (
                f"the key has {len(head.key)} bytes, more than {DEFAULT_MAX_KEY}"
                if len(head.key) > DEFAULT_MAX_KEY
                else ""
            )
            if problem:
                head.rejection = tuple(trailers_only(Status.INVALID_ARGUMENT, problem))
        self._limit(head, headers)
        head.explain = self._explain and fields.get(EXPLAIN) == b"1"
        head.watched = head.explain or (self._trace and is_recorded(fields.get(TRACEPARENT, b"")))
        return head

    def _limit(self, head: RequestHead, headers: Headers) -> None:
        size = size_of(headers)
        if size > self._max_size:
            problem = f"the call has {size} bytes of metadata, more than {self._max_size}"
        elif len(headers) > self._max_count:
            problem = f"the call has {len(headers)} fields of metadata, more than {self._max_count}"
        else:
            return
        head.rejection = tuple(trailers_only(Status.RESOURCE_EXHAUSTED, problem))
        head.rejection_limit = "metadata"


def is_recorded(traceparent: bytes) -> bool:
    """Whether a `traceparent` has the flag "sampled" (W3C Trace Context, 3.2.2.5): version-trace-parent-flags."""
    parts = traceparent.split(b"-")
    return len(parts) >= 4 and parts[3][-1:] in b"13579bdf" and len(parts[3]) == 2


# gRPC over HTTP/2, "Custom-Metadata": Header-Name -> 1*( %x30-39 / %x61-7A / "_" / "-" / "." ).
_NAME = re.compile(rb"[0-9a-z_.-]+").fullmatch
# Base64 in its usual alphabet, padded or not, several values joined by commas.
_VALUE = rb"(?:[A-Za-z0-9+/]{4})*+(?:[A-Za-z0-9+/]{2}(?:==)?|[A-Za-z0-9+/]{3}=?)?"
_BINARY = re.compile(_VALUE + rb"(?:," + _VALUE + rb")*").fullmatch


def _malformed(headers: Headers, fields: dict[bytes, bytes]) -> str:
    """What no gRPC client sends, and what a server may answer by ending the connection that all clients share
    (CVE-2023-32732); or what two readers may understand differently. Empty: nothing.
    """
    if fields.get(b":scheme") not in (b"http", b"https"):
        return "the :scheme is neither http nor https"
    host = fields.get(b"host")
    if host is not None and host != fields.get(b":authority", host):
        return ":authority and host disagree"  # RFC 9113, 8.3.1
    for name, value in headers:
        if name[:1] == b":":
            continue
        if not _NAME(name):
            return f"malformed metadata name {name[:64]!r}"
        if name.endswith(b"-bin") and not _BINARY(value):
            return f"the value of {name[:64].decode()} is not base64"
    return ""


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


def size_of(headers: Headers) -> int:
    """What a list counts for in MAX_HEADER_LIST_SIZE (RFC 9113, 6.5.2: 32 bytes a field)."""
    return sum([len(name) + len(value) for name, value in headers]) + 32 * len(headers)


def cut_to(headers: Headers, limit: int) -> Headers:
    """What of an answer of our own a client takes that takes `limit` bytes: the status above all, then a pushback, the
    message if there is room for all of it, the rest. Empty: not even what makes it an answer.
    """
    if size_of(headers) <= limit:
        return headers
    kept = []
    room = limit
    for field in sorted(headers, key=lambda field: _IMPORTANCE.get(field[0], len(_IMPORTANCE))):
        size = size_of((field,))
        if size <= room:
            kept.append(field)
            room -= size
        elif field[0] in _INDISPENSABLE:
            return ()
    return tuple(kept)


_INDISPENSABLE: Final = (b":status", b"content-type", b"grpc-status")
_IMPORTANCE: Final = {
    name: rank for rank, name in enumerate((*_INDISPENSABLE, PUSHBACK, b"grpc-message", b"grpc-accept-encoding"))
}


# Trailers-only statuses after which the same call may do better elsewhere or later (gRPC, "Status codes").
_TRY_AGAIN = {
    b"8": "RESOURCE_EXHAUSTED",
    b"10": "ABORTED",
    b"14": "UNAVAILABLE",
}
_HTTP_TRY_AGAIN = frozenset({b"502", b"503", b"504"})


def sole_status(headers: Iterable[Header]) -> bytes | None:
    """The value of `grpc-status`, if it is there once (gRPC over HTTP/2: Trailers -> Status [Status-Message] ...)."""
    found = None
    for name, value in headers:
        if name == b"grpc-status":
            if found is not None:
                return None
            found = value
    return found


def with_status(headers: Headers, status: Status, message: str) -> Headers:
    """Trailers with this status instead of what they say about one."""
    return (*(each for each in headers if each[0] not in _STATUS_FIELDS), *trailers(status, message))


_STATUS_FIELDS: Final = (b"grpc-status", b"grpc-message", b"grpc-status-details-bin")


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
