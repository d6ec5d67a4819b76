"""What the benchmark has to know about a proxy."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@dataclass(frozen=True)
class Setup:
    """What a peer is to do in one benchmark: all of it is given, a peer chooses nothing."""

    directory: Path
    """Its own, empty; configuration files go here."""
    port: int
    """Where it must listen, on 127.0.0.1, cleartext HTTP/2."""
    backends: tuple[str, ...]
    """`host:port` of each."""
    method: str
    """The path of the calls: the chat id in field 1 of the request decides the backend."""


@dataclass(frozen=True)
class Peer:
    """One proxy under test."""

    name: str
    """For `--peers` and the tables."""
    about: str
    """One line for `--help`."""
    command: Callable[[Setup], list[str]]
    """Write the configuration into `Setup.directory`; the command that serves it in the foreground. Raise
    UsageError if its program is not installed."""
    calls: int
    """Calls of one measured run unless `--calls` says otherwise: enough for a second or two of CPU."""
    ready: str | None = None
    """Part of the line it prints when it serves. None: an accepting port is sign enough."""
    routing_header: str | None = None
    """For a proxy that cannot read messages: the header that must carry the chat id. Only its own calls carry it."""
    packages: tuple[str, ...] = field(default=())
    """Python distributions whose versions belong into the report."""
