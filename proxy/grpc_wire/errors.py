"""The one way in which this package refuses a call."""

from __future__ import annotations

from typing import TYPE_CHECKING

from proxy.errors import DistriChatError

if TYPE_CHECKING:
    from proxy.grpc_wire.status import Status


class CallRejected(DistriChatError):  # noqa: N818 - a verdict about the client's call, not a fault of this program
    """The client's call cannot be routed. `status` and `message` are what to answer with (`status.trailers_only`)."""

    def __init__(self, status: Status, message: str) -> None:
        super().__init__(f"{status.name}: {message}")
        self.status = status
        self.message = message
