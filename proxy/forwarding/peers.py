"""The two connections of a call, as the call sees them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from proxy.http2 import Engine

if TYPE_CHECKING:
    from proxy.forwarding.buffered import BufferedCall
    from proxy.forwarding.offered import OfferedCall


class Downstream(Protocol):
    """The client's connection, as a call sees it."""

    engine: Engine
    dirty: bool
    closed: bool
    owed: list[BufferedCall]
    address: str | None
    kept: int
    unreleased: int
    slack: int

    def mark_dirty(self) -> None:
        """There is something to send."""

    def reset(self, stream_id: int, code: int) -> None:
        """Reset the stream at once; queued data is dropped. Nothing happens if it is gone."""

    def reset_after_tail(self, stream_id: int) -> None:
        """Reset the stream (NO_ERROR) once everything queued on it, trailers included, has left."""


class Upstream(Protocol):
    """A server's connection, as a call sees it."""

    engine: Engine
    dirty: bool
    closed: bool
    calls: dict[int, OfferedCall]
    owed: list[BufferedCall]
    slack: int
    last_sid: int
    draining: bool
    max_header_list: int

    def mark_dirty(self) -> None:
        """There is something to send."""

    def reset(self, stream_id: int, code: int) -> None:
        """Reset the stream at once; queued data is dropped. Nothing happens if it is gone."""

    def release(self, call: OfferedCall) -> None:
        """Count the stream of `call`, which its client has reset, until the server has been told."""
