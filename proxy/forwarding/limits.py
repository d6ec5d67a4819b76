"""Who went beyond a limit, how often: counted always, said at most once a second."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

SAY_EVERY: Final = 1.0
"""Seconds between two log lines about the same limit."""


class LimitCounters:
    """One number a limit: how often somebody went beyond it since the start. Whoever exports them reads `__slots__`."""

    __slots__ = (
        "buffered",
        "buffered_per_connection",
        "calls",
        "calls_per_chat",
        "calls_per_endpoint",
        "connection_age",
        "connections",
        "connections_per_client",
        "engine",
        "file_descriptors",
        "first_message_bytes",
        "first_message_timeout",
        "frame_timeout",
        "idle_timeout",
        "metadata",
        "metadata_for_client",
        "metadata_for_server",
        "preface_timeout",
        "premature_resets",
        "request_bytes",
        "settings_changes",
        "settings_timeout",
        "stall_timeout",
        "tls_client",
        "tls_handshake",
        "unreleased_streams",
        "waiting_calls",
    )

    def __init__(self) -> None:  # noqa: PLR0915 - two a counter
        self.buffered = 0
        """`limits.max_buffered`: a connection lost calls because all together held too many bytes."""
        self.buffered_per_connection = 0
        """`limits.max_buffered_per_connection`: a connection lost calls because it held too many bytes."""
        self.calls = 0
        """`limits.max_calls`: a call was turned away."""
        self.calls_per_chat = 0
        """`limits.max_calls_per_chat`: a call was turned away."""
        self.calls_per_endpoint = 0
        """`limits.max_calls_per_endpoint`: a call was turned away."""
        self.connection_age = 0
        """`listener.max_connection_age`: a client was asked to connect afresh."""
        self.connections = 0
        """`listener.max_connections`: a client was turned away."""
        self.connections_per_client = 0
        """`listener.max_connections_per_client`: a client was turned away."""
        self.engine = 0
        """The engine ended a client's connection with ENHANCE_YOUR_CALM: `listener.max_glitches`, `max_queued_acks`,
        `max_continuations`, `max_settings_entries`, or twice `max_header_list_size` or `max_header_count`."""
        self.file_descriptors = 0
        """The process's file descriptors (RLIMIT_NOFILE): a client was turned away, or all had to wait."""
        self.first_message_bytes = 0
        """`listener.max_first_message`: a call ended because its key did not come within so many bytes."""
        self.first_message_timeout = 0
        """`listener.first_message_timeout`: a call ended before its first message came."""
        self.frame_timeout = 0
        """`listener.frame_timeout`: a client was cut off in the middle of a frame or of a header block."""
        self.idle_timeout = 0
        """`listener.idle_timeout`: a client without calls was asked to leave."""
        self.metadata = 0
        """`listener.max_header_list_size` or `max_header_count`: a call was refused."""
        self.metadata_for_client = 0
        """The client's own MAX_HEADER_LIST_SIZE: a call ended because its response has more."""
        self.metadata_for_server = 0
        """The server's own MAX_HEADER_LIST_SIZE: a call was refused."""
        self.preface_timeout = 0
        """`listener.preface_timeout`: a client was cut off before it spoke HTTP/2."""
        self.premature_resets = 0
        """`listener.max_premature_resets`: a client lost its connection."""
        self.request_bytes = 0
        """`retry.replay_buffer_total` or `limits.max_buffered_per_connection`: a call was turned away while its request
        waited for its key or its server."""
        self.settings_changes = 0
        """`listener.max_glitches`: a client lost its connection for changing its settings all the time."""
        self.settings_timeout = 0
        """`listener.settings_timeout`: a client did not acknowledge our SETTINGS."""
        self.stall_timeout = 0
        """`listener.stall_timeout`: a call ended because its client took none of its bytes."""
        self.tls_client = 0
        """`listener.tls.allowed_clients`, or ALPN: a client was left after its handshake."""
        self.tls_handshake = 0
        """`listener.tls`: a handshake failed, or was not over within `handshake_timeout`."""
        self.unreleased_streams = 0
        """`listener.max_concurrent_streams`, or 100: as many more were reset than servers were told of, and a client
        lost its connection."""
        self.waiting_calls = 0
        """`upstream.max_waiting`: a call was turned away."""

    def snapshot(self) -> dict[str, int]:
        """All of them, by name."""
        return {name: getattr(self, name) for name in self.__slots__}


class LimitWatch:
    """Counts, and passes on to `say` what an operator should read."""

    __slots__ = ("_now", "_said", "_say", "_unsaid", "counters")

    def __init__(self, now: Callable[[], float], say: Callable[[str], object]) -> None:
        """`say(line)` logs."""
        self._now = now
        self._say = say
        self._said: dict[str, float] = {}
        self._unsaid: dict[str, int] = {}
        self.counters = LimitCounters()

    def exceeded(self, limit: str, detail: str) -> None:
        """Somebody went beyond `limit`, the name of a counter. `detail`: who and by what, for people."""
        counters = self.counters
        setattr(counters, limit, getattr(counters, limit) + 1)
        now = self._now()
        if now - self._said.get(limit, -SAY_EVERY) < SAY_EVERY:
            self._unsaid[limit] = self._unsaid.get(limit, 0) + 1
            return
        self._said[limit] = now
        before = self._unsaid.pop(limit, 0)
        self._say(f"limit {limit}: {detail}" + (f" (and {before} more since the last line)" if before else ""))
