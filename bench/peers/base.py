"""What the benchmark has to know about a proxy."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from bench.certificate import Certificate


@dataclass(frozen=True)
class Resilience:
    """What a peer is to do about failing backends, which here serve grpc.health.v1: the same numbers for all.

    They are DistriChat's defaults (`[health]` in config/proxy.toml) where it has one. A peer without such a thing does
    the nearest it can, and its module says what.
    """

    repeatable: str
    """The path of the method whose calls may run twice; all others may not."""
    interval: float = 2.0
    """Seconds between two health checks of a backend."""
    unhealthy_interval: float = 1.0
    """Seconds instead, while a backend is out."""
    timeout: float = 1.0
    """Seconds a health check may take."""
    unhealthy_threshold: int = 3
    """Failed checks in a row that take a backend out."""
    healthy_threshold: int = 2
    """Good checks in a row that take it back in."""
    connect_timeout: float = 1.0
    per_try_timeout: float = 1.0
    """Seconds a backend has to answer a repeatable call before it is tried on another one."""
    attempts: int = 3
    """Backends that a call is offered to."""


@dataclass(frozen=True)
class Setup:
    """What a peer is to do in one benchmark: all of it is given, a peer chooses nothing."""

    directory: Path
    """Its own, empty; configuration files go here."""
    port: int
    """Where it must listen, on 127.0.0.1, HTTP/2."""
    backends: tuple[str, ...]
    """`host:port` of each."""
    method: str
    """The path of the calls, or all of a service (`/package.Service/*`): the chat id in field 1 of the request decides
    the backend."""
    resilience: Resilience | None = None
    """None: the backends never fail, and have no health service. Then nothing of the kind may cost CPU."""
    tls: Certificate | None = None
    """What to show to clients, who choose HTTP/2 by ALPN; None: cleartext. To the backends it is always cleartext."""


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
    routes: bool = True
    """False: it looks at no chat at all, and all calls of a connection go to one backend."""
    tls: bool = True
    """It heeds `Setup.tls`."""
    on_request: bool = False
    """It takes part only if `--peers` names it."""
    scenarios: tuple[str, ...] | None = None
    """Those it takes part in, if not all."""
    packages: tuple[str, ...] = field(default=())
    """Python distributions whose versions belong into the report."""
    version: Callable[[], str] | None = None
    """What a program that is no Python distribution says its version is. Raises UsageError like `command`."""
    settings: str = ""
    """For the fault benchmark's report: its resilience in a sentence or two, in its own settings' names."""
