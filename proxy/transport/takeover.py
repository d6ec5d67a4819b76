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

If the successor dies before it is ready, nothing has happened.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import socket
import struct
import sys
from collections.abc import Callable, Sequence
from typing import Final

from proxy.cluster.address import Address

log = logging.getLogger(__name__)

SUPPORTED: Final = sys.platform == "linux"
READY_TIMEOUT: Final = 60.0
"""Seconds that a successor has to become ready."""
ANSWER_TIMEOUT: Final = 10.0
"""Seconds that the running proxy has for each of its answers."""
ACCEPT_PAUSE: Final = 1.0
"""Seconds to wait after a failure to accept, such as too many open files."""
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

    def open(self) -> None:
        """Wait for successors from now on. Where that is not possible, says so in the log: the proxy works without."""
        if not SUPPORTED:
            return
        point = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        point.setblocking(False)  # noqa: FBT003 - the standard library's
        try:
            point.bind(meeting_point(self._address))
        except OSError as error:
            log.warning("no successor will be able to take over the port: %s", os.strerror(error.errno or 0))
            point.close()
            return
        point.listen(1)
        self._socket = point
        self._task = asyncio.get_running_loop().create_task(self._wait(point), name="takeover")

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

    async def _wait(self, point: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                peer, _ = await loop.sock_accept(point)
            except OSError as error:
                log.warning("cannot meet a successor: %s", error)
                await asyncio.sleep(ACCEPT_PAUSE)
                continue
            with peer:
                try:
                    async with asyncio.timeout(READY_TIMEOUT):
                        taken = await self._hand_over(peer)
                    if taken:
                        return
                except TimeoutError:
                    log.warning("a successor was not ready within %g s", READY_TIMEOUT)
                except OSError as error:
                    log.warning("a successor did not take over: %s", error)

    async def _hand_over(self, peer: socket.socket) -> bool:
        peer.setblocking(False)  # noqa: FBT003 - the standard library's
        if not may_be_trusted(peer):
            return False
        socket.send_fds(peer, [b"sockets"], self._sockets)
        loop = asyncio.get_running_loop()
        if await loop.sock_recv(peer, 16) != b"ready":
            log.warning("a successor came and went without taking over")
            return False
        self._leave()
        await loop.sock_sendall(peer, b"bye")
        log.info("a successor has taken over the port")
        self._on_taken()
        return True


class Takeover:
    """The successor's side: made by `begin`, ended by `confirm` or `close`."""

    def __init__(self, peer: socket.socket, sockets: list[socket.socket]) -> None:
        self._peer = peer
        self.sockets = sockets
        """They listen on the port already; their owner closes them."""

    @classmethod
    async def begin(cls, address: Address) -> Takeover | None:
        """Ask the proxy that listens on `address` for its sockets. None: there is none, or it does not answer."""
        if not SUPPORTED:
            return None
        return await asyncio.get_running_loop().run_in_executor(None, cls._begin, address)

    @classmethod
    def _begin(cls, address: Address) -> Takeover | None:
        peer = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        peer.settimeout(ANSWER_TIMEOUT)
        try:
            peer.connect(meeting_point(address))
            if not may_be_trusted(peer):
                peer.close()
                return None
            greeting, descriptors, _, _ = socket.recv_fds(peer, 16, MAX_SOCKETS)
        except OSError:
            peer.close()
            return None
        sockets = [socket.socket(fileno=descriptor) for descriptor in descriptors]
        if greeting != b"sockets" or not sockets:
            peer.close()
            return None
        return cls(peer, sockets)

    async def confirm(self) -> None:
        """We accept connections: the other proxy may go. Returns when it has left the meeting point."""
        await asyncio.get_running_loop().run_in_executor(None, self._confirm)

    def _confirm(self) -> None:
        with self._peer as peer:
            try:
                peer.sendall(b"ready")
                peer.recv(16)
            except OSError as error:
                log.warning("the proxy before us did not say goodbye: %s", error)

    def close(self) -> None:
        """Give up: the other proxy goes on as before."""
        self._peer.close()
        for each in self.sockets:
            each.close()
