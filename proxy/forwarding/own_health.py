"""`grpc.health.v1.Health` of the proxy itself, for the empty service name.

SERVING while the proxy accepts calls and at least one server is available; NOT_SERVING from the first moment of its
drain. Any other service name is a server's business and is forwarded.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from proxy.grpc_wire.status import Status

if TYPE_CHECKING:
    from proxy.forwarding.answered import AnsweredCall

MAX_UNREAD: Final = 1024
"""Bytes of news that a watcher may leave unread before it is cut off."""

# HealthCheckResponse { ServingStatus status = 1; } as a length-prefixed message; SERVING = 1, NOT_SERVING = 2.
_SERVING: Final = b"\x00\x00\x00\x00\x02\x08\x01"
_NOT_SERVING: Final = b"\x00\x00\x00\x00\x02\x08\x02"


class OwnHealth:
    """`somebody_available()` says whether any server may be given calls; call `update` whenever that may change."""

    def __init__(self, somebody_available: Callable[[], bool]) -> None:
        self._somebody_available = somebody_available
        self._draining = False
        self._told = True
        self._watchers: set[AnsweredCall] = set()

    @property
    def serving(self) -> bool:
        """The state now."""
        return not self._draining and self._somebody_available()

    @property
    def why_not(self) -> str:
        """Why it is not serving, for people."""
        return "the proxy is draining" if self._draining else "no server is available"

    def serve(self, call: AnsweredCall, method: str) -> None:
        """Answer `call`, whose service name is empty."""
        if method == "Check":
            call.respond(self._message(), last=True)
        elif method == "Watch":
            self._watchers.add(call)
            call.respond(self._message(), last=False)
        else:
            call.refuse(Status.UNIMPLEMENTED, f"no such method: grpc.health.v1.Health/{method}")

    def forget(self, call: AnsweredCall) -> None:
        """`call` is over. Nothing happens if it does not watch."""
        self._watchers.discard(call)

    def update(self) -> None:
        """Tell the watchers if the state is another than they know."""
        serving = self.serving
        if serving == self._told:
            return
        self._told = serving
        for call in tuple(self._watchers):
            if call.down.engine.queued_body_size(call.sid) > MAX_UNREAD:
                self._watchers.discard(call)
                call.refuse(Status.RESOURCE_EXHAUSTED, "the watcher does not read")
            else:
                call.say(self._message())

    def drain(self) -> None:
        """NOT_SERVING from now on. Watches end with it, or they would outlast the drain."""
        self._draining = True
        self.update()
        for call in tuple(self._watchers):
            call.shut_down()

    def _message(self) -> bytes:
        return _SERVING if self.serving else _NOT_SERVING
