"""TLS for a grpcio channel to a server that is known by its identities.

grpcio verifies servers by a host name alone; a certificate that names no host, as SPIFFE's do not, it cannot accept. So
the channel speaks cleartext to a unix socket in a directory that nobody else can enter, and each of its connections is
carried on over TLS by the contexts that calls have, too. What passes is a health check's: there is no back-pressure.
"""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path
from typing import cast

from proxy.cluster.address import Address
from proxy.transport.reactor import connection, reason
from proxy.transport.tls import EndpointTls


class TlsRelay:
    """Made by `open`, ended by `close`."""

    def __init__(self, address: Address, tls: EndpointTls, directory: tempfile.TemporaryDirectory[str]) -> None:
        self._address = address
        self._tls = tls
        self._directory = directory
        self._server: asyncio.Server | None = None
        self._pipes: set[_Near] = set()
        self.target = f"unix:{Path(directory.name, 'server')}"
        """For the channel, which speaks cleartext to it."""
        self.why = ""
        """The last reason why the server could not be connected to, for people; empty while it can."""

    @classmethod
    async def open(cls, address: Address, tls: EndpointTls) -> TlsRelay:
        """For connections to `address`. Raises OSError if there is no room for a directory."""
        relay = cls(address, tls, tempfile.TemporaryDirectory(prefix="districhat-"))
        loop = asyncio.get_running_loop()
        relay._server = await loop.create_unix_server(lambda: _Near(relay), relay.target.removeprefix("unix:"))
        return relay

    async def close(self) -> None:
        """End its connections. May be called twice."""
        if self._server is not None:
            self._server.close()
        connecting = [pipe.connecting for pipe in tuple(self._pipes) if pipe.connecting is not None]
        for pipe in tuple(self._pipes):
            pipe.abort()
        await asyncio.gather(*connecting, return_exceptions=True)
        self._directory.cleanup()

    async def connect(self, near: _Near) -> asyncio.Transport:
        """A secured connection whose bytes go to `near`. Raises OSError or ValueError."""
        far = await connection(asyncio.get_running_loop(), self._address, _Far(near), self._tls.secured)
        objection = self._tls.objection(far.get_extra_info("ssl_object"))
        if objection is not None:
            far.close()
            raise ConnectionError(objection)
        return far

    def begun(self, near: _Near) -> None:
        """Grpcio has connected."""
        self._pipes.add(near)

    def ended(self, near: _Near) -> None:
        """Grpcio has left, or was left."""
        self._pipes.discard(near)


class _Near(asyncio.Protocol):
    """A connection of grpcio's."""

    def __init__(self, relay: TlsRelay) -> None:
        self._relay = relay
        self._wire: asyncio.Transport | None = None
        self._far: asyncio.Transport | None = None
        self._early: list[bytes] = []
        self.connecting: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._wire = cast("asyncio.Transport", transport)
        self._relay.begun(self)
        self.connecting = asyncio.get_running_loop().create_task(self._connect(), name="health check over TLS")

    async def _connect(self) -> None:
        relay = self._relay
        try:
            self._far = await relay.connect(self)
        except (OSError, ValueError) as error:
            relay.why = reason(error)
            self.abort()
            return
        relay.why = ""
        if self._wire is None:
            self._far.close()
            return
        for data in self._early:
            self._far.write(data)

    def data_received(self, data: bytes) -> None:
        if self._far is None:
            self._early.append(data)
        else:
            self._far.write(data)

    def answer(self, data: bytes) -> None:
        """The server said something."""
        if self._wire is not None:
            self._wire.write(data)

    def abort(self) -> None:
        """The server has left, or could not be reached."""
        if self._wire is not None:
            self._wire.abort()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - why it left changes nothing
        self._wire = None
        self._relay.ended(self)
        if self._far is not None:
            self._far.close()
        elif self.connecting is not None:
            self.connecting.cancel()


class _Far(asyncio.Protocol):
    """The same connection on its way to the server."""

    def __init__(self, near: _Near) -> None:
        self._near = near

    def data_received(self, data: bytes) -> None:
        self._near.answer(data)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - as above
        self._near.abort()
