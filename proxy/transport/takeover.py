"""Handing the port to a successor, so that a restart or an upgrade refuses no connection and loses none.

The running proxy waits on an abstract unix socket (Linux) that is named after its port. A successor connects there and
is given the listening sockets themselves (SCM_RIGHTS), as HAProxy does it: both processes then share one queue of
connections, and none is lost when the first stops accepting, which with two sockets on one port (SO_REUSEPORT) would
reset those that wait in its own queue.

    successor                       running proxy
    connect                      ->
                                 <- the listening sockets
    gets ready, accepts, "ready" ->
                                 <- "bye": it has left the meeting point, and drains
                                 <- or "late": it waits no longer, and goes on as before

A running proxy that is told to end while its successor gets ready leaves it the port, and the file of a unix socket.

If the successor dies before it is ready, nothing has happened; nor if it dies before "bye" reaches it: the running
proxy then comes back to the meeting point. That it has died is seen by the end of the connection, which it keeps as
long as it lives. Two proxies that both believe to have the port would share it for good, and no successor could replace
both.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import os
import socket
import struct
import sys
from collections.abc import Callable, Sequence
from typing import Final

from proxy.cluster.address import Address
from proxy.errors import ConfigError

log = logging.getLogger(__name__)

SUPPORTED: Final = sys.platform == "linux"
READY_TIMEOUT: Final = 60.0
"""Seconds that a successor has to become ready."""
ANSWER_TIMEOUT: Final = 10.0
"""Seconds that the running proxy has for each of its answers."""
ACCEPT_PAUSE: Final = 1.0
"""Seconds to wait after a failure to accept, such as too many open files."""
READY: Final = b"ready"
BYE: Final = b"bye"
LATE: Final = b"late"
MAX_SOCKETS: Final = 250
"""The kernel passes 253 at a time."""


def meeting_point(address: Address) -> str:
    """The name of the unix socket where the proxy that listens on `address` waits for its successor."""
    name = str(address)
    if address.path:  # as long as the name of a unix socket may be, which this is, too
        name = hashlib.blake2b(os.path.realpath(address.path).encode(), digest_size=20).hexdigest()
    return f"\0districhat/takeover/{name}"


def may_be_trusted(peer: socket.socket) -> bool:
    """Whether the process at the other end is root's or our own user's; says in the log if not."""
    _pid, uid, _gid = struct.unpack("3i", peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    if uid in (0, os.getuid()):
        return True
    log.warning("a process of user %d must not take part in a takeover", uid)
    return False


class Handover:
    """The running side. `on_taken` is called once a successor has taken the port."""

    def __init__(self, address: Address, sockets: Sequence[int], on_taken: Callable[[], None]) -> None:
        """`sockets`: the file descriptors that listen on `address`."""
        self._address = address
        self._sockets = list(sockets)
        self._on_taken = on_taken
        self._socket: socket.socket | None = None
        self._task: asyncio.Task[None] | None = None
        self.under_way = False
        """A successor has the sockets, and may be about to take the port. As it was when this was closed."""

    def open(self) -> None:
        """Wait for successors from now on. Where that is not possible, says so in the log: the proxy works without."""
        point = self._come_to_the_meeting_point()
        if point is not None:
            self._task = asyncio.get_running_loop().create_task(self._wait(point), name="takeover")

    def _come_to_the_meeting_point(self) -> socket.socket | None:
        if not SUPPORTED:
            return None
        point = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        point.setblocking(False)  # noqa: FBT003 - the standard library's
        try:
            point.bind(meeting_point(self._address))
        except OSError as error:
            log.warning("no successor will be able to take over the port: %s", os.strerror(error.errno or 0))
            point.close()
            return None
        point.listen(1)
        self._socket = point
        return point

    async def close(self) -> None:
        """Wait for nobody any more. Nothing happens if it was not opened, or is closed."""
        if self._task is not None and self._task is not asyncio.current_task():
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        self._leave()

    def _leave(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    async def _wait(self, point: socket.socket | None) -> None:
        loop = asyncio.get_running_loop()
        while point is not None:
            try:
                peer, _ = await loop.sock_accept(point)
            except OSError as error:
                log.warning("cannot meet a successor: %s", error)
                await asyncio.sleep(ACCEPT_PAUSE)
                continue
            with peer:
                peer.setblocking(False)  # noqa: FBT003 - the standard library's
                if await self._hand_over(peer):
                    log.info("a successor has taken over the port")
                    self._on_taken()
                    return
                self.under_way = False
            if self._socket is None:  # left for a successor that is no more
                point = self._come_to_the_meeting_point()

    async def _hand_over(self, peer: socket.socket) -> bool:
        """Whether the process at the other end has the port now."""
        loop = asyncio.get_running_loop()
        try:
            if not may_be_trusted(peer):
                return False
            socket.send_fds(peer, [b"sockets"], self._sockets)
            self.under_way = True
            async with asyncio.timeout(READY_TIMEOUT):
                word = await loop.sock_recv(peer, 16)
            if word != READY:
                log.warning("a successor came and went without taking over")
                return False
            self._leave()
            await loop.sock_sendall(peer, BYE)
        except TimeoutError:
            log.warning("a successor was not ready within %g s", READY_TIMEOUT)
            with contextlib.suppress(OSError):
                peer.send(LATE)
            return False
        except OSError as error:
            log.warning("a successor did not take over: %s", error)
            return False
        return True


class Takeover:
    """The successor's side: made by `begin`, ended by `close`."""

    def __init__(self, address: Address, peer: socket.socket) -> None:
        self._address = address
        self._peer = peer
        self.sockets: list[socket.socket] = []
        """They listen on the port already; their owner closes them."""
        self.confirmed = False
        """The port is ours."""

    @classmethod
    async def begin(cls, address: Address) -> Takeover | None:
        """Ask the proxy that listens on `address` for its sockets. None: there is none, or it does not answer."""
        if not SUPPORTED:
            return None
        peer = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        peer.setblocking(False)  # noqa: FBT003 - the standard library's
        takeover = cls(address, peer)
        try:
            async with asyncio.timeout(ANSWER_TIMEOUT):
                if await takeover._ask():
                    return takeover
        except OSError:  # a timeout is one
            pass
        except asyncio.CancelledError:
            takeover.close()
            raise
        takeover.close()
        return None

    async def _ask(self) -> bool:
        """Whether the sockets are here."""
        await asyncio.get_running_loop().sock_connect(self._peer, meeting_point(self._address))
        if not may_be_trusted(self._peer):
            return False
        await _readable(self._peer)
        greeting, descriptors, _, _ = socket.recv_fds(self._peer, 16, MAX_SOCKETS)
        self.sockets = [socket.socket(fileno=descriptor) for descriptor in descriptors]
        return greeting == b"sockets" and bool(self.sockets)

    async def confirm(self) -> None:
        """We accept connections: the other proxy may go. Returns when it has left the meeting point, or is no more.
        Raises ConfigError if it has waited too long and goes on: then we must not.
        """
        loop = asyncio.get_running_loop()
        self.confirmed = True
        try:
            async with asyncio.timeout(ANSWER_TIMEOUT):
                with contextlib.suppress(OSError):  # it has gone away, and said why
                    await loop.sock_sendall(self._peer, READY)
                word = await loop.sock_recv(self._peer, 16)
        except OSError as error:
            log.warning("the proxy before us did not say goodbye: %s", str(error) or "it does not answer")
            return
        if word == LATE:
            self.confirmed = False
            why = f"the proxy that has {self._address} goes on: this one was not ready within {READY_TIMEOUT:g} s"
            raise ConfigError([f"listener.address: {why}"])
        self._peer.close()

    def close(self) -> None:
        """Unless it was confirmed, the other proxy goes on as before. May be called twice."""
        self._peer.close()
        for each in self.sockets:
            each.close()


async def _readable(peer: socket.socket) -> None:
    """Returns when there is something to read."""
    loop = asyncio.get_running_loop()
    something = asyncio.Event()
    loop.add_reader(peer, something.set)
    try:
        await something.wait()
    finally:
        loop.remove_reader(peer)
