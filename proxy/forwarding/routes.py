"""Which rule a method falls under."""

from __future__ import annotations

from collections.abc import Sequence

from proxy.forwarding.settings import BUILT_IN_ROUTES, RouteSettings
from proxy.grpc_wire.fields import FieldPath


class Route:
    """One rule, ready for use: what a call of a matching method needs to know."""

    __slots__ = (
        "by_id",
        "metadata",
        "method",
        "path",
        "per_try_timeout",
        "reject_missing",
        "repeatable",
        "timeout",
        "with_id",
    )

    def __init__(self, settings: RouteSettings) -> None:
        source = settings.key or settings.endpoint
        assert source is not None  # noqa: S101 - RouteSettings makes sure of it
        self.method = settings.method
        self.by_id = settings.endpoint is not None
        """The key is not hashed: it is the id of the endpoint."""
        self.path = None if source.field is None else FieldPath.parse(source.field)
        """Where in the first message the key is; None: it is in metadata."""
        self.metadata = None if source.metadata is None else source.metadata.encode()
        self.reject_missing = settings.missing_key == "reject"
        self.timeout = settings.timeout
        self.per_try_timeout = settings.per_try_timeout
        self.repeatable = settings.idempotent or settings.idempotency_key
        """A call that may have run may be run again."""
        self.with_id = settings.idempotency_key
        """... because servers know it by its `x-request-id`."""

    def matches(self, method: str) -> bool:
        """Whether the rule is for `method` (`/package.Service/Method`)."""
        pattern = self.method
        if pattern in ("*", method):
            return True
        return pattern.endswith("/*") and method.startswith(pattern[:-1]) and "/" not in method[len(pattern) - 1 :]


class RouteTable:
    """The configured rules, then the built-in ones; the first match decides, and there always is one."""

    __slots__ = ("_routes",)

    def __init__(self, configured: Sequence[RouteSettings]) -> None:
        self._routes = tuple(Route(settings) for settings in (*configured, *BUILT_IN_ROUTES))

    def find(self, method: str) -> Route:
        """The rule for `method`."""
        return next(route for route in self._routes if route.matches(method))
