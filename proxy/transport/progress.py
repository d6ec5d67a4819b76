"""How far the bytes have come that were written to a client: delivered, or still on their way.

What a client has taken of a call shows by its windows; but over a slow line, or to a program that reads slowly, much
can be on its way before that. On loopback, the kernel takes 2.8 MB before a transport's buffer begins to fill, and
gives it room only after a third of them has left. So the kernel is asked. That costs 4 us a look, and only those
connections for which something waits.
"""

from __future__ import annotations

import fcntl
import socket
import struct
import sys
import termios
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from proxy.transport.downstream import DownstreamConnection

TCP_INFO: Final = socket.TCP_INFO if sys.platform == "linux" else None
"""Where there is one whose fields are known here."""
BYTES_ACKED: Final = struct.Struct("=120xQ")
"""`tcpi_bytes_acked` of Linux's tcp_info, since 4.1 (RFC 4898, tcpEStatsAppHCThruOctetsAcked)."""
OUT_QUEUE: Final = struct.Struct("=i")
"""What SIOCOUTQ gives (tcp(7)), whose number is that of TIOCOUTQ; of a Unix socket it is memory, a little more."""
BELOW_TLS: Final = 65_536
"""Bytes that TLS keeps below the buffer that it tells of, at least, if there are any in that."""
NOT_PAUSED: Final = -1


class Progress:
    """Of one client, from the first look on."""

    __slots__ = ("_ahead", "_pause", "_seen", "delivered", "in_flight")

    def __init__(self) -> None:
        self.delivered = 0
        """Bytes that have arrived. By TCP: all that the client's kernel has acknowledged. Elsewhere, as on a Unix
        socket: about so many since the first look."""
        self.in_flight = 0
        """Bytes written before the last look that had not arrived by then."""
        self._seen = False
        self._pause = NOT_PAUSED
        """The number of the pause in which the connection was, if it was."""
        self._ahead = 0

    def look(self, connection: DownstreamConnection) -> bool:
        """Whether at least one byte has arrived since the last look. True the first time, and where it cannot be told:
        without TCP, as long as the transport's buffer has room.
        """
        wire = connection.wire
        if wire is None:
            return False
        peer: socket.socket | None = wire.get_extra_info("socket")
        buffered = wire.get_write_buffer_size()
        in_flight = buffered + _in_kernel(peer)
        if buffered and wire.get_extra_info("ssl_object") is not None:
            in_flight += BELOW_TLS
        delivered = _acknowledged(peer)
        pause = connection.resumes if connection.paused else NOT_PAUSED
        if delivered is None:
            if pause == self._pause != NOT_PAUSED:
                # The same pause: nothing was added to what was on its way, but for what was written ahead.
                left = self.in_flight + connection.ahead - self._ahead - in_flight
            else:
                # The buffer had room, or got some, so about all of that has left.
                left = max(1, self.in_flight)
            delivered = self.delivered + max(0, left)
        moved = delivered > self.delivered or not self._seen
        self._seen = True
        self._pause, self._ahead = pause, connection.ahead
        self.delivered, self.in_flight = delivered, in_flight
        return moved


def _acknowledged(peer: socket.socket | None) -> int | None:
    if peer is None or TCP_INFO is None or peer.family not in (socket.AF_INET, socket.AF_INET6):
        return None
    try:
        info = peer.getsockopt(socket.IPPROTO_TCP, TCP_INFO, BYTES_ACKED.size)
    except OSError:
        return None
    return int(BYTES_ACKED.unpack(info)[0]) if len(info) == BYTES_ACKED.size else None


def _in_kernel(peer: socket.socket | None) -> int:
    if peer is None:
        return 0
    try:
        return int(OUT_QUEUE.unpack(fcntl.ioctl(peer.fileno(), termios.TIOCOUTQ, bytes(OUT_QUEUE.size)))[0])
    except OSError:
        return 0
