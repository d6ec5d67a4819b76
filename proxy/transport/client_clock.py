"""What is known of a client's connection between two looks at it, and what it may ask of us."""

from __future__ import annotations

from typing import NamedTuple

from proxy.http2 import Limits
from proxy.transport.progress import Progress


class ClientLimits(NamedTuple):
    """What a client's connection may ask of us."""

    engine: Limits
    premature_resets: tuple[int, float]
    """Young streams that may be reset before their response: at once, and a second."""


class Stall(NamedTuple):
    """A call whose bytes wait for its client."""

    sweeps: int
    """Looks in a row at which not one of them had left, nor one of those that were on their way before them."""
    queued: int
    """How many waited at the last look."""
    behind: int
    """What `Progress.delivered` is once all has arrived that was on its way before them."""


class ClientClock:
    """The times of one connection, in seconds of the reactor's clock; 0.0: not begun. `ClientSweeper` keeps them."""

    __slots__ = (
        "blocked_since",
        "expires_at",
        "fragments",
        "greeted_at",
        "idle_since",
        "newest_sid",
        "noticed_at",
        "old_sid",
        "opened_at",
        "pinged_at",
        "progress",
        "window",
    )

    def __init__(self) -> None:
        self.opened_at = 0.0
        self.greeted_at = 0.0
        """First seen with the client's SETTINGS, so that ours are on their way."""
        self.expires_at = 0.0
        """End of its age."""
        self.noticed_at = 0.0
        """The first GOAWAY went out because of its age, or because it had nothing to do."""
        self.idle_since = 0.0
        self.pinged_at = 0.0
        """A PING went out that has not been answered, nor has DATA come since."""
        self.window = 0
        """What was left of the connection's receive window then."""
        self.fragments = 0
        """`Http2Connection.fragments` at the last look."""
        self.newest_sid = 0
        """The newest stream at the last look."""
        self.old_sid = 0
        """Streams up to this one were there at the last look but one."""
        self.blocked_since = 0.0
        """The transport holds bytes, and not one has arrived at the client."""
        self.progress: Progress | None = None
        """None: nothing waited for the client at the last look."""
