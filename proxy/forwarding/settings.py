"""`[[routes]]` and `[retry]`: where a call goes, and where it may go next."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from proxy.durations import Seconds
from proxy.grpc_wire.fields import FieldPath

if TYPE_CHECKING:
    from collections.abc import Sequence

MAX_BYTES: Final = 1 << 40
"""The most that a limit of memory can say: a TiB."""


class KeySource(BaseModel):
    """Where a call says its key: in a field of its first message, or in metadata. Exactly one of the two."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    field: str | None = None
    """Number of a length-delimited protobuf field, or a path of numbers into nested messages (`"3.1"`)."""
    metadata: str | None = None
    """Name of a metadata entry, in lower case."""

    @field_validator("field")
    @classmethod
    def _is_a_path(cls, value: str | None) -> str | None:
        if value is not None:
            FieldPath.parse(value)
        return value

    @field_validator("metadata")
    @classmethod
    def _is_a_metadata_name(cls, value: str | None) -> str | None:
        # gRPC over HTTP/2, "Custom-Metadata": 1*( %x30-39 / %x61-7A / "_" / "-" / "." ).
        if value is not None and not re.fullmatch(r"[0-9a-z_.-]+", value):
            raise ValueError(f"not a metadata name (lower-case letters, digits, '_', '-', '.'): {value!r}")
        return value

    @model_validator(mode="after")
    def _is_one_of_the_two(self) -> Self:
        if (self.field is None) == (self.metadata is None):
            raise ValueError('give exactly one of field = "NUMBER" and metadata = "NAME"')
        return self


class RouteSettings(BaseModel):
    """One routing rule. The first whose `method` matches decides; the built-in ones come after all configured."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    method: str
    """`/package.Service/Method`, `/package.Service/*`, or `*` for all."""
    key: KeySource | None = None
    """What decides the owner on the ring."""
    endpoint: KeySource | None = None
    """Instead of a key: names the server itself by its id. Empty or unknown: any available one."""
    missing_key: Literal["least_loaded", "reject"] = "least_loaded"
    """A call without a key goes to the endpoint with the fewest calls, or fails with INVALID_ARGUMENT."""
    timeout: Seconds | None = None
    """Seconds a call may take in all; a shorter `grpc-timeout` of the client wins. None: no limit but the client's."""
    per_try_timeout: Seconds | None = None
    """Seconds one server has to begin its response before the call is tried on the next one. Only for calls that may
    run again."""
    idempotent: bool = False
    """Running the method twice does no harm: a call that may have run is tried again on another server."""
    idempotency_key: bool = False
    """The servers apply a call once however often it comes, by its `x-request-id`, which the proxy adds if the client
    did not: a call that may have run is tried again on another server."""

    @field_validator("method")
    @classmethod
    def _is_a_pattern(cls, value: str) -> str:
        if value != "*" and not re.fullmatch(r"/[^/*\s]+/([^/*\s]+|\*)", value):
            raise ValueError(f'expected "/package.Service/Method", "/package.Service/*" or "*", got {value!r}')
        return value

    @model_validator(mode="after")
    def _has_one_target(self) -> Self:
        if (self.key is None) == (self.endpoint is None):
            raise ValueError("give exactly one of key and endpoint")
        return self

    @model_validator(mode="after")
    def _tries_again_only_what_may_run_again(self) -> Self:
        if self.per_try_timeout is not None and not (self.idempotent or self.idempotency_key):
            raise ValueError("per_try_timeout needs idempotent = true or idempotency_key = true")
        return self


def hidden(routes: Sequence[RouteSettings]) -> dict[int, int]:
    """The routes that never decide, as every method of theirs falls under one before them: their positions, and its."""
    first: dict[str, int] = {}
    found = {}
    for index, route in enumerate(routes):
        service = route.method[: route.method.rfind("/")] + "/*"
        before = [first[pattern] for pattern in ("*", service, route.method) if pattern in first]
        if before:
            found[index] = min(before)
        first.setdefault(route.method, index)
    return found


CHAT_SERVICE_TIMEOUT = 10.0  # seconds; the request timeout of the original's smart client

BUILT_IN_ROUTES: tuple[RouteSettings, ...] = (
    RouteSettings(
        method="/chat.ChatService/GetCacheStats", endpoint=KeySource(field="1"), timeout=CHAT_SERVICE_TIMEOUT
    ),
    RouteSettings(
        method="/chat.ChatService/PostMessage",
        key=KeySource(field="1"),
        timeout=CHAT_SERVICE_TIMEOUT,
        idempotency_key=True,
    ),
    RouteSettings(method="/chat.ChatService/StreamReply", key=KeySource(field="1"), idempotency_key=True),
    RouteSettings(method="/chat.ChatService/HealthCheck", key=KeySource(field="1"), timeout=CHAT_SERVICE_TIMEOUT),
    RouteSettings(method="/chat.ChatService/*", key=KeySource(field="1")),
    RouteSettings(method="*", key=KeySource(metadata="x-chat-id")),
)
"""What holds where no configured route matches. The unary methods carry the original client's timeout, streams none."""


class RetrySettings(BaseModel):
    """When the owner cannot take a call."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_attempts: int = Field(default=3, ge=1, le=5)
    """Different endpoints a call is offered to, the owner included."""
    replay_buffer: int = Field(default=65_536, ge=0, le=16_777_216)
    """Bytes of a request kept so that it can be sent again; a longer one cannot move once it was sent."""
    replay_buffer_total: int = Field(default=67_108_864, ge=0, le=MAX_BYTES)
    """Bytes of all requests kept so; beyond it, calls cannot move once they were sent."""
    budget_percent: float = Field(default=20.0, ge=0, le=100)
    """Calls under way that may be repeats, in percent of all calls under way."""
    min_budget: int = Field(default=3, ge=0, le=1_000_000)
    """Repeats that may be under way in any case."""
    tokens: float = Field(default=10.0, ge=1, le=1_000_000)
    """Size of the bucket that each failure takes a token from; below half, nothing is repeated (gRFC A6)."""
    token_ratio: float = Field(default=0.1, gt=0, le=1)
    """Tokens that each success puts back."""
    panic: Literal["try_all", "fail_fast"] = "try_all"
    """When no server at all is available: offer calls to those that are only ejected or unhealthy, or fail at once."""


class LimitSettings(BaseModel):
    """`[limits]`: how much is taken on at all. A call beyond a limit is refused at once."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_calls: int = Field(default=100_000, ge=1, le=1_000_000_000)
    """Calls under way in this proxy; more fail with UNAVAILABLE."""
    max_calls_per_endpoint: int = Field(default=10_000, ge=1, le=1_000_000_000)
    """Calls that one server has or that wait for it; more fail with RESOURCE_EXHAUSTED: no chat moves for that."""
    max_calls_per_chat: int = Field(default=0, ge=0, le=1_000_000_000)
    """Calls under way with the same key; more fail with RESOURCE_EXHAUSTED. 0: no limit."""
    max_buffered_per_connection: int = Field(default=33_554_432, ge=65_536, le=MAX_BYTES)
    """Bytes that may wait for one peer, client or server, which does not take them, and bytes of requests kept for the
    calls of one client. Beyond it the calls with most bytes end with RESOURCE_EXHAUSTED; a peer that reads nothing at
    all loses its connection."""
    max_buffered: int = Field(default=268_435_456, ge=65_536, le=MAX_BYTES)
    """Bytes that may wait for all peers together; beyond it the connection with most bytes loses calls."""
    pushback: float = Field(default=1.0, ge=0, le=3600)
    """Seconds that a refused client is told to wait before it tries again (`grpc-retry-pushback-ms`, gRFC A6)."""


class MetricsSettings(BaseModel):
    """`[metrics]`: what is counted."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    enabled: bool = True
    """Count calls and measure times. Without, `/metrics` tells states only."""
