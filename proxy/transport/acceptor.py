"""Takes clients from the queues of sockets that listen.

The proxy does this by itself instead of leaving it to the event loop's server, so that it hears of what goes wrong:
when a process has no file descriptor left, libuv (below uvloop) sends clients away and tells nobody. For clients of TLS
there are more reasons (see `handshake`). It costs 7 us a connection.

Clients get all descriptors but a few. Those are for connections to servers, which would otherwise count as down, and
lose their chats, because of too many clients; and for health checks, the admin server and files. If even those are
gone, clients wait in the queue.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import resource
import socket
from collections.abc import Callable, Sequence
from typing import Final

log = logging.getLogger(__name__)

MAX_ACCEPTS: Final = 8
"""Clients accepted in one pass of the loop, so that calls have their turn: each is 50 us."""
PAUSE: Final = 1.0
"""Seconds to wait when nobody can be accepted, unless a client leaves before; asyncio waits as long."""
RESERVE: Final = 64
"""File descriptors that clients do not get; a quarter of all, if those are few."""

_EXHAUSTED: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
_OF_THE_CLIENT: Final = frozenset(
    getattr(errno, name)
    for name in (
        *("ECONNABORTED", "EPERM", "EPROTO", "ENOPROTOOPT", "EOPNOTSUPP", "ETIMEDOUT"),
        *("ENETDOWN", "EHOSTDOWN", "ENONET", "EHOSTUNREACH", "ENETUNREACH"),
    )
    if hasattr(errno, name)
)
"""Errors that are pending on the new connection, or a firewall's; accept(2): "treat them like EAGAIN by retrying"."""


class Acceptor:
    """Accepts on sockets that are bound, from `start` until `close`."""

    def __init__(
        self,
        sockets: Sequence[socket.socket],
        backlog: int,
        welcome: Callable[[socket.socket, str | None], object],
        exhausted: Callable[[str], object],
        farewell: bytes = b"",
    ) -> None:
        """`sockets`: are closed by `close`. `backlog`: clients that the kernel accepts before we do. `welcome(socket,
        address)` gets each client, with its address without port (None: it has none). `exhausted(detail)` is told that
        one is turned away, or that all have to wait, for want of file descriptors or memory. `farewell`: what one hears
        that is turned away.
        """
        self.sockets = tuple(sockets)
        self._backlog = backlog
        self._welcome = welcome
        self._exhausted = exhausted
        self._farewell = farewell
        self._loop = asyncio.get_running_loop()
        self._pause: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Accept from now on. Raises OSError if that is not possible."""
        for each in self.sockets:
            each.setblocking(False)  # noqa: FBT003 - the standard library's
            each.listen(self._backlog)
        self._read()

    def go_on(self) -> None:
        """Something was given back: if clients have to wait, see whether there is room for one now."""
        if self._pause is not None:
            self._pause.cancel()
            self._read()

    def close(self) -> None:
        """Accept no more. May be called twice, and without `start`."""
        self._rest()
        for each in self.sockets:
            each.close()

    def _read(self) -> None:
        self._pause = None
        for each in self.sockets:
            self._loop.add_reader(each.fileno(), self._accept, each)

    def _rest(self) -> None:
        if self._pause is not None:
            self._pause.cancel()
            self._pause = None
        for each in self.sockets:
            if each.fileno() >= 0:
                self._loop.remove_reader(each.fileno())

    def _accept(self, listening: socket.socket) -> None:
        for _ in range(MAX_ACCEPTS):
            try:
                client, address = listening.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in _OF_THE_CLIENT:
                    continue
                self._wait(error)
                return
            client.setblocking(False)  # noqa: FBT003 - as above
            # The kernel gives the lowest number that is free, so all below are taken.
            if client.fileno() >= _end_of_clients():
                self._turn_away(client)
            else:
                self._welcome(client, str(address[0]) if isinstance(address, tuple) else None)

    def _wait(self, error: OSError) -> None:
        # The queue stays readable: without a pause, the loop would do nothing else than fail at this.
        self._rest()
        self._pause = self._loop.call_later(PAUSE, self._read)
        why = os.strerror(error.errno or 0).lower()
        if error.errno in _EXHAUSTED:
            self._exhausted(f"clients have to wait: {why}{_advice()}")
        else:
            log.error("cannot accept clients, and try again in %g s: %s", PAUSE, why)

    def _turn_away(self, client: socket.socket) -> None:
        with client, contextlib.suppress(OSError):  # has left
            client.send(self._farewell)
        self._exhausted(f"a client was turned away: the last file descriptors are for servers{_advice()}")


def _end_of_clients() -> int | float:
    """The lowest file descriptor that no client gets; looked up each time, as it may be changed from outside."""
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return float("inf") if limit == resource.RLIM_INFINITY else limit - min(RESERVE, limit // 4)


def _advice() -> str:
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return "" if limit == resource.RLIM_INFINITY else f" (the process may have {limit}; see ulimit -n, LimitNOFILE)"
