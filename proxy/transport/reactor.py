"""The few things the data path needs from an event loop, so that tests can drive it with a clock of numbers."""

from __future__ import annotations

import asyncio
import os
import random
import re
import ssl
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, Protocol, cast

from proxy.cluster.address import Address

if TYPE_CHECKING:
    from proxy.http2 import Http2Connection
    from proxy.transport.tls import Secured

CLOSE_NOTIFY_TIMEOUT: Final = 1.0
"""Seconds that the other side of a TLS connection has to say goodbye too; nothing of worth comes after our own."""


class Handle(Protocol):
    """Something under way that can be called off."""

    def cancel(self) -> object:
        """Call it off. Nothing happens if it is over."""


class Reactor(Protocol):
    """Time, callbacks, connections, chance."""

    def now(self) -> float:
        """Seconds on a clock that never goes back; it may stand still during one pass of the loop."""

    def clock(self) -> float:
        """Seconds on another such clock, which never stands still and has microseconds."""

    def call_soon(self, callback: Callable[[], None]) -> object:
        """Run `callback` in the next pass of the loop."""

    def call_later(self, delay: float, callback: Callable[[], None]) -> Handle:
        """Run `callback` after `delay` seconds."""

    def connect(
        self,
        address: Address,
        protocol: asyncio.BaseProtocol,
        on_failure: Callable[[str], None],
        secured: Secured | None = None,
    ) -> Handle:
        """Connect `protocol`; without success call `on_failure` with the reason, for people. With `secured` it is
        connected once the TLS handshake is over, and the server's certificate good.
        """

    def random(self) -> float:
        """A number from 0 up to, not including, 1."""


class AsyncioReactor:
    """The real one."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self.now = loop.time
        self.clock = time.perf_counter
        self.call_soon = loop.call_soon
        self.call_later = loop.call_later
        self.random = random.random

    def connect(
        self,
        address: Address,
        protocol: asyncio.BaseProtocol,
        on_failure: Callable[[str], None],
        secured: Secured | None = None,
    ) -> asyncio.Task[None]:
        """See `Reactor.connect`."""

        async def connect() -> None:
            try:
                await connection(self._loop, address, protocol, secured)
            except (OSError, UnicodeError) as error:  # UnicodeError: a host name that cannot be one
                on_failure(reason(error))

        return self._loop.create_task(connect(), name=f"connect {address}")


def as_protocol(connection: Http2Connection) -> asyncio.BaseProtocol:
    """`connection`, for an event loop. It is an asyncio.BufferedProtocol in all but the base class, which compiled
    classes cannot have: uvloop asks whether there is a `get_buffer`, only asyncio's own loops ask for the base class.
    """
    return cast("asyncio.BaseProtocol", connection)


async def connection(
    loop: asyncio.AbstractEventLoop, address: Address, protocol: asyncio.BaseProtocol, secured: Secured | None
) -> asyncio.Transport:
    """Connect `protocol` to a TCP address or a unix socket. Raises OSError (ssl.SSLError is one) or UnicodeError."""
    if secured is None:
        context, server_name, patience = None, None, None
    else:
        context, server_name, patience = *secured, CLOSE_NOTIFY_TIMEOUT
    if address.path:
        transport, _ = await loop.create_unix_connection(
            lambda: protocol, address.path, ssl=context, server_hostname=server_name, ssl_shutdown_timeout=patience
        )
    else:
        transport, _ = await loop.create_connection(
            lambda: protocol,
            address.host,
            address.port,
            ssl=context,
            server_hostname=server_name,
            ssl_shutdown_timeout=patience,
        )
    return transport


def reason(error: Exception | None) -> str:
    """What went wrong with a connection, in plain words."""
    if error is None:
        return "closed by the server"
    if isinstance(error, ssl.SSLError):
        return ssl_reason(error)
    if isinstance(error, OSError) and error.errno is not None and error.errno > 0:
        return os.strerror(error.errno).lower()  # asyncio's own text repeats the address
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()  # the resolver's, whose numbers are its own
    return str(error) or type(error).__name__


def ssl_reason(error: ssl.SSLError) -> str:
    """What went wrong with TLS, without OpenSSL's wrapping."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"certificate refused: {error.verify_message}"
    # "TLSV13_ALERT_CERTIFICATE_REQUIRED": what the other side said, or what OpenSSL thinks of it.
    text = (error.reason or str(error)).lower().replace("_", " ")
    return f"TLS: {re.sub(r'^(ssl|tls)(v[0-9]+)? ', '', text)}"
