"""A client's way from its connect to a secured connection.

The event loop's own server knows one context for ever, and tells of a client only when its handshake is over. Here each
handshake has the newest certificate, and clients count, and can be given up, before they have finished one.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from functools import partial
from typing import Protocol, cast

from proxy.transport.downstream import NOT_HTTP2, DownstreamConnection
from proxy.transport.reactor import CLOSE_NOTIFY_TIMEOUT, as_protocol, reason
from proxy.transport.tls import ServerTls, speaks_http2

log = logging.getLogger(__name__)

Objection = tuple[str, str]
"""Why a client gets no connection: the name of a limit's counter, and a few words for people."""


class Keeper(Protocol):
    """Who counts the clients, by their addresses without port (None: it has none)."""

    def begin_handshake(self, client: str | None) -> bool:
        """Whether there is room for one more; `end_handshake` must follow if there is."""

    def end_handshake(self, client: str | None, objection: Objection | None = None) -> None:
        """The client is about to get its connection, or gets none, for that reason or because it has left."""

    def connection(self) -> DownstreamConnection:
        """What a client gets that can begin to speak HTTP/2."""


class Handshakes:
    """Secures clients that have been accepted."""

    def __init__(self, tls: ServerTls, keeper: Keeper) -> None:
        self._tls = tls
        self._keeper = keeper
        self._under_way: set[asyncio.Task[Objection | None]] = set()
        self._loop = asyncio.get_running_loop()

    def begin(self, accepted: socket.socket, client: str | None) -> None:
        """Secure `accepted`, whose address is `client`; it is closed if there is no room for it."""
        if not self._keeper.begin_handshake(client):
            accepted.close()
            return
        handshake = _Handshake(self._tls, self._keeper, client, self._loop.create_future())
        task = self._loop.create_task(self._secure(accepted, handshake), name="TLS handshake")
        self._under_way.add(task)
        # Not at the end of the task: one that is cancelled before it began has none.
        task.add_done_callback(partial(self._ended, handshake))

    def abort(self) -> None:
        """Give up on those who are not secured yet."""
        for task in tuple(self._under_way):
            task.cancel()

    async def _secure(self, accepted: socket.socket, handshake: _Handshake) -> Objection | None:
        try:
            await self._loop.connect_accepted_socket(
                lambda: handshake,
                accepted,
                ssl=self._tls.context,
                ssl_handshake_timeout=self._tls.handshake_timeout,
                ssl_shutdown_timeout=CLOSE_NOTIFY_TIMEOUT,
            )
        except OSError as error:  # ssl.SSLError is one
            return "tls_handshake", f"TLS handshake failed: {reason(error)}"
        return await handshake.over

    def _ended(self, handshake: _Handshake, task: asyncio.Task[Objection | None]) -> None:
        self._under_way.discard(task)
        bug = None if task.cancelled() else task.exception()
        if bug is not None:
            log.error("a bug ended a TLS handshake", exc_info=bug)
        if not handshake.succeeded:
            objection = None if task.cancelled() or bug is not None else task.result()
            self._keeper.end_handshake(handshake.client, objection)


class _Handshake(asyncio.Protocol):
    """A client that gets a connection once its handshake is over, or nothing but a goodbye."""

    def __init__(
        self, tls: ServerTls, keeper: Keeper, client: str | None, over: asyncio.Future[Objection | None]
    ) -> None:
        self._tls = tls
        self._keeper = keeper
        self._objection: Objection | None = None
        self.client = client
        self.succeeded = False
        self.over = over
        """Done when it has its connection, or is gone."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # Not isinstance: uvloop's transports have the interface, but not the base class.
        wire = cast("asyncio.Transport", transport)
        ssl_object = wire.get_extra_info("ssl_object")
        if not speaks_http2(ssl_object):
            self._objection = "tls_client", "does not offer HTTP/2 over TLS (ALPN h2)"
            wire.write(NOT_HTTP2)
            wire.close()
        elif (objection := self._tls.objection(ssl_object)) is not None:
            # Without a word: a client that has seen SETTINGS and GOAWAY takes the connection for a good one, and tries
            # again and again until the call's deadline; this one fails to connect, and says so.
            self._objection = "tls_client", objection
            wire.close()
        else:
            self.succeeded = True
            self._keeper.end_handshake(self.client)
            self.over.set_result(None)
            connection = self._keeper.connection()
            wire.set_protocol(as_protocol(connection))
            connection.connection_made(wire)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - why it is gone changes nothing
        if not self.over.done():
            self.over.set_result(self._objection)
